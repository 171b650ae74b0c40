"""Distinct n-grams and repetition, counted by hand."""

import pytest

from lm.errors import UserError
from lm.metrics.diversity import diversity


def test_values_of_small_texts():
  texts = ['a b a b a b', 'c d e f']
  values = diversity(repeated=2).score(texts, ['a', 'a']).values
  assert values['distinct_1'] == pytest.approx(6 / 10)
  assert values['distinct_2'] == pytest.approx(5 / 8)  # ab, ba; cd, de, ef
  assert values['repetition'] == pytest.approx(((1 - 2 / 5) + 0) / 2)
  assert values['reference_distinct_1'] == pytest.approx(1 / 2)
  assert values['reference_repetition'] == 0


def test_characters_of_chinese():
  values = diversity(unit='character', sizes=(1,), repeated=1).score(['好 好好'], ['好天']).values
  assert values['distinct_1'] == pytest.approx(1 / 3)
  assert values['repetition'] == pytest.approx(2 / 3)
  assert values['reference_distinct_1'] == 1


@pytest.mark.parametrize(
  'arguments', [{'unit': 'letter'}, {'sizes': (0,)}, {'sizes': 2}, {'repeated': 0}]
)
def test_wrong_arguments(arguments):
  with pytest.raises(UserError):
    diversity(**arguments)
