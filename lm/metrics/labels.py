"""Metrics of one prediction per example: a label with its probability, labels, a string, a float.

A perfect score is 1; a perfect error, such as 'mse', is 0.
"""

import collections
import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from lm.errors import UserError, check_choice, check_range, did_you_mean
from lm.metrics.scores import NUMBERS, TAGS, CorpusMetric, Scores, alternatives, higher, validated

AVERAGES = ('macro', 'micro', 'weighted')


def classification(average: str = 'macro', positive: str | None = None) -> CorpusMetric:
  """Returns 'accuracy' and 'f1' of labels, from 0 to 1.

  Args:
    average: how F1 is averaged over classes. 'macro' is the mean over all labels that occur.
      'weighted' weights each label by its number of references. 'micro' pools all classes and
      equals accuracy.
    positive: a label whose F1 is added as 'f1_positive' (the F1 of MRPC and QQP in GLUE).

  Raises:
    UserError: `average` is unknown; or, when the metric is checked or computed, `positive`
      does not occur.
  """
  check_choice('average', average, AVERAGES)

  def score(predictions: Sequence[str], references: Sequence[str]) -> Scores:
    predicted, actual = collections.Counter(predictions), collections.Counter(references)
    correct = collections.Counter(r for p, r in zip(predictions, references, strict=True) if p == r)
    # 2PR / (P + R) = 2 correct / (predicted + actual). The denominator is at least 1.
    f1 = {k: 2 * correct[k] / (predicted[k] + actual[k]) for k in actual | predicted}
    accuracy = correct.total() / len(references)
    mean = {
      'macro': statistics.fmean(f1.values()),
      'micro': accuracy,
      'weighted': sum(f1[k] * actual[k] for k in f1) / len(references),
    }
    values = {'accuracy': accuracy, 'f1': mean[average]}
    if positive is not None:
      check(list(f1))
      values['f1_positive'] = f1[positive]
    return Scores(values)

  def check(labels: Sequence[str]) -> None:
    if positive is not None and positive not in labels:
      known = sorted(set(labels))
      raise UserError(
        f'positive={positive!r} does not occur among the labels{did_you_mean(positive, known)}; '
        f'available: {", ".join(map(repr, known))}'
      )

  names = ('accuracy', 'f1') if positive is None else ('accuracy', 'f1', 'f1_positive')
  each = ('accuracy', lambda prediction, reference: float(prediction == reference))
  kind = (str, 'labels, one per example')
  return validated('classification', CorpusMetric(score, higher(*names), check, each), kind, kind)


def matthews() -> CorpusMetric:
  """Returns 'matthews', the correlation of predicted and true classes, from -1 to 1.

  For two classes it is the correlation of their 0 and 1, the metric of CoLA (Matthews 1975); for
  more it is Gorodkin's R_K (2004). It is 0 if either side has one class.
  """

  def score(predictions: Sequence[str], references: Sequence[str]) -> Scores:
    predicted, actual = collections.Counter(predictions), collections.Counter(references)
    n, correct = len(references), sum(p == r for p, r in zip(predictions, references, strict=True))
    together = sum(count * actual[label] for label, count in predicted.items())
    spread = [n**2 - sum(count**2 for count in side.values()) for side in (predicted, actual)]
    norm = math.sqrt(spread[0] * spread[1])
    return Scores({'matthews': (correct * n - together) / norm if norm else 0.0})

  kind = (str, 'labels, one per example')
  return validated('matthews', CorpusMetric(score, higher('matthews')), kind, kind)


def calibration(bins: int = 15) -> CorpusMetric:
  """Returns 'calibration_error' and 'brier' of the probabilities of labels; 0 is perfect.

  The expected calibration error (Naeini et al. 2015; Guo et al. 2017) is the mean distance between
  accuracy and confidence, the probability of the likeliest label, over bins of equal width,
  weighted by their examples. 'brier' is the mean squared distance to the one-hot vector of the
  label.

  Raises:
    UserError: there is no bin; or, when the metric is computed, a label has no probability.
  """
  check_range('bins', bins, 1)

  def score(predictions: Sequence[Mapping[str, float]], references: Sequence[str]) -> Scores:
    for reference, found in zip(references, predictions, strict=True):
      if reference not in found:
        raise UserError(
          f'calibration: no probability of {reference!r}{did_you_mean(reference, found)}'
        )
    best = [max(found, key=found.__getitem__) for found in predictions]
    p_label, p_best = (
      np.array([found[name] for found, name in zip(predictions, names, strict=True)])
      for names in (references, best)
    )
    correct = np.array([a == b for a, b in zip(best, references, strict=True)])
    bin_of = np.minimum((p_best * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_of, correct - p_best, bins)  # examples times (accuracy - confidence)
    squares = [sum(p * p for p in found.values()) for found in predictions]
    values = {
      'calibration_error': np.abs(gaps).sum() / len(best),
      'brier': np.mean(squares - 2 * p_label + 1),
    }
    return Scores({name: float(value) for name, value in values.items()})

  directions = dict.fromkeys(('calibration_error', 'brier'), False)
  example = ('p_label', lambda prediction, reference: prediction[reference])
  metric = CorpusMetric(score, directions, example_score=example, of='probabilities')
  return validated('calibration', metric, (Mapping, 'probabilities by label'), (str, 'labels'))


def multilabel() -> CorpusMetric:
  """Returns 'micro_f1', 'macro_f1' and 'exact_match' of sets of labels, from 0 to 1.

  Micro F1 pools all labels; macro F1 is the mean over the labels that occur in predictions or
  references. 'exact_match' is the share of examples whose set is entirely right. An F1 with
  denominator 0 is 0.
  """

  def score(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> Scores:
    sides = ([set(names) for names in side] for side in (predictions, references))
    pairs = list(zip(*sides, strict=True))
    found, actual, both = (
      collections.Counter(name for names in sets for name in names)
      for sets in ((p for p, _ in pairs), (r for _, r in pairs), (p & r for p, r in pairs))
    )
    f1 = {k: 2 * both[k] / (found[k] + actual[k]) for k in actual | found}
    count = found.total() + actual.total()
    values = {
      'micro_f1': 2 * both.total() / count if count else 0.0,
      'macro_f1': statistics.fmean(f1.values()) if f1 else 0.0,
      'exact_match': statistics.fmean(p == r for p, r in pairs),
    }
    return Scores(values)

  each = ('exact_match', lambda prediction, reference: float(set(prediction) == set(reference)))
  directions = higher('micro_f1', 'macro_f1', 'exact_match')
  kind = ((list, tuple), 'lists of labels')
  return validated('multilabel', CorpusMetric(score, directions, example_score=each), kind, kind)


def tags(average: str = 'macro') -> CorpusMetric:
  """Returns 'accuracy' and 'f1' of the tags of all words; see `classification`."""
  of_words = classification(average)

  def score(predictions: Sequence[list[str]], references: Sequence[list[str]]) -> Scores:
    predicted, actual = ([tag for s in side for tag in s] for side in (predictions, references))
    return of_words(predicted, actual)

  return validated('tags', CorpusMetric(score, of_words.higher_is_better), TAGS, TAGS)


def exact_match() -> CorpusMetric:
  """Returns 'exact_match', the share of predictions that equal their reference as strings.

  A reference may be a list of strings, one of which must be equal. Nothing is normalized;
  `lm.metrics.answers` normalizes, and is in percent.
  """

  def score(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> Scores:
    pairs = zip(predictions, alternatives(references), strict=True)
    return Scores({'exact_match': statistics.fmean(p in answers for p, answers in pairs)})

  return validated('exact_match', CorpusMetric(score, higher('exact_match')))


def regression() -> CorpusMetric:
  """Returns 'mse', 'r2', 'pearson' and 'spearman' of numbers.

  'r2' is the coefficient of determination: 1 is perfect, 0 equals predicting the mean of the
  references. It is NaN for constant references; a correlation is NaN if either side is constant or
  not finite. Ties share the mean of their ranks.
  """

  def score(predictions: Sequence[float], references: Sequence[float]) -> Scores:
    x, y = np.asarray(predictions, np.float64), np.asarray(references, np.float64)
    mse = float(np.mean((x - y) ** 2))
    r2 = 1 - mse / float(np.var(y)) if np.ptp(y) > 0 else np.nan
    values = {'mse': mse, 'r2': r2, 'pearson': np.nan, 'spearman': np.nan}
    if np.isfinite(x).all() and np.isfinite(y).all():
      values |= {'pearson': _correlation(x, y), 'spearman': _correlation(_ranks(x), _ranks(y))}
    return Scores(values)

  directions = {'mse': False, **higher('r2', 'pearson', 'spearman')}
  return validated('regression', CorpusMetric(score, directions), NUMBERS, NUMBERS)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
  # Constants are detected before subtracting the mean, which may be inexact.
  if np.ptp(x) == 0 or np.ptp(y) == 0:
    return np.nan
  x, y = x - x.mean(), y - y.mean()
  return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def _ranks(x: np.ndarray) -> np.ndarray:
  """Returns the rank of each number, from 1; ties share the mean of their ranks."""
  _, group, count = np.unique(x, return_inverse=True, return_counts=True)
  last = np.cumsum(count)
  return (last - (count - 1) / 2)[group]
