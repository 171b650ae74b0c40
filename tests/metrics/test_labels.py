import math

import numpy as np
import pytest
import scipy.stats

from lm.errors import UserError
from lm.metrics.answers import squad
from lm.metrics.labels import (
  calibration,
  classification,
  exact_match,
  matthews,
  multilabel,
  regression,
  tags,
)
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


def test_micro_and_macro_f1_are_those_of_scikit_learn():
  sklearn = pytest.importorskip('sklearn.metrics')
  rng = np.random.default_rng(0)
  for size in rng.integers(1, 20, 30):
    sides = rng.random((2, size, 4)) < 0.4
    predictions, references = (
      [[name for name, there in zip('abcd', row, strict=True) if there] for row in side]
      for side in sides
    )
    occurring = np.flatnonzero(sides.any((0, 1))).tolist()
    f1 = {
      average: sklearn.f1_score(
        sides[1], sides[0], labels=occurring, average=average, zero_division=0
      )
      if occurring
      else 0.0
      for average in ('micro', 'macro')
    }
    assert multilabel()(predictions, references).values == {
      'micro_f1': pytest.approx(f1['micro']),
      'macro_f1': pytest.approx(f1['macro']),
      'exact_match': pytest.approx(float((sides[0] == sides[1]).all(1).mean())),
    }


def test_calibration_error_by_hand():
  # Confidences .9, .9 and .6 in two of ten bins; the first two are right once.
  likely, even = {'a': 0.9, 'b': 0.1}, {'a': 0.4, 'b': 0.6}
  found = calibration(bins=10)([likely, likely, even], ['a', 'b', 'b']).values
  assert found == {
    'calibration_error': pytest.approx((2 * abs(0.5 - 0.9) + abs(1 - 0.6)) / 3),
    'brier': pytest.approx((2 * 0.1**2 + 2 * 0.9**2 + 2 * 0.4**2) / 3),
  }
  assert calibration().of == 'probabilities'


def test_calibration_error_is_near_zero_for_labels_sampled_from_their_probabilities():
  rng = np.random.default_rng(0)
  p = rng.dirichlet([1.0, 1.0, 1.0], 20000)
  sampled = ['abc'[i] for i in (rng.random((20000, 1)) > p.cumsum(1)[:, :2]).sum(1)]
  found = [dict(zip('abc', row, strict=True)) for row in p.tolist()]
  assert calibration()(found, sampled).values['calibration_error'] < 0.015
  sharper = [{k: v**3 for k, v in row.items()} for row in found]
  sharper = [{k: v / sum(row.values()) for k, v in row.items()} for row in sharper]
  assert calibration()(sharper, sampled).values['calibration_error'] > 0.1
  from lm.evaluation.calibration import fit_temperature, rescale

  assert fit_temperature(sharper, sampled) == pytest.approx(3, rel=0.05)
  assert rescale(sharper[0], 3.0) == pytest.approx(found[0], rel=1e-6)


def test_calibration_refuses_an_unknown_label():
  with pytest.raises(UserError, match="calibration: no probability of 'c'"):
    calibration()([{'a': 1.0}], ['c'])
