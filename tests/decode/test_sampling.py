import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.decode.sampling import greedy, keep_min_p, keep_top_k, keep_top_p, sampler
from lm.errors import UserError

# Probabilities 0.1, 0.4, 0.2, 0.05, 0.25: in falling order tokens 1, 4, 2, 0, 3.
P = np.array([0.1, 0.4, 0.2, 0.05, 0.25])
LOGITS = jnp.asarray(np.log(P) + 3, jnp.float32)


def _kept(logits):
  kept = np.isfinite(np.asarray(logits))
  np.testing.assert_array_equal(np.asarray(logits)[kept], np.asarray(LOGITS)[kept])
  return set(np.flatnonzero(kept))


@pytest.mark.parametrize(
  ('k', 'kept'), [(1, {1}), (2, {1, 4}), (3, {1, 4, 2}), (5, {0, 1, 2, 3, 4}), (9, {0, 1, 2, 3, 4})]
)
def test_top_k_keeps_the_highest(k, kept):
  assert _kept(keep_top_k(LOGITS, k)) == kept


@pytest.mark.parametrize(
  ('p', 'kept'),
  [(0.0, {1}), (0.39, {1}), (0.41, {1, 4}), (0.64, {1, 4}), (0.66, {1, 2, 4}), (0.96, {*range(5)})],
)
def test_top_p_keeps_the_fewest_that_reach_the_probability(p, kept):
  assert _kept(keep_top_p(LOGITS, p)) == kept


@pytest.mark.parametrize(
  ('p', 'kept'), [(1.0, {1}), (0.63, {1}), (0.6, {1, 4}), (0.3, {1, 4, 2}), (0.1, set(range(5)))]
)
def test_min_p_keeps_tokens_with_a_share_of_the_highest_probability(p, kept):
  assert _kept(keep_min_p(LOGITS, p)) == kept


def test_equal_logits_stay_together():
  tied = jnp.asarray([1.0, 2.0, 2.0, 0.0])
  for filtered in (keep_top_k(tied, 1), keep_top_p(tied, 0.1), keep_min_p(tied, 1.0)):
    assert set(np.flatnonzero(np.isfinite(filtered))) == {1, 2}


def _frequencies(choose, logits=LOGITS, samples=20_000):
  keys = jax.random.split(jax.random.key(0), samples)
  tokens = jax.jit(jax.vmap(choose, in_axes=(None, 0)))(logits, keys)
  return np.bincount(tokens, minlength=len(P)) / samples


def test_tokens_are_sampled_with_their_probabilities():
  # Standard errors of 20,000 samples are below 0.0036.
  np.testing.assert_allclose(_frequencies(sampler()), P, atol=0.015)


def test_temperature_sharpens_before_the_filters():
  # At temperature 1/2 probabilities are squared: the first two have 0.16 and 0.0625 of 0.275.
  squared = P**2 / (P**2).sum()
  assert squared[1] + squared[4] > 0.75 > 0.65 == P[1] + P[4]
  expected = np.where(np.isin(np.arange(5), [1, 4]), squared, 0)
  found = _frequencies(sampler(temperature=0.5, top_p=0.75))
  np.testing.assert_allclose(found, expected / expected.sum(), atol=0.015)


def test_filters_apply_in_order():
  # Of the three highest, with shares 8/17, 5/17 and 4/17, two reach 0.7 and one has 0.6 of the top.
  assert set(np.flatnonzero(_frequencies(sampler(top_k=3, top_p=0.7)))) == {1, 4}
  assert set(np.flatnonzero(_frequencies(sampler(top_k=3, top_p=0.7, min_p=0.7)))) == {1}


def test_temperature_0_is_greedy():
  assert sampler(temperature=0) is greedy
  assert greedy(LOGITS, jax.random.key(0)) == 1


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'temperature': -1}, '--temperature=-1 is not 0 or more'),
    ({'temperature': float('nan')}, '--temperature=nan'),
    ({'top_k': -2}, '--top_k=-2 is not 0 or more'),
    ({'top_p': 1.5}, '--top_p=1.5 is not between 0 and 1'),
    ({'min_p': -0.1}, '--min_p=-0.1 is not between 0 and 1'),
  ],
)
def test_values_out_of_range_raise(fields, message):
  with pytest.raises(UserError) as error:
    sampler(**fields)
  assert message in str(error.value)


def test_equal_arguments_give_one_function():
  """Otherwise each call of a program would compile again."""
  assert sampler(0.7, top_k=3) is sampler(0.7, top_k=3) is not sampler(0.7, top_k=4)
