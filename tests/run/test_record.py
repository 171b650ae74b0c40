import pytest

from lm.metrics.labels import regression
from lm.run.record import more_is_better


def test_of_correlations_the_highest_is_best():
  values = regression()([1.0, 2.0, 4.0], [1.0, 2.0, 3.0]).values
  best = {name for name in values if more_is_better(f'eval/validation/{name}')}
  assert best == {'r2', 'pearson', 'spearman'}


@pytest.mark.parametrize(
  ('name', 'expected'),
  [('eval/test/bleu', True), ('eval/test/ter', False), ('eval/test/loss', False)],
)
def test_the_last_part_of_a_name_tells_the_direction(name, expected):
  assert more_is_better(name) is expected
