"""Cells against their equations in NumPy, the scan against a plain loop, and packed rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from lm.nn import recurrent
from lm.nn.recurrent import additive, align, multiplicative

T, B, I, D = 7, 3, 4, 5
CELLS = {
  'elman': recurrent.elman(),
  'sigmoid': recurrent.elman(jax.nn.sigmoid),
  'lstm': recurrent.lstm(),
  'gru': recurrent.gru(),
}


def random(*shape, seed=0):
  return np.random.default_rng(seed).normal(0, 0.7, shape)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def weights_of(cell, seed=0):
  G = cell.gates
  arrays = [random(I, G, D, seed=seed), random(G, D, seed=seed + 1), random(D, G, D, seed=seed + 2)]
  if cell.separate:
    arrays.append(random(G, D, seed=seed + 3))
  return recurrent.Weights(*(jnp.asarray(x, jnp.float32) for x in arrays))


def by_hand(name, weights, x_I, states):
  """One step of one row in float64, gate by gate, in the notation of the papers."""
  w, b, u, *c = (np.asarray(x, np.float64) for x in weights if x is not None)
  h = states[0]
  read = [x_I @ w[:, g] + b[g] for g in range(w.shape[1])]
  kept = [h @ u[:, g] for g in range(w.shape[1])]
  if name == 'elman':
    return [np.tanh(read[0] + kept[0])]
  if name == 'sigmoid':
    return [sigmoid(read[0] + kept[0])]
  if name == 'gru':
    kept = [k + c[0][g] for g, k in enumerate(kept)]
    reset, update = sigmoid(read[0] + kept[0]), sigmoid(read[1] + kept[1])
    return [(1 - update) * np.tanh(read[2] + reset * kept[2]) + update * h]
  i, f, g, o = (r + k for r, k in zip(read, kept, strict=True))
  memory = sigmoid(f + 1) * states[1] + sigmoid(i) * np.tanh(g)
  return [sigmoid(o) * np.tanh(memory), memory]


def nothing(cell):
  return tuple(jnp.zeros((B, D)) for _ in range(cell.states))


def flow(segments, positions):
  return recurrent.forward_resets(jnp.asarray(segments), jnp.asarray(positions))


ONE_SEGMENT = flow(np.ones((B, T), int), np.tile(np.arange(T), (B, 1)))


@functools.cache
def reader(name, reverse=False):
  """Returns the jitted (weights, x_TBI, flow) -> (states, carry) of a cell by its name."""
  cell = CELLS[name]

  @jax.jit
  def read(weights, x_TBI, flow):
    return recurrent.run_layer(cell, x_TBI, weights, flow, nothing(cell), reverse=reverse)

  return read


def read(name, weights, x_TBI, flow=ONE_SEGMENT, reverse=False):
  found = reader(name, reverse)(weights, np.asarray(x_TBI, np.float32), flow)
  return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize('name', CELLS)
def test_cells_equal_their_equations(name):
  cell, x_TBI = CELLS[name], random(T, B, I)
  weights = weights_of(cell)
  found, carry = read(name, weights, x_TBI)
  for b in range(B):
    states = [np.zeros(D)] * cell.states
    for t in range(T):
      states = by_hand(name, weights, x_TBI[t, b], states)
      np.testing.assert_allclose(found[t, b], states[0], atol=1e-5)
    for state, expected in zip(carry, states, strict=True):
      np.testing.assert_allclose(state[b], expected, atol=1e-5)


@functools.cache
def plain(name):
  """Returns the jitted gradient of a plain loop, from left to right."""
  cell = CELLS[name]

  def loss(weights, x_TBI, restarts, flow, probe_TBD):
    carry, found = nothing(cell), []
    for t in range(T):
      start, held = flow.reset[:, t, None], flow.padding[:, t, None]
      before = [jnp.where(start, r[t], s) for r, s in zip(restarts, carry, strict=True)]
      after = recurrent.step_cell(
        cell,
        weights.from_input(x_TBI[t]),
        before[0] @ weights.state(jnp.float32),
        weights.state_bias_GD,
        tuple(before),
      )
      carry = tuple(jnp.where(held, s, a) for s, a in zip(before, after, strict=True))
      found.append(carry[0])
    return jnp.sum(jnp.stack(found) * probe_TBD) + jnp.sum(carry[-1])

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))


@pytest.mark.parametrize('unroll', [1, 3])
@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('name', CELLS)
def test_layer_gradients_equal_those_of_a_plain_loop(name, reverse, unroll):
  cell, x_TBI = CELLS[name], random(T, B, I).astype(np.float32)
  restarts = tuple(random(T, B, D, seed=9 + i).astype(np.float32) for i in range(cell.states))
  flow = recurrent.ResetMask(*random(2, B, T, seed=4) > 0.5)
  probe_TBD = random(T, B, D, seed=8).astype(np.float32)

  def ours(weights, x_TBI, restarts):
    found, carry = recurrent.run_layer(
      cell,
      x_TBI,
      weights,
      jax.tree.map(jnp.asarray, flow),
      nothing(cell),
      restarts,
      reverse=reverse,
      unroll=unroll,
    )
    return jnp.sum(found * probe_TBD) + jnp.sum(carry[-1])

  # Right to left equals left to right on reversed rows.
  way = slice(None, None, -1 if reverse else 1)
  seen = recurrent.ResetMask(*(x[:, way] for x in flow))
  mirrored = x_TBI[way], tuple(r[way] for r in restarts)
  value, (of_weights, of_x, of_restarts) = plain(name)(
    weights_of(cell), *mirrored, seen, probe_TBD[way]
  )
  expected = value, (of_weights, of_x[way], tuple(r[way] for r in of_restarts))
  grad = jax.jit(jax.value_and_grad(ours, argnums=(0, 1, 2)))
  found = grad(weights_of(cell), x_TBI, restarts)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5, rtol=1e-4), found, expected)


def matmuls_in_loops(jaxpr, inside=False):
  """Yields the shapes of all matmuls inside of loops."""
  for equation in jaxpr.eqns:
    if inside and equation.primitive.name == 'dot_general':
      yield equation.outvars[0].aval.shape
    for inner in jaxprs_in_params(equation.params):
      yield from matmuls_in_loops(inner, inside or equation.primitive.name == 'scan')


def test_no_kernel_gradient_is_summed_inside_a_loop():
  def loss(weights, x_TBI):
    return reader('lstm')(weights, x_TBI, ONE_SEGMENT)[0].sum()

  program = jax.make_jaxpr(jax.grad(loss))(weights_of(recurrent.lstm()), random(T, B, I))
  shapes = set(matmuls_in_loops(program.jaxpr))
  assert shapes == {(B, 4 * D), (B, D)}  # the matmul of the state, and of its gradient


def segments_of(*lengths):
  segments = np.repeat(np.arange(len(lengths)) + 1, lengths)
  positions = np.concatenate([np.arange(n) for n in lengths])
  padding = T - len(segments)
  return np.pad(segments, (0, padding)), np.pad(positions, (0, padding))


@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('name', CELLS)
def test_segments_of_a_row_equal_rows_of_their_own(name, reverse):
  cell, x_TBI = CELLS[name], random(T, B, I)
  weights = weights_of(cell)
  rows = [segments_of(3, 2, 2), segments_of(4, 1), segments_of(7)]
  segments, positions = (np.stack(x) for x in zip(*rows, strict=True))
  way = recurrent.backward_resets(jnp.asarray(segments)) if reverse else flow(segments, positions)
  packed, _ = read(name, weights, x_TBI, way, reverse)
  for b in range(B):
    for segment in range(1, int(segments[b].max()) + 1):
      places = np.flatnonzero(segments[b] == segment)
      x = np.zeros((T, B, I))
      x[: len(places), 0] = x_TBI[places, b]
      if reverse:
        x = x[: len(places)][::-1]
        x = np.concatenate([x, np.zeros((T - len(places), B, I))])
      alone, _ = read(name, weights, x)
      alone = alone[: len(places), 0]
      np.testing.assert_allclose(packed[places, b], alone[::-1] if reverse else alone, atol=1e-6)


def test_padding_does_not_change_the_carry():
  weights, x_TBI = weights_of(CELLS['lstm']), random(T, B, I)
  segments, positions = (np.tile(x, (B, 1)) for x in segments_of(5))
  _, padded = read('lstm', weights, x_TBI, flow(segments, positions))
  short = recurrent.ResetMask(*(x[:, :5] for x in ONE_SEGMENT))
  _, exact = read('lstm', weights, x_TBI[:5], short)
  jax.tree.map(np.testing.assert_array_equal, padded, exact)


def test_attention_scores_equal_their_formulas():
  q, k, v = (random(*s, seed=i) for i, s in enumerate([(2, 3, 4), (2, 5, 4), (4,)]))
  expected = np.zeros((2, 3, 5))
  for b, t, s in np.ndindex(2, 3, 5):
    expected[b, t, s] = v @ np.tanh(q[b, t] + k[b, s])
  np.testing.assert_allclose(jax.jit(additive().fn)(q, k, v), expected, atol=1e-5)
  scores = jax.jit(multiplicative().fn)(q, k, None)
  np.testing.assert_allclose(scores, np.einsum('bta,bsa->bts', q, k), atol=1e-5)


def test_invisible_keys_have_weight_0():
  shapes = [(1, 2, 4), (1, 3, 4), (1, 3, 2)]
  q, k, values = (random(*s, seed=i) for i, s in enumerate(shapes))
  visible = np.array([[[True, True, False], [False, True, False]]])
  mix = jax.jit(lambda *xs: align(multiplicative(), xs[0], xs[1], None, *xs[2:]))
  mixed, weights = map(np.asarray, mix(q, k, values, visible))
  assert float(weights[0, 0, 2]) == 0 and weights[0, 1].tolist() == [0, 1, 0]
  np.testing.assert_allclose(mixed[0, 1], values[0, 1], atol=1e-6)
  np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
