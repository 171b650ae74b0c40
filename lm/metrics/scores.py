"""Corpus metrics: scores of all predictions of a set against its references, on the host.

`lm.types.Metric` sums terms over examples on the device. BLEU and entity F1 are not means over
examples. They need all decoded predictions of a set, with one reference for each prediction:

    metric(predictions, references) -> Scores

A config names the builder of a metric by import path, with literal arguments, as in
'lm.metrics.translation:bleu(language="de")'. The docstring of each metric says whether 1
or 100 is perfect.
"""

import dataclasses
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm.errors import UserError

# The types of predictions or references, and their name in errors.
Kind = tuple[type | tuple[type, ...], str]
TEXTS: Kind = (str, 'texts')
TAGS: Kind = ((list, tuple), 'lists of tags')
NUMBERS: Kind = (numbers.Real, 'numbers')
ANY: Kind = (object, 'anything')


@dataclasses.dataclass(frozen=True)
class Scores:
  """Named values of a corpus metric, with notes by the same names, such as sacrebleu signatures."""

  values: dict[str, float]
  notes: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class CorpusMetric:
  """A function `(predictions, references) -> Scores` and its properties.

  Attributes:
    score: the function.
    higher_is_better: the direction of each value; None for a value without a direction.
    check: takes the references of a set; raises the UserError that `score` would raise for them.
    example_score: a score of one example, by which examples are sorted: its name, and a function
      `(prediction, reference) -> float`. The default is the F1 of `score`, or its first value if it
      has no F1.
    of: the key of the part of a prediction that is scored; '' for its answer.
  """

  score: Callable[[Sequence[Any], Sequence[Any]], Scores]
  higher_is_better: Mapping[str, bool | None]
  check: Callable[[Sequence[Any]], object] = lambda references: None
  example_score: tuple[str, Callable[[Any, Any], float]] | None = None
  of: str = ''

  def scored(self, predictions: Any) -> Sequence[Any]:
    """Returns the parts that are scored of `lm.evaluation.predict.Predictions`.

    Raises:
      UserError: the predictions lack such a part.
    """
    if not self.of:
      return predictions.outputs
    for prediction in predictions.full:
      if self.of not in prediction:
        raise UserError(
          f'eval.sets.NAME.scores: a metric scores {self.of!r}, and the predictions of this task '
          f'have {", ".join(map(repr, prediction))}'
        )
    return [prediction[self.of] for prediction in predictions.full]

  def __call__(self, predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    return self.score(predictions, references)

  def score_examples(
    self, predictions: Sequence[Any], references: Sequence[Any]
  ) -> tuple[str, list[float]]:
    """Returns the name of the example score, and its value for each example."""
    pairs = list(zip(predictions, references, strict=True))
    if self.example_score is not None:
      name, function = self.example_score
      return name, [function(*pair) for pair in pairs]
    scores = [self.score([prediction], [reference]).values for prediction, reference in pairs]
    name = 'f1' if 'f1' in scores[0] else next(iter(scores[0]))
    return name, [values[name] for values in scores]


def validated(
  name: str,
  metric: CorpusMetric,
  predictions: Kind = ANY,
  references: Kind = ANY,
) -> CorpusMetric:
  """Returns a metric that checks the number and the types of its arguments first.

  `score` raises UserError for an empty set or a wrong type, and ValueError for unequal lengths.
  """

  def score(outputs: Sequence[Any], targets: Sequence[Any]) -> Scores:
    if len(outputs) != len(targets):
      raise ValueError(f'{name}: {len(outputs)} predictions for {len(targets)} references')
    if not len(targets):
      raise UserError(f'{name}: metric on an empty set; it needs at least one example')
    _check_kind(name, outputs, predictions)
    _check_kind(name, targets, references)
    return metric.score(outputs, targets)

  def check(actual: Sequence[Any]) -> None:
    _check_kind(name, actual, references)
    metric.check(actual)

  return dataclasses.replace(metric, score=score, check=check)


def alternatives(references: Sequence[str | Sequence[str]]) -> list[list[str]]:
  """Returns the references of each example as a list; a string is a list of one."""
  return [[one] if isinstance(one, str) else list(one) for one in references]


def higher(*names: str) -> dict[str, bool | None]:
  """Returns the directions of values that are all better when higher."""
  return dict.fromkeys(names, True)


def _check_kind(name: str, values: Sequence[Any], kind: Kind) -> None:
  for value in values:
    if not isinstance(value, kind[0]) or (kind is NUMBERS and isinstance(value, bool)):
      raise UserError(
        f'{name}: it scores {kind[1]}, not {value!r:.60} as in this task; use another metric in '
        'eval.sets.NAME.scores'
      )
