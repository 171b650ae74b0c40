"""Diversity of generated texts: distinct n-grams, and repetition within a text.

Units are the words of a text between spaces, or its characters. The references do not matter.
"""

import collections
import itertools
from collections.abc import Sequence

from lm.errors import UserError, check_choice, check_range
from lm.metrics.scores import TEXTS, CorpusMetric, Scores, validated

_UNITS = ('word', 'character')


def diversity(
  unit: str = 'word', sizes: tuple[int, ...] = (1, 2), repeated: int = 4
) -> CorpusMetric:
  """Returns distinct n-grams and repetition, both from 0 to 1.

  `distinct_N` is the count of distinct n-grams over the count of all n-grams of the corpus (Li et
  al. 2016, section 5.2). `repetition` is 1 minus the same ratio of n-grams within a text, a mean
  over texts (seq-rep-4, Welleck et al. 2020, section 6.1); shorter texts have none. `references`
  are measured alike, as `reference_distinct_N` and `reference_repetition`.

  Args:
    unit: 'word', or 'character' for Chinese.
    sizes: the N of distinct n-grams.
    repeated: the N of repetition.

  Raises:
    UserError: an argument is out of its range.
  """
  check_choice('unit', unit, _UNITS)
  if not isinstance(sizes, tuple | list):
    raise UserError(f'diversity: sizes={sizes!r} must be a tuple, such as (1, 2)')
  for size in (*sizes, repeated):
    check_range('n-grams', size, 1, 100)

  def measured(texts: Sequence[str], prefix: str) -> dict[str, float]:
    units = [text.split() if unit == 'word' else text.replace(' ', '') for text in texts]
    values = {}
    for size in sizes:
      counts = collections.Counter(gram for text in units for gram in _grams(text, size))
      values[f'{prefix}distinct_{size}'] = len(counts) / max(counts.total(), 1)
    grams = [[*_grams(text, repeated)] for text in units]
    shares = [1 - len(set(of_text)) / len(of_text) for of_text in grams if of_text]
    values[f'{prefix}repetition'] = sum(shares) / max(len(shares), 1)
    return values

  def score(predictions: Sequence[str], references: Sequence[str]) -> Scores:
    return Scores(measured(predictions, '') | measured(references, 'reference_'))

  directions = {name: None if 'reference' in name else True for name in score([], []).values}
  metric = CorpusMetric(score, directions | {'repetition': False})
  return validated('diversity', metric, TEXTS, TEXTS)


def _grams(units: Sequence[str], size: int) -> zip:
  return zip(*(itertools.islice(units, i, None) for i in range(size)), strict=False)
