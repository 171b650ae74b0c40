"""Corpus metrics: pure functions of all predictions and references of a set, on the host.

`lm.types.Metric` adds up terms over examples on the device. BLEU and entity F1 are no means of that
kind: they are found from the decoded predictions of a whole set,

    metric(predictions, references) -> Scores

where the i-th prediction answers the i-th reference. A config names the builder of a metric by
import path, with literal arguments, as in 'lm.metrics.translation:bleu(language="de")'. The builder
returns a `CorpusMetric`: the function, with the names of its values and their directions.
Units are those of each metric's own field; its docstring says whether 1 or 100 is perfect.
"""

import dataclasses
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Scores:
  """What a corpus metric finds: named values, and by the same names what to know about them."""

  values: dict[str, float]
  notes: dict[str, str] = dataclasses.field(default_factory=dict)  # such as sacrebleu signatures


@dataclasses.dataclass(frozen=True)
class CorpusMetric:
  """A function `(predictions, references) -> Scores`, and what is known before there are any.

  Attributes:
    score: the function.
    higher_is_better: the name of each value, and whether its highest is the best; None where no
      value is better.
    check: takes the references of a set and raises the UserError that `score` would for their sake.
  """

  score: Callable[[Sequence[Any], Sequence[Any]], Scores]
  higher_is_better: Mapping[str, bool | None]
  check: Callable[[Sequence[Any]], object] = lambda references: None

  def __call__(self, predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    return self.score(predictions, references)


def check_sizes(name: str, predictions: Sequence, references: Sequence) -> None:
  """Checks that there is something to score, and as many predictions as references.

  Raises:
    UserError: both are empty.
    ValueError: their lengths differ.
  """
  if len(predictions) != len(references):
    raise ValueError(f'{name}: {len(predictions)} predictions for {len(references)} references')
  if not len(references):
    raise UserError(f'{name}: metric on an empty set; it needs at least one example')


def check_kind(name: str, values: Sequence, kind: type, wanted: str) -> None:
  """Raises UserError where predictions or references are of another kind than a metric scores.

  Args:
    name: of the metric.
    values: what it is given.
    kind: the type of each; lists and tuples are one kind, and so are all numbers.
    wanted: what that is to people.
  """
  for value in values:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    listed = isinstance(value, list | tuple)
    if not {float: number, list: listed}.get(kind, isinstance(value, kind)):
      raise UserError(
        f'{name}: it scores {wanted}, and this task has {value!r:.60}; take another metric in '
        'eval.sets.NAME.scores'
      )


def alternatives(references: Sequence[str | Sequence[str]]) -> list[list[str]]:
  """Returns the references of each example as a list, where an example may have just one string."""
  return [[one] if isinstance(one, str) else list(one) for one in references]
