"""The article's recurrent network and its attention, by hand and against the code of lm.

As in tests/test_article.py: gradients in float64 by hand, by finite differences and by `jax.grad`,
and what is printed beside them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import differences, equal, random, sigmoid, softmax

from lm.nn import attention, recurrent
from lm.types import Mask

H, X = 3, 2  # sizes of the state and of an input


# The recurrent network: h_t = sigmoid(W [h_(t-1), x_t] + b).


@jax.jit
def elman_step(params, h_H, x_X):
  """One step of the cell with a sigmoid; the article's W is the kernels of h and of x in one."""
  weight_HI, bias_H = params
  of_state, of_input = (part.T[:, None] for part in jnp.split(weight_HI, [H], axis=1))
  weights = recurrent.Weights(of_input, bias_H[None], of_state)
  no_resets = recurrent.ResetMask(*jnp.zeros((2, 1, 1), bool))
  cell, x_TBX = recurrent.elman(jax.nn.sigmoid), x_X[None, None]
  _, (after_BH,) = recurrent.run_layer(cell, x_TBX, weights, no_resets, (h_H[None],))
  return after_BH[0]


def numpy_states(weight, bias, xs, h):
  states = [h]
  for x in xs:
    states.append(sigmoid(weight @ np.concatenate([states[-1], x]) + bias))
  return states


WEIGHT, BIAS, INPUTS, TARGET = random(H, H + X), random(H, seed=1), random(4, X, seed=2), 0.2
START = np.full(H, 0.5)


def final_loss(params, step=elman_step):
  h = jnp.asarray(START, jnp.float32)
  for x in INPUTS:
    h = step(params, h, jnp.asarray(x, jnp.float32))
  return jnp.sum((h - TARGET) ** 2) / 2


def narrow(*arrays):
  return tuple(np.asarray(x, np.float32) for x in arrays)


def test_a_step_of_the_network_is_the_printed_formula():
  expected = numpy_states(WEIGHT, BIAS, INPUTS[:1], START)[-1]
  equal(elman_step(narrow(WEIGHT, BIAS), *narrow(START, INPUTS[0])), expected)


def test_the_slope_of_a_state_is_positive_and_not_negative_as_printed():
  joined = np.concatenate([START, INPUTS[0]])
  h = sigmoid(WEIGHT @ joined + BIAS)
  # Of state i by weight (k, l): only the i-th row of the weights moves the i-th state.
  of_weight = np.einsum('ik,i,l->ikl', np.eye(H), h * (1 - h), joined)
  of_bias = np.diag(h * (1 - h))
  found = jax.jit(jax.jacobian(elman_step))(narrow(WEIGHT, BIAS), *narrow(START, INPUTS[0]))
  equal(found[0], of_weight)
  equal(found[1], of_bias)
  for i in range(H):
    equal(differences(lambda w, i=i: sigmoid(w @ joined + BIAS)[i], WEIGHT), of_weight[i])
    equal(differences(lambda b, i=i: sigmoid(WEIGHT @ joined + b)[i], BIAS), of_bias[i])
  assert (np.diag(found[1]) > 0).all(), 'the printed slope, -h (1 - h), is below 0'


def test_the_gradient_goes_back_through_the_states_before():
  states = numpy_states(WEIGHT, BIAS, INPUTS, START)
  d_weight, d_bias, d_h = np.zeros_like(WEIGHT), np.zeros_like(BIAS), states[-1] - TARGET
  last_only = None
  for x, before, h in reversed(list(zip(INPUTS, states, states[1:], strict=False))):
    d_z = d_h * h * (1 - h)
    d_weight += np.outer(d_z, np.concatenate([before, x]))
    d_bias += d_z
    last_only = d_weight.copy() if last_only is None else last_only
    d_h = WEIGHT[:, :H].T @ d_z
  found = jax.jit(jax.grad(final_loss))(narrow(WEIGHT, BIAS))
  equal(found[0], d_weight)
  equal(found[1], d_bias)

  def loss(weight):
    return np.sum((numpy_states(weight, BIAS, INPUTS, START)[-1] - TARGET) ** 2) / 2

  equal(differences(loss, WEIGHT), d_weight)
  # The article's derivation takes h_(t-1) for a constant: the part of the last step alone.
  assert not np.allclose(last_only, d_weight, rtol=0.01)


def test_descent_is_on_the_loss_and_descent_on_the_state_knows_no_target():
  def state(params):
    return jnp.sum(elman_step(params, *narrow(START, INPUTS[0])))

  def loss(params):
    return jnp.sum((elman_step(params, *narrow(START, INPUTS[0])) - TARGET) ** 2)

  def descend(slope, sign=1):
    params = narrow(WEIGHT, BIAS)
    for _ in range(400):
      params = tuple(
        p - sign * 0.5 * g for p, g in zip(params, jax.device_get(slope(params)), strict=True)
      )
    return elman_step(params, *narrow(START, INPUTS[0]))

  of_state = jax.jit(jax.grad(state))
  np.testing.assert_allclose(descend(jax.jit(jax.grad(loss))), TARGET, atol=0.01)
  assert (descend(of_state) < 0.05).all(), 'with the right sign all states go to 0'
  upwards = descend(of_state, sign=-1)
  assert (upwards > 0.95).all(), 'with the printed sign all states go to 1'


# Attention: softmax(Q K' / sqrt(d)) V.

T, S, K = 3, 5, 4
Q_TK, K_SK, V_SK = random(T, K), random(S, K, seed=1), random(S, K, seed=2)


@functools.partial(jax.jit, static_argnames='causal')
def ours(q, k, v, causal=False):
  """lm's attention of one row and one head."""
  positions = [jnp.arange(len(x), dtype=jnp.int32)[None] for x in (q, k)]
  wide = [x[None, :, None] for x in (q, k, v)]
  return attention.dot_product(*wide, Mask(*positions, causal=causal))[0, :, 0]


def by_hand(q, k, v):
  """Query by query: the softmax over the keys of one, and the mean of the values it gives."""
  outputs = []
  for query in q:
    alpha = softmax(np.array([query @ key for key in k]) / np.sqrt(q.shape[-1]))
    outputs.append(sum(share * value for share, value in zip(alpha, v, strict=True)))
  return np.stack(outputs)


def test_attention_is_the_formula_query_by_query():
  equal(ours(*narrow(Q_TK, K_SK, V_SK)), by_hand(Q_TK, K_SK, V_SK))


def test_the_softmax_is_over_the_keys_of_each_query_and_not_over_all_scores_at_once():
  wide = [np.asarray(x, np.float32)[None, :, None] for x in (Q_TK, K_SK)]
  positions = [np.arange(n, dtype=np.int32)[None] for n in (T, S)]
  weights = jax.jit(lambda q, k: attention.weights(q, k, Mask(*positions, causal=False)))
  found = np.asarray(weights(*wide))[0, 0]
  equal(found.sum(axis=-1), np.ones(T))
  # As printed in the second line, all T S of them share the one: 1 / T a query on the mean.
  scores = Q_TK @ K_SK.T / np.sqrt(K)
  at_once = softmax(scores.ravel()).reshape(T, S)
  equal(at_once.sum(), 1)
  assert not np.allclose(at_once @ V_SK, ours(*narrow(Q_TK, K_SK, V_SK)), atol=0.01)


def test_each_query_has_an_output_and_not_all_of_them_one_sum():
  found = np.asarray(ours(*narrow(Q_TK, K_SK, V_SK)))
  alpha = softmax(Q_TK @ K_SK.T / np.sqrt(K))
  assert found.shape == (T, K)
  for i in range(T):
    equal(found[i], sum(alpha[i, j] * V_SK[j] for j in range(S)))
  # alpha_1 v_1 + ... + alpha_n v_n adds over queries; an alpha_i has S numbers, a v_i has K.
  with pytest.raises(ValueError, match='broadcast'):
    alpha[0] * V_SK[0]


def test_the_gradient_of_attention_is_that_found_by_hand():
  upstream = random(T, K, seed=3)
  alpha = softmax(Q_TK @ K_SK.T / np.sqrt(K))
  d_alpha = upstream @ V_SK.T
  d_scores = alpha * (d_alpha - np.sum(alpha * d_alpha, axis=-1, keepdims=True)) / np.sqrt(K)
  expected = (d_scores @ K_SK, d_scores.T @ Q_TK, alpha.T @ upstream)

  def loss(*qkv):
    return jnp.sum(ours(*qkv) * upstream.astype(np.float32))

  found = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*narrow(Q_TK, K_SK, V_SK))
  qkv = [Q_TK, K_SK, V_SK]
  for i in range(3):
    equal(found[i], expected[i])

    def moved(x, i=i):
      return np.sum(by_hand(*qkv[:i], x, *qkv[i + 1 :]) * upstream)

    equal(differences(moved, qkv[i]), expected[i])


def test_a_decoder_sees_no_later_keys_so_its_formula_is_not_the_encoders():
  k, v = K_SK, V_SK
  found = np.asarray(ours(*narrow(k, k, v), causal=True))
  for i in range(S):
    equal(found[i], by_hand(k[i : i + 1], k[: i + 1], v[: i + 1])[0])
  assert not np.allclose(found[:-1], by_hand(k, k, v)[:-1], atol=0.01)


def test_the_root_of_d_keeps_the_scores_of_wide_keys_as_small_as_those_of_narrow_ones():
  q, k = random(4000, 64), random(4000, 64, seed=1)
  products = np.sum(q * k, axis=-1)
  assert products.std() == pytest.approx(8, rel=0.05)
  assert (products / np.sqrt(64)).std() == pytest.approx(1, rel=0.05)
