"""Metrics of one prediction per example: a label, a string, a number.

A perfect score is 1; a perfect 'mse' is 0.
"""

import collections
import math
import statistics
from collections.abc import Sequence

import numpy as np

from lm.errors import UserError, check_choice, did_you_mean
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
