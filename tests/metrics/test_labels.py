import math

import numpy as np
import pytest
import scipy.stats

from lm.errors import UserError
from lm.metrics.answers import squad
from lm.metrics.labels import classification, exact_match, matthews, regression, tags
from lm.metrics.spans import entities
from lm.metrics.translation import bleu


def test_classification_by_hand():
  # a: 1 right of 2 predicted and 2 actual; b: 1 of 2 and 1; c: 0 of 0 and 1.
  scores = classification(positive='b')(['a', 'a', 'b', 'b'], ['a', 'c', 'b', 'a'])
  assert scores.values == {
    'accuracy': 0.5,
    'f1': pytest.approx((1 / 2 + 2 / 3 + 0) / 3),
    'f1_positive': pytest.approx(2 / 3),
  }


@pytest.mark.parametrize('average', ['macro', 'micro', 'weighted'])
@pytest.mark.parametrize('labels', ['01', 'abcde'])
def test_f1_is_that_of_scikit_learn(average, labels):
  sklearn = pytest.importorskip('sklearn.metrics')
  rng = np.random.default_rng(0)
  for size in rng.integers(1, 40, 50):
    predictions, references = rng.choice(list(labels), (2, size)).tolist()
    found = classification(average)(predictions, references).values
    assert found == {
      'accuracy': pytest.approx(sklearn.accuracy_score(references, predictions)),
      'f1': pytest.approx(
        sklearn.f1_score(references, predictions, average=average, zero_division=0)
      ),
    }


@pytest.mark.parametrize('labels', ['01', 'abcde'])
def test_matthews_is_the_correlation_of_classes(labels):
  rng = np.random.default_rng(0)
  for size in rng.integers(2, 40, 50):
    predictions, references = rng.choice(list(labels), (2, size))
    found = matthews()(predictions.tolist(), references.tolist()).values['matthews']
    # The covariances of indicators, summed over the classes.
    x, y = ((side[:, None] == list(labels)) - 0.0 for side in (predictions, references))
    x, y = x - x.mean(0), y - y.mean(0)
    norm = math.sqrt((x * x).sum() * (y * y).sum())
    assert found == pytest.approx((x * y).sum() / norm if norm else 0.0)
    if len(labels) == 2 and norm:
      assert found == pytest.approx(np.corrcoef(x[:, 0], y[:, 0])[0, 1])


def test_wrong_average_or_positive_label_is_refused():
  with pytest.raises(UserError, match=r"average='marco'.*did you mean 'macro'"):
    classification('marco')
  with pytest.raises(UserError, match=r"positive='Yes' does not occur.*available: 'no', 'yes'"):
    classification(positive='Yes')(['yes', 'no'], ['no', 'no'])


def test_tags_pool_all_words():
  values = tags()([['A', 'B', 'A'], ['B']], [['A', 'B', 'B'], ['B']]).values
  # A: 1 of 2 predicted and 1 of 1 there, 2/3; B: 2 of 2 and 2 of 3, 4/5.
  assert values == {'accuracy': 0.75, 'f1': pytest.approx((2 / 3 + 4 / 5) / 2)}


def test_exact_match_is_the_share_of_equal_strings():
  predictions = ['a b', 'A', 'x', 'y']
  assert exact_match()(predictions, ['a b', 'a', ['z', 'x'], []]).values == {'exact_match': 0.5}


def test_regression_by_hand():
  found = regression()([1, 1, 2, 3], [1, 2, 3, 5]).values
  # Deviations (-3, -3, 1, 5) / 4 and (-7, -3, 1, 9) / 4; of the ranks (1.5, 1.5, 3, 4) and
  # (1, 2, 3, 4) they are (-1, -1, 0.5, 1.5) and (-1.5, -0.5, 0.5, 1.5).
  assert found == {
    'mse': 6 / 4,
    'r2': pytest.approx(
      1 - 6 / (140 / 16)
    ),  # squares of the references' deviations add up to 140/16
    'pearson': pytest.approx(76 / math.sqrt(44 * 140)),
    'spearman': pytest.approx(4.5 / math.sqrt(4.5 * 5)),
  }


def test_correlations_are_those_of_scipy():
  rng = np.random.default_rng(0)
  for size in rng.integers(3, 40, 50):
    x = rng.integers(0, 9, size) + 0.1  # with ties
    y = x + rng.normal(0, 3, size)
    if np.ptp(x):
      found = regression()(x.tolist(), y.tolist()).values
      assert found['pearson'] == pytest.approx(scipy.stats.pearsonr(x, y).statistic)
      assert found['spearman'] == pytest.approx(scipy.stats.spearmanr(x, y).statistic)


@pytest.mark.parametrize('predictions', [[0.1, 0.1, 0.1], [1, math.nan, 2]])
def test_correlation_of_constant_or_infinite_predictions_is_nan(predictions):
  found = regression()(predictions, [1, 2, 3]).values
  assert math.isnan(found['pearson']) and math.isnan(found['spearman'])
  assert math.isnan(found['mse']) == math.isnan(sum(predictions))


def test_predicting_the_mean_has_r2_0():
  assert regression()([2, 2, 2], [1, 2, 3]).values['r2'] == 0
  assert regression()([1, 2, 3], [1, 2, 3]).values['r2'] == 1
  assert math.isnan(regression()([1, 2, 3], [2, 2, 2]).values['r2'])


@pytest.mark.parametrize('metric', [classification(), exact_match(), regression()])
def test_empty_set_is_refused(metric):
  with pytest.raises(UserError, match='metric on an empty set'):
    metric([], [])
  with pytest.raises(ValueError, match='1 predictions for 2 references'):
    metric(['a'], ['a', 'b'])


@pytest.mark.parametrize(
  ('metric', 'values', 'message'),
  [
    (regression(), ['good', 'bad'], "regression: it scores numbers, not 'good'"),
    (classification(), [['O'], ['B-PER']], r"classification: it scores labels, .* not \['O'\]"),
    (tags(), ['good', 'bad'], "tags: it scores lists of tags, not 'good'"),
    (entities(), ['good', 'bad'], "entities: it scores lists of tags, not 'good'"),
    (bleu(language='en'), [['O'], ['O']], r"bleu: it scores texts, not \['O'\]"),
    (squad(), [1.5, 2.5], 'squad: it scores texts, not 1.5'),
  ],
)
def test_wrong_types_are_refused(metric, values, message):
  with pytest.raises(UserError, match=message):
    metric(values, values)
