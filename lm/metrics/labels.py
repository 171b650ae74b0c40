"""Metrics of one prediction an example: a label, a string, a number. A share of 1 is perfect."""

import collections
import itertools
import math
import statistics
from collections.abc import Sequence

import numpy as np

from lm.errors import UserError, did_you_mean
from lm.metrics.scores import CorpusMetric, Scores, alternatives, check_kind, check_sizes

AVERAGES = ('macro', 'micro', 'weighted')


def classification(average: str = 'macro', positive: str | None = None) -> CorpusMetric:
  """Returns 'accuracy' and 'f1' of labels, as shares.

  Args:
    average: how the F1 of classes becomes one value. 'macro' is their mean over all labels that
      occur, 'weighted' weighs each by its references, 'micro' counts all as one, which is accuracy.
    positive: a label whose own F1 is wanted too, as 'f1_positive' (the F1 of MRPC and QQP in GLUE).

  Raises:
    UserError: `average` is none of these; or, from the metric, nothing is labelled `positive`.
  """
  if average not in AVERAGES:
    known = ', '.join(AVERAGES)
    raise UserError(f'average={average!r}: it is one of {known}{did_you_mean(average, AVERAGES)}')

  def metric(predictions: Sequence[str], references: Sequence[str]) -> Scores:
    check_sizes('classification', predictions, references)
    check_kind('classification', [*predictions, *references], str, 'labels, one an example')
    predicted, actual = collections.Counter(predictions), collections.Counter(references)
    correct = collections.Counter(r for p, r in zip(predictions, references, strict=True) if p == r)
    # 2PR / (P + R) = 2 correct / (predicted + actual), and no label of these has neither.
    f1 = {k: 2 * correct[k] / (predicted[k] + actual[k]) for k in actual | predicted}
    accuracy = correct.total() / len(references)
    mean = {
      'macro': statistics.fmean(f1.values()),
      'micro': accuracy,
      'weighted': sum(f1[k] * actual[k] for k in f1) / len(references),
    }
    values = {'accuracy': accuracy, 'f1': mean[average]}
    if positive is not None:
      if positive not in f1:
        known = ', '.join(map(repr, sorted(f1)))
        raise UserError(
          f'positive={positive!r} is no label of the set{did_you_mean(positive, f1)}; '
          f'available: {known}'
        )
      values['f1_positive'] = f1[positive]
    return Scores(values)

  def check(references: Sequence[str]) -> None:
    check_kind('classification', references, str, 'labels, one an example')
    if positive is not None and positive not in references:
      known = sorted(set(references))
      listed = ', '.join(map(repr, known))
      raise UserError(
        f'positive={positive!r} is no label of the set{did_you_mean(positive, known)}; '
        f'available: {listed}'
      )

  directions = {'accuracy': True, 'f1': True}
  directions |= {} if positive is None else {'f1_positive': True}
  return CorpusMetric(metric, directions, check)


def tags(average: str = 'macro') -> CorpusMetric:
  """Returns 'accuracy' and 'f1' of the tags of all words; see `classification`."""
  of_words = classification(average)

  def metric(predictions: Sequence[list[str]], references: Sequence[list[str]]) -> Scores:
    check_sizes('tags', predictions, references)
    check_kind('tags', [*predictions, *references], list, 'lists of tags')
    flat = itertools.chain.from_iterable
    predicted, actual = list(flat(predictions)), list(flat(references))
    check_sizes('tags', predicted, actual)
    return of_words(predicted, actual)

  def check(references: Sequence[list[str]]) -> None:
    check_kind('tags', references, list, 'lists of tags')

  return CorpusMetric(metric, of_words.higher_is_better, check)


def exact_match() -> CorpusMetric:
  """Returns 'exact_match', the share of predictions that equal their reference, as strings.

  A reference may be a list of strings: one of them has to be equal. Nothing is normalised, and the
  value is a share of 1; `lm.metrics.answers` normalises and gives percent.
  """

  def metric(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> Scores:
    check_sizes('exact_match', predictions, references)
    pairs = zip(predictions, alternatives(references), strict=True)
    return Scores({'exact_match': statistics.fmean(p in its for p, its in pairs)})

  return CorpusMetric(metric, {'exact_match': True})


def regression() -> CorpusMetric:
  """Returns 'mse', 'r2', 'pearson' and 'spearman' of numbers.

  'r2' is the coefficient of determination: 1 is perfect, 0 is what the mean of the references has
  when it is predicted every time, and less is worse. It is not a number (NaN) where the references
  are constant, nor is a correlation where either side is constant or not finite. Tied numbers have
  the mean of their ranks.
  """

  def metric(predictions: Sequence[float], references: Sequence[float]) -> Scores:
    check_sizes('regression', predictions, references)
    check_kind('regression', [*predictions, *references], float, 'numbers')
    x, y = np.asarray(predictions, np.float64), np.asarray(references, np.float64)
    mse = float(np.mean((x - y) ** 2))
    r2 = 1 - mse / float(np.var(y)) if np.ptp(y) > 0 else math.nan
    values = {'mse': mse, 'r2': r2, 'pearson': math.nan, 'spearman': math.nan}
    if np.isfinite(x).all() and np.isfinite(y).all():
      values |= {'pearson': _correlation(x, y), 'spearman': _correlation(_ranks(x), _ranks(y))}
    return Scores(values)

  def check(references: Sequence[float]) -> None:
    check_kind('regression', references, float, 'numbers')

  directions = {'mse': False, 'r2': True, 'pearson': True, 'spearman': True}
  return CorpusMetric(metric, directions, check)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
  # Constant numbers are found before their mean, which need not be exact, is taken off.
  if np.ptp(x) == 0 or np.ptp(y) == 0:
    return math.nan
  x, y = x - x.mean(), y - y.mean()
  return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def _ranks(x: np.ndarray) -> np.ndarray:
  """Returns the rank of each number, from 1; equal ones share the mean of their ranks."""
  _, group, count = np.unique(x, return_inverse=True, return_counts=True)
  last = np.cumsum(count)
  return (last - (count - 1) / 2)[group]
