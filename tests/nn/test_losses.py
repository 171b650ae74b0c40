import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.nn import losses
from lm.nn.losses import as_terms, chunk_size, cross_entropy, token_statistics
from lm.types import EmbeddingTable, OutputHead

B, T, D, V = 2, 7, 3, 23


def _inputs(vocab_size=0, bias=False, soft_cap=None, dtype=jnp.float32):
  rng = np.random.default_rng(0)

  def random(*shape, std=1.0):
    return rng.normal(0, std, shape).astype(np.float32)

  unembed = OutputHead(
    EmbeddingTable(random(V, D)),
    random(V) if bias else None,
    vocab_size=vocab_size,
    soft_cap=soft_cap,
  )
  targets_BT = rng.integers(0, vocab_size or V, (B, T)).astype(np.int32)
  weights_BT = rng.uniform(0.5, 2, (B, T)).astype(np.float32)
  weights_BT[:, ::3] = 0
  return random(B, T, D, std=2.0).astype(dtype), unembed, targets_BT, weights_BT


def _reference(hidden_BTD, unembed, targets_BT, weights_BT, z_loss=0.0, smoothing=0.0):
  """The sums from unchunked logits in double precision, and their gradients by formula.

  Returns ((nats, z_loss, smoothing), nats of each target, gradients of the total).
  """
  h, kernel_VD = (np.asarray(x, np.float64) for x in (hidden_BTD, unembed.kernel_VD))
  logits_BTV = h @ kernel_VD.T
  if unembed.bias_V is not None:
    logits_BTV += np.asarray(unembed.bias_V, np.float64)
  slope_BTV = np.ones_like(logits_BTV)
  if unembed.soft_cap:
    logits_BTV = unembed.soft_cap * np.tanh(logits_BTV / unembed.soft_cap)
    slope_BTV = 1 - (logits_BTV / unembed.soft_cap) ** 2
  real = np.arange(len(kernel_VD)) < (unembed.vocab_size or len(kernel_VD))
  exp_BTV = np.exp(logits_BTV) * real
  z_BT1 = exp_BTV.sum(-1, keepdims=True)
  log_z_BT1, w_BT1 = np.log(z_BT1), np.asarray(weights_BT, np.float64)[..., None]
  one_hot_BTV = np.eye(len(kernel_VD))[targets_BT]
  # Smoothed labels are a distribution over targets; without smoothing it is one-hot.
  smooth_BTV = (1 - smoothing) * one_hot_BTV + smoothing * real / real.sum()
  nats_BT1, smoothed_BT1 = (
    log_z_BT1 - np.sum(logits_BTV * x, axis=-1, keepdims=True) for x in (one_hot_BTV, smooth_BTV)
  )
  penalty_BT1 = z_loss * log_z_BT1**2
  sums = tuple(np.sum(w_BT1 * x) for x in (nats_BT1, penalty_BT1, smoothed_BT1 - nats_BT1))
  p_BTV = exp_BTV / z_BT1
  d_BTV = w_BT1 * (p_BTV - smooth_BTV + 2 * z_loss * log_z_BT1 * p_BTV) * slope_BTV
  d_unembed = unembed.replace(
    table=EmbeddingTable(np.einsum('btv,btd->vd', d_BTV, h)),
    bias_V=None if unembed.bias_V is None else d_BTV.sum((0, 1)),
  )
  return sums, nats_BT1[..., 0], (d_BTV @ kernel_VD, d_unembed)


def _terms(*args):
  """Returns the three sums, whose sum has the gradient of the total."""
  found = cross_entropy(*args)
  parts = {'nats': found.nats, 'z_loss': found.z_loss, 'smoothing': found.smoothing}
  terms = as_terms(found.total, parts)
  return tuple(terms[name] for name in parts)


def _with_gradients(sums):
  """Returns a third of the total, the sums, and gradients of hidden and unembed."""

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
  def scaled(hidden_BTD, unembed, *rest):
    found = sums(hidden_BTD, unembed, *rest)
    return sum(found) / 3, found

  return scaled


CASES = {
  'plain': ({}, 0.0, 0.0, 6),
  'bias': ({'bias': True}, 0.0, 0.0, 2),
  'z loss': ({}, 0.1, 0.0, 3),
  'label smoothing': ({}, 0.0, 0.2, 3),
  'soft cap': ({'soft_cap': 3.0}, 0.0, 0.0, 1),
  'padded vocabulary': ({'vocab_size': 17}, 0.0, 0.1, 3),
  'everything': ({'vocab_size': 17, 'bias': True, 'soft_cap': 3.0}, 0.1, 0.2, 2),
  'everything at once': ({'vocab_size': 17, 'bias': True, 'soft_cap': 3.0}, 0.1, 0.2, 0),
}


@pytest.mark.parametrize(('fields', 'z_loss', 'smoothing', 'chunk'), CASES.values(), ids=CASES)
def test_the_chunked_loss_and_its_gradients_equal_the_formula(fields, z_loss, smoothing, chunk):
  hidden, unembed, targets, weights = _inputs(**fields)
  found = _with_gradients(
    lambda h, u: _terms(h, u, targets, weights, z_loss, smoothing, chunk),
  )(hidden, unembed)
  sums, _, gradients = _reference(hidden, unembed, targets, weights, z_loss, smoothing)
  expected = (sum(sums) / 3, sums), jax.tree.map(lambda x: x / 3, gradients)
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_padding_rows_of_the_table_have_no_gradient():
  hidden, unembed, targets, weights = _inputs(vocab_size=17)
  _, (_, d_unembed) = _with_gradients(lambda h, u: _terms(h, u, targets, weights))(hidden, unembed)
  gradient = np.asarray(d_unembed.kernel_VD)
  assert (gradient[17:] == 0).all() and (gradient[:17] != 0).all()


def test_targets_of_weight_0_do_not_count():
  hidden, unembed, targets, weights = _inputs()
  sums = jax.jit(_terms, static_argnums=(4, 5, 6))
  found = sums(hidden, unembed, targets, weights, 0.1, 0.1, 2)
  others = np.where(weights == 0, (targets + 1) % V, targets)
  assert found == sums(hidden, unembed, others, weights, 0.1, 0.1, 2)
  assert sums(hidden, unembed, targets, np.zeros_like(weights), 0.1, 0.1, 2) == (0, 0, 0)


def test_bfloat16_states_give_float32_sums_and_gradients_in_their_own_types():
  hidden, unembed, targets, weights = _inputs(dtype=jnp.bfloat16)
  (_, (nats, *_)), (d_hidden, d_unembed) = _with_gradients(
    lambda h, u: _terms(h, u, targets, weights, 0.0, 0.0, 3)
  )(hidden, unembed)
  assert (nats.dtype, d_hidden.dtype) == (jnp.float32, jnp.bfloat16)
  assert d_unembed.kernel_VD.dtype == jnp.float32
  expected = _reference(hidden, unembed, targets, weights)[0][0]
  np.testing.assert_allclose(nats, expected, rtol=0.01)


def _largest(program) -> int:
  """Returns the size of the largest array in the text of a program."""
  shapes = re.findall(r'\w+\[([\d,]+)\]', str(program))
  return max(math.prod(map(int, shape.split(','))) for shape in shapes)


@pytest.mark.parametrize(('chunk', 'positions'), [(0, 8), (2, 2)])
def test_logits_of_all_positions_are_never_in_memory_together(chunk, positions):
  hidden = jnp.zeros((3, 8, 4))
  unembed = OutputHead(EmbeddingTable(jnp.zeros((1000, 4))))
  targets, weights = jnp.zeros((3, 8), jnp.int32), jnp.ones((3, 8))

  def loss(hidden, unembed):
    return cross_entropy(hidden, unembed, targets, weights, 0.1, 0.1, chunk).total

  jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(hidden, unembed)
  assert _largest(jaxpr) == 3 * positions * 1000
  compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, unembed).compile()
  assert _largest(compiled.as_text()) == max(3 * positions, 4) * 1000


def test_token_statistics_are_chunked_within_the_budget(monkeypatch):
  hidden, unembed, targets, _ = _inputs(vocab_size=17, bias=True, soft_cap=3.0)
  full = jax.jit(token_statistics)(hidden, unembed, targets)
  expected = _reference(hidden, unembed, targets, np.ones((B, T)))[1]
  np.testing.assert_allclose(full.nats, expected, rtol=1e-5, atol=1e-5)
  monkeypatch.setattr(losses, 'CPU_LOGITS_BUDGET', 2 * B * V)
  jaxpr = jax.make_jaxpr(lambda h: token_statistics(h, unembed, targets))(hidden)
  assert _largest(jaxpr) == 2 * B * V
  chunked = jax.jit(lambda h: token_statistics(h, unembed, targets))(hidden)
  np.testing.assert_allclose(chunked.nats, full.nats, rtol=1e-6)
  np.testing.assert_array_equal(chunked.correct, full.correct)


def test_a_target_is_correct_when_its_logit_is_the_highest():
  # The hidden state selects a row of the table; row 3 is padding and must not win.
  table = np.eye(4, dtype=np.float32)
  unembed = OutputHead(EmbeddingTable(table), vocab_size=3)
  hidden, targets = 5 * table[None], np.array([[0, 2, 2, 1]])
  statistics = jax.device_get(jax.jit(token_statistics)(hidden, unembed, targets))
  np.testing.assert_array_equal(statistics.correct, [[1, 0, 1, 0]])
  # log(e^5 + 2) for the first; three equal logits for the last.
  np.testing.assert_allclose(
    statistics.nats[0, [0, 3]], [np.log(np.e**5 + 2) - 5, np.log(3)], rtol=1e-4
  )


@pytest.mark.parametrize(
  ('shape', 'chunk', 'size'),
  [
    ((2, 12, 10), 5, 4),
    ((2, 12, 10), 11, 6),
    ((2, 12, 10), 12, 12),
    ((2, 12, 10), 100, 12),
    ((2, 13, 10), 12, 7),
    ((2, 13, 10), 4, 4),
    ((2, 64, 10), 0, 32),  # 50 positions are within the budget
    ((8, 64, 1000), 0, 1),
  ],
)
def test_chunks_have_nearly_equal_sizes(shape, chunk, size, monkeypatch):
  monkeypatch.setattr(losses, 'CPU_LOGITS_BUDGET', 1000)
  assert chunk_size(*shape, chunk) == size


def test_the_budget_is_per_device_and_larger_on_accelerators(monkeypatch):
  monkeypatch.setattr(losses, 'CPU_LOGITS_BUDGET', 1000)
  monkeypatch.setattr(losses, 'LOGITS_BUDGET', 2000)
  assert chunk_size(8, 64, 25) == 5
  monkeypatch.setattr(losses, 'num_shards', lambda *axes: 4)
  assert chunk_size(8, 64, 25) == 16  # 20 positions are within the budget
  monkeypatch.setattr(losses, 'platform', lambda: 'tpu')
  assert chunk_size(8, 64, 25) == 32
