import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.objectives.word2vec import window_extents, window_sum


def _extents(seed, reach):
  """Returns windows and segments of rows, some with padding, and the extents of windows."""
  rng = np.random.default_rng(seed)
  segments = np.sort(rng.integers(1, 4, (4, 9)), axis=1)
  segments[1, 6:] = 0
  window = rng.integers(1, reach + 1, segments.shape)
  found = jax.jit(window_extents, static_argnums=2)(window, segments, reach)
  return window, segments, jax.device_get(found)


def _matrix(left, right):
  """Returns (B, T, T): whether the second token is a neighbor of the first."""
  B, T = left.shape
  found = np.zeros((B, T, T), np.float32)
  for b in range(B):
    for t in range(T):
      found[b, t, t - left[b, t] : t + right[b, t] + 1] = 1
      found[b, t, t] = 0
  return found


@pytest.mark.parametrize('reach', [1, 3, 12])
def test_neighbors_are_in_the_window_and_the_segment(reach):
  window, segments, (left, right) = _extents(0, reach)
  expected = np.zeros((*segments.shape, segments.shape[1]))
  for b, t, s in np.ndindex(*expected.shape):
    near = 0 < abs(s - t) <= window[b, t]
    expected[b, t, s] = near and segments[b, t] == segments[b, s] > 0
  np.testing.assert_array_equal(_matrix(left, right), expected)


@pytest.mark.parametrize('reach', [1, 3, 12])
def test_window_sums_and_gradients_equal_a_matmul(reach):
  *_, (left, right) = _extents(1, reach)
  rng = np.random.default_rng(2)
  x, weights = (rng.normal(size=(4, 9, 5)).astype(np.float32) for _ in range(2))
  matrix = _matrix(left, right)

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def both(x):
    total = window_sum(x, left, right, reach)
    return jnp.sum(total * weights), total

  found, total = both(x)
  np.testing.assert_allclose(total, matrix @ x, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(found, matrix.transpose(0, 2, 1) @ weights, rtol=1e-5, atol=1e-6)
