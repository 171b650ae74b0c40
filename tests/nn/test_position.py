import math
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.nn.position import alibi, learned, none, relative, rope, sinusoidal


def _random(*shape, seed=0):
  return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def _rotated(x_BTHK, positions_BT, **options):
  return np.asarray(jax.jit(rope(**options).rotate)(x_BTHK, np.asarray(positions_BT)))


def test_rope_rotates_a_pair_by_its_position():
  x_BTHK = np.float32([[[[1, 0]], [[1, 0]], [[0, 2]]]])  # one pair, frequency 1
  turned = _rotated(x_BTHK, [[0, 2, 5]])
  expected = [[1, 0], [math.cos(2), math.sin(2)], [-2 * math.sin(5), 2 * math.cos(5)]]
  np.testing.assert_allclose(turned[0, :, 0], expected, atol=1e-6)


def test_rope_pairs_the_halves_with_falling_frequencies():
  # K = 4 and theta = 100: pairs (0, 2) and (1, 3) turn by position and by position / 10.
  turned = _rotated(np.float32([[[[1, 1, 0, 0]]]]), [[3]], theta=100.0)
  expected = [math.cos(3), math.cos(0.3), math.sin(3), math.sin(0.3)]
  np.testing.assert_allclose(turned[0, 0, 0], expected, atol=1e-6)


def test_rope_scores_depend_on_the_distance_alone():
  q, k = _random(1, 1, 3, 8), _random(1, 1, 3, 8, seed=1)
  positions = np.array([[7, 3], [104, 100], [8, 3]])
  q_at, k_at = (
    _rotated(np.repeat(x, 3, axis=0), positions[:, i, None]) for i, x in enumerate((q, k))
  )
  near, far, other = np.sum(q_at * k_at, axis=-1)
  np.testing.assert_allclose(near, far, atol=2e-5)
  assert np.abs(near - other).max() > 1e-2


def test_rope_preserves_norms_and_dtypes():
  x = _random(2, 5, 3, 8)
  positions = np.broadcast_to(np.arange(5), (2, 5))
  turned = _rotated(x, positions)
  np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)
  half = jax.eval_shape(rope().rotate, x.astype(jnp.bfloat16), positions)
  assert half.dtype == jnp.bfloat16


# Press et al. 2022, section 3: 1/2, 1/4, ..., 1/256 for 8 heads; their published code gives 12
# heads those of 8 and the first, third, fifth and seventh of 16.
SLOPES = {
  8: [2**-h for h in range(1, 9)],
  12: [2**-h for h in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5],
  1: [2**-8],
}


@pytest.mark.parametrize('heads', SLOPES)
def test_alibi_slopes_are_those_of_the_paper(heads):
  bias = jax.jit(alibi().bias(None, heads, True))
  bias_BHTS = np.asarray(bias(np.array([[5]]), np.array([[5, 4, 0]])))
  assert bias_BHTS.shape == (1, heads, 1, 3)
  np.testing.assert_allclose(-bias_BHTS[0, :, 0, 0], np.zeros(heads))
  np.testing.assert_allclose(-bias_BHTS[0, :, 0, 1], SLOPES[heads], rtol=1e-6)
  np.testing.assert_allclose(-bias_BHTS[0, :, 0, 2], 5 * np.array(SLOPES[heads]), rtol=1e-6)


def test_sinusoids_equal_the_formula():
  positions, width = np.array([[0, 1, 9], [4, 0, 200]]), 6
  embed = jax.jit(lambda positions: sinusoidal().embed(None, positions, width, 256))
  found = np.asarray(embed(positions))
  for b, t, i in np.ndindex(2, 3, width // 2):
    angle = int(positions[b, t]) / 10000 ** (2 * i / width)
    np.testing.assert_allclose(found[b, t, i], math.sin(angle), atol=2e-5)
    np.testing.assert_allclose(found[b, t, width // 2 + i], math.cos(angle), atol=2e-5)


def test_none_has_no_function():
  assert not any(none())


class _Relative(nn.Module):
  """A module that holds the table of relative biases."""

  buckets: int
  max_distance: int
  causal: bool

  @nn.compact
  def __call__(self, q_BT, k_BS):
    scheme = relative(self.buckets, self.max_distance)
    return scheme.bias(self, 2, self.causal)(q_BT, k_BS)


def _bucket(back, buckets, max_distance, causal):
  """The bucket of a key `back` tokens before the query, in exact arithmetic.

  Raffel et al. 2020, section 2.1: of the buckets for one direction, half are for single distances;
  the others have bounds in geometric progression up to `max_distance`; the last has no bound.
  """
  of_direction = buckets if causal else buckets // 2
  distance = max(back, 0) if causal else abs(back)
  behind = 0 if causal or back >= 0 else of_direction
  single = of_direction // 2
  if distance < single:
    return behind + distance
  steps = of_direction - single
  # The number of bounds single * (max_distance / single)^(j / steps) up to the distance.
  grown, ratio = Fraction(distance, single) ** steps, Fraction(max_distance, single)
  return behind + single + sum(ratio**j <= grown for j in range(1, steps))


@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize(('buckets', 'max_distance'), [(32, 128), (8, 20)])
def test_relative_positions_use_the_buckets_of_t5(buckets, max_distance, causal):
  distances = np.arange(-300, 301)
  table = np.outer(np.arange(buckets), [1, -1]).astype(np.float32)
  bias = jax.jit(_Relative(buckets, max_distance, causal).apply)
  found = np.asarray(
    bias({'params': {'relative': table}}, np.array([[300]]), 300 - distances[None])
  )
  assert found.shape == (1, 2, 1, 601) and found.dtype == jnp.float32
  expected = [_bucket(int(d), buckets, max_distance, causal) for d in distances]
  np.testing.assert_array_equal(found[0, 0, 0], expected)
  np.testing.assert_array_equal(found[0, 1, 0], -found[0, 0, 0])


def test_relative_positions_learn_one_bias_per_bucket_and_head():
  module, positions = _Relative(8, 20, True), np.arange(4)[None]
  params = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), positions, positions))['params']
  assert jax.tree.map(jnp.shape, params) == {'relative': (8, 2)}


def test_an_offset_shifts_the_rows_of_the_table():
  class Model(nn.Module):
    offset: int

    @nn.compact
    def __call__(self, positions_BT):
      return learned(offset=self.offset).embed(self, positions_BT, 4, 6)

  table = _random(8, 4)
  positions = np.array([[0, 5, 1]])
  found = Model(2).apply({'params': {'position': table}}, positions)
  np.testing.assert_array_equal(found[0], table[[2, 7, 3]])
