"""The candidate of least risk against every pair counted by hand."""

import numpy as np
import pytest

from lm.decode.mbr import mbr_rank
from lm.metrics.translation import sentence_chrf


def _by_brute_force(candidates, utility):
  means = {}
  for i, one in enumerate(candidates):
    others = candidates[:i] + candidates[i + 1 :]
    means[one] = np.mean([utility(one, other) for other in others])
  return sorted(means.items(), key=lambda pair: -pair[1])


@pytest.mark.parametrize('seed', range(5))
def test_candidates_are_ranked_by_their_mean_utility_against_the_others(seed):
  rng = np.random.default_rng(seed)
  candidates = [str(text) for text in rng.choice([*'abcdefghij'], 12)]  # some are there twice
  table = {(one, other): rng.random() for one in candidates for other in candidates}
  found = mbr_rank(candidates, lambda text, reference: table[text, reference])
  expected = _by_brute_force(candidates, lambda text, reference: table[text, reference])
  assert [text for text, _ in found] == [text for text, _ in expected]
  np.testing.assert_allclose([u for _, u in found], [u for _, u in expected])


def test_a_repeated_sample_is_its_own_reference():
  def same(text, reference):
    return float(text == reference)

  assert mbr_rank(['x', 'y', 'z', 'y'], same) == [('y', 1 / 3), ('x', 0.0), ('z', 0.0)]
  assert mbr_rank(['x', 'x'], same) == mbr_rank(['x'], same) == [('x', 1.0)]


def test_a_central_text_has_less_risk_than_the_first():
  candidates = ['a man on a horse', 'a man rides a horse', 'a man rides a brown horse', 'no']
  assert mbr_rank(candidates, sentence_chrf())[0][0] == 'a man rides a horse'
  assert sentence_chrf()('', '') == sentence_chrf()('a', 'a') == 100
