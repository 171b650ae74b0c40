"""What a task is, and how an architecture does it. Imports no jax: preparation reads this alone."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lm.errors import UserError

if TYPE_CHECKING:
  import tokenizers

  from lm.types import Array, Batch, Output

Example = Mapping[str, Any]  # what a data source holds, by name


def as_example(value: Any, key: str) -> Example:
  """Returns an example that `key` produced, after checking its type.

  Raises:
    UserError: it is no dict.
  """
  if not isinstance(value, Mapping):
    raise UserError(
      f"{key}: an example is {value!r:.60}, not a dict of its fields such as {{'text': ...}}"
    )
  return value


def mismatch(example: Example, field: str, wanted: str, key: str = 'data.source') -> UserError:
  """Returns the error that an example has not what is wanted, such as 'string', under a name."""
  if field in example:
    return UserError(f'{key}: {field!r} of an example is {example[field]!r:.60} and no {wanted}')
  there = ', '.join(map(repr, example))
  return UserError(f'{key}: an example has no {wanted} under {field!r}; it has {there}')


@dataclasses.dataclass(frozen=True)
class Task:
  """What is to be done with an example, whatever architecture does it.

  Texts to read come in parts, which are tokenised one by one; a part may be a special token of the
  task, and `specials` are all that there are. `answer` is what a head of an encoder finds: a class
  by name, a number, or a list of (start, stop, tag) or (start, stop) in characters of the last
  part. `target` is the same in words, for models that write. `reference` is what a prediction is
  compared with, in the form that the corpus metrics of the task take.
  """

  inputs: Callable[[Example], list[str]]
  target: Callable[[Example], str]
  reference: Callable[[Example], Any]
  answer: Callable[[Example], Any] | None = None
  specials: tuple[str, ...] = ()


class Features(NamedTuple):
  """An example, or a part of one, as a model reads it; several of them share a row of a batch.

  Attributes:
    tokens: arrays of one length by name, laid along the row: inputs and what goes with them.
    source: likewise for the row of an encoder, where there is a second one.
    values: one number each for the whole example, such as its class.
  """

  tokens: dict[str, np.ndarray]
  source: dict[str, np.ndarray]
  values: dict[str, float]


def narrow(name: str, values: Any) -> np.ndarray:
  """Returns an array of a feature in the type that it has in a batch, int32 or float32.

  Weights are float32, whatever a converter makes them of.

  Raises:
    UserError: the values are no numbers, or integers that int32 cannot hold.
  """
  array = np.asarray(values)
  if name == 'weights' or array.dtype.kind == 'f':
    if array.dtype.kind not in 'fiub':
      raise UserError(f'data.convert: {name!r} of a feature holds {array.dtype} and no numbers')
    return array.astype(np.float32)
  if array.dtype.kind not in 'iub' and array.size:
    raise UserError(f'data.convert: {name!r} of a feature holds {array.dtype} and no numbers')
  limits = np.iinfo(np.int32)
  if array.size and not limits.min <= array.min() <= array.max() <= limits.max:
    raise UserError(
      f'data.convert: {name!r} of a feature holds {array.min()} to {array.max()}, and a batch '
      f'holds integers of {limits.min} to {limits.max}; give them as floats'
    )
  return array.astype(np.int32)


def joined(name: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
  """Returns arrays of one field one after another, as `narrow` does; empty ones have no type."""
  parts = [np.asarray(array) for array in arrays if len(array)]
  return narrow(name, np.concatenate(parts) if parts else np.zeros(0, int))


@dataclasses.dataclass(frozen=True)
class Converter:
  """How an architecture does a task: from examples to features, and from outputs to predictions.

  `texts(example)` is what a tokenizer is trained on. `features(tokenizer, labels, context)` returns
  the function from an example to its features.

  For models that write, `prompt(tokenizer)` returns the function from an example to the features of
  what is there before the first token of its target; a prediction is the text decoded from there.
  For others `predict(output, batch)` returns arrays by place as in lm.data.features ('tokens/NAME',
  (B, T, ...), or 'values/NAME', (B, P, ...)), and `read(labels, example, pieces)` makes the
  prediction for an example from the parts of those arrays and of the batch that belong to its
  features, one dict for each of these.
  """

  texts: Callable[[Example], list[str]]
  features: Callable[
    ['tokenizers.Tokenizer', Sequence[str], int], Callable[[Example], list[Features]]
  ]
  prompt: Callable[['tokenizers.Tokenizer'], Callable[[Example], Features]] | None = None
  predict: Callable[['Output', 'Batch'], dict[str, 'Array']] | None = None
  read: Callable[[Sequence[str], Example, list[dict[str, np.ndarray]]], Any] | None = None
