import math

import jax.numpy as jnp
import numpy as np
import pytest

from lm.nn.position import alibi, none, rope, sinusoidal


def _random(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(0, 1, shape), jnp.float32)


def test_rope_turns_a_pair_by_its_position():
  x_BTHK = jnp.asarray([[[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 2.0]]]])  # one pair, frequency 1
  turned = rope().rotate(x_BTHK, jnp.asarray([[0, 2, 5]]))
  expected = [[1, 0], [math.cos(2), math.sin(2)], [-2 * math.sin(5), 2 * math.cos(5)]]
  np.testing.assert_allclose(turned[0, :, 0], expected, atol=1e-6)


def test_rope_pairs_the_halves_with_falling_frequencies():
  # K = 4 and theta = 100: pairs (0, 2) and (1, 3) turn by position and by position / 10.
  x_BTHK = jnp.asarray([[[[1.0, 1.0, 0.0, 0.0]]]])
  turned = rope(theta=100.0).rotate(x_BTHK, jnp.asarray([[3]]))
  expected = [math.cos(3), math.cos(0.3), math.sin(3), math.sin(0.3)]
  np.testing.assert_allclose(turned[0, 0, 0], expected, atol=1e-6)


def test_rope_scores_depend_on_the_distance_alone():
  q, k = _random(1, 1, 3, 8), _random(1, 1, 3, 8, seed=1)
  rotate = rope().rotate

  def scores(q_position, k_position):
    q_at, k_at = rotate(q, jnp.asarray([[q_position]])), rotate(k, jnp.asarray([[k_position]]))
    return np.asarray(jnp.sum(q_at * k_at, axis=-1))

  np.testing.assert_allclose(scores(7, 3), scores(104, 100), atol=2e-5)
  assert np.abs(scores(7, 3) - scores(8, 3)).max() > 1e-2


def test_rope_keeps_lengths_and_types():
  x = _random(2, 5, 3, 8)
  positions = jnp.broadcast_to(jnp.arange(5), (2, 5))
  turned = rope().rotate(x, positions)
  np.testing.assert_allclose(
    jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5
  )
  assert rope().rotate(x.astype(jnp.bfloat16), positions).dtype == jnp.bfloat16


# Press et al. 2022, section 3: 1/2, 1/4, ..., 1/256 for 8 heads; their published code gives 12
# heads those of 8 and the first, third, fifth and seventh of 16.
SLOPES = {
  8: [2**-h for h in range(1, 9)],
  12: [2**-h for h in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5],
  1: [2**-8],
}


@pytest.mark.parametrize('heads', SLOPES)
def test_alibi_slopes_are_those_of_the_paper(heads):
  bias_BHTS = alibi().bias(None, heads, True)(jnp.asarray([[5]]), jnp.asarray([[5, 4, 0]]))
  assert bias_BHTS.shape == (1, heads, 1, 3)
  np.testing.assert_allclose(-bias_BHTS[0, :, 0, 0], np.zeros(heads))
  np.testing.assert_allclose(-bias_BHTS[0, :, 0, 1], SLOPES[heads], rtol=1e-6)
  np.testing.assert_allclose(-bias_BHTS[0, :, 0, 2], 5 * np.array(SLOPES[heads]), rtol=1e-6)


def test_sinusoids_are_the_formula():
  positions, width = jnp.asarray([[0, 1, 9], [4, 0, 200]]), 6
  found = sinusoidal().embed(None, positions, width, 256)
  for b, t, i in np.ndindex(2, 3, width // 2):
    angle = int(positions[b, t]) / 10000 ** (2 * i / width)
    np.testing.assert_allclose(found[b, t, i], math.sin(angle), atol=2e-5)
    np.testing.assert_allclose(found[b, t, width // 2 + i], math.cos(angle), atol=2e-5)


def test_no_positions_act_nowhere():
  assert none() == (None, None, None)
