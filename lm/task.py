"""Tasks and converters: what a model is to do, and how an architecture sees it. No jax here."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lm.errors import UserError

if TYPE_CHECKING:
  from tokenizers import Tokenizer

  from lm.types import Array, Batch, Output

Example = Mapping[str, Any]  # a record of a data source: fields by name
Pieces = Sequence[Mapping[str, np.ndarray]]  # arrays by name for each Features of an example


def as_example(value: Any, key: str) -> Example:
  """Returns `value`, after checking that it is an example.

  Args:
    value: from a source or a preparation step.
    key: the config key of that source or step, such as 'data.source'.

  Raises:
    UserError: the value is no dict.
  """
  if not isinstance(value, Mapping):
    raise UserError(
      f"{key}: an example is {value!r:.60}, not a dict of its fields such as {{'text': ...}}"
    )
  return value


def mismatch(example: Example, field: str, wanted: str, key: str = 'data.source') -> UserError:
  """Returns the error for an example whose field is missing or not of the wanted type."""
  if field in example:
    return UserError(f'{key}: {field!r} of an example is {example[field]!r:.60} and no {wanted}')
  return UserError(
    f'{key}: an example has no {wanted} under {field!r}; it has {", ".join(map(repr, example))}'
  )


def string_field(example: Example, field: str, key: str = 'data.source') -> str:
  """Returns a string of an example; `key` is the config key of its origin, as in `as_example`.

  Raises:
    UserError: the field is missing or has another type.
  """
  text = example.get(field)
  if not isinstance(text, str):
    raise mismatch(example, field, 'string', key)
  return text


def strings_field(example: Example, field: str) -> list[str]:
  """Returns a list of strings of an example.

  Raises:
    UserError: the field is missing or has another type.
  """
  texts = example.get(field)
  if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
    raise mismatch(example, field, 'list of strings')
  return list(texts)


@dataclasses.dataclass(frozen=True)
class Task:
  """What to do with an example, independent of the architecture.

  Attributes:
    inputs: the texts to read. Each part is tokenized separately; a part may be a special token.
    target: the answer as text, for models that generate.
    reference: what predictions are scored against, in the form that the task's scores take.
    head_target: the answer for the head of an encoder: a class name, a number, or a list of spans,
      (start, stop, tag) or (start, stop), in characters of the last part of `inputs`. None if the
      task has no such answer.
    special_tokens: all special tokens that the inputs may contain.
    fields: the fields that a row needs when the answer is not known. A text alone is the value of
      the only field.
    question: returns the example of such a row, for the other functions to read.
  """

  inputs: Callable[[Example], list[str]]
  target: Callable[[Example], str]
  reference: Callable[[Example], Any]
  head_target: Callable[[Example], Any] | None = None
  special_tokens: tuple[str, ...] = ()
  fields: tuple[str, ...] = ('text',)
  question: Callable[[Example], Example] = lambda row: row


class Features(NamedTuple):
  """Model inputs of an example or of a window of its text.

  A row of a packed batch contains several `Features`.

  Attributes:
    tokens: arrays of equal length by name, along the row: inputs, targets, weights and the like. A
      token may have a scalar or an array, such as the patch of an image: (N, ...).
    source: the same for the encoder row of an encoder-decoder.
    values: of the example: a scalar, such as its class, or an array of a fixed shape.
    shortened: called with a number of tokens; returns the indices of the tokens to keep, where the
      policy for long examples truncates. None cuts them from the right.
  """

  tokens: dict[str, np.ndarray]
  source: dict[str, np.ndarray]
  values: dict[str, Any]
  shortened: Callable[[int], np.ndarray] | None = None


Convert = Callable[[Example], list[Features]]


@dataclasses.dataclass(frozen=True)
class Converter:
  """How an architecture sees a task: examples to features, outputs to predictions.

  Generative models have `encode_prompt`; their prediction is the decoded text. Models with a head
  have `inputs`, `predict` and `postprocess` instead.

  Attributes:
    tokenizer_texts: the texts of an example that a tokenizer is trained on.
    features: called with `(tokenizer, labels, seq_len)`; returns the function from an example to
      its features.
    encode_prompt: called with `tokenizer`; returns the function from an example to the features
      before its target.
    inputs: called with `(tokenizer, seq_len)`; returns the function from an example to its features
      without targets. Without it, a model predicts only examples whose targets are known.
    predict: called with `(output, batch)`; returns arrays named as in lm.data.features:
      'tokens/NAME' (B, T, ...) or 'values/NAME' (B, P, ...), where P is the maximum number of
      `Features` in a row.
    postprocess: called with `(labels, example, pieces)`; returns the prediction of an example, as a
      JSON object: its answer and what explains it, such as probabilities. Each piece has the slices
      of the batch and of the arrays of `predict` for one `Features` of the example.
    answer: the key of the answer in a prediction, which scores compare with the reference; 'tags'
      for one tag a word.
    mean_of_logits: whether an ensemble averages logits instead of probabilities, because the head
      gives no distribution over the outputs.
    needs_separator: whether the tokenizer needs the special token between the parts of the inputs.
  """

  tokenizer_texts: Callable[[Example], list[str]]
  features: Callable[['Tokenizer', Sequence[str], int], Convert]
  encode_prompt: Callable[['Tokenizer'], Callable[[Example], Features]] | None = None
  inputs: Callable[['Tokenizer', int], Convert] | None = None
  predict: Callable[['Output', 'Batch'], dict[str, 'Array']] | None = None
  postprocess: Callable[[Sequence[str], Example, Pieces], dict[str, Any]] | None = None
  answer: str = 'text'
  mean_of_logits: bool = False
  needs_separator: bool = True


def stack_feature(name: str, arrays: Sequence[Any]) -> np.ndarray:
  """Returns the values of a feature, one for each array or scalar, in its batch dtype."""
  return concatenate_feature(name, [np.asarray(value)[None] for value in arrays])


def concatenate_feature(name: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
  """Returns the concatenated arrays of a feature in its batch dtype.

  NumPy's own int64 and float64 become int32 and float32, and so do weights; other types stay. The
  types of empty arrays do not count.

  Raises:
    UserError: the arrays are not numeric, differ in shape, or have integers outside int32.
  """
  parts = [np.asarray(array) for array in arrays if len(array)]
  shapes = sorted({part.shape[1:] for part in parts})
  if len(shapes) > 1:
    raise UserError(
      f'data.converter: feature {name!r} has shapes {shapes[0]} and {shapes[1]}; all examples need '
      'the same'
    )
  array = np.concatenate(parts) if parts else np.zeros(0, int)
  if array.dtype.kind not in 'fiub':
    raise UserError(f'data.converter: feature {name!r} has dtype {array.dtype}, not a numeric one')
  if name == 'weights' or array.dtype == np.float64:
    return array.astype(np.float32)
  if array.dtype.itemsize < 8 and array.dtype != np.uint32:
    return array
  limits = np.iinfo(np.int32)
  if array.size and not limits.min <= array.min() <= array.max() <= limits.max:
    raise UserError(
      f'data.converter: feature {name!r} ranges from {array.min()} to {array.max()}, outside int32 '
      f'({limits.min} to {limits.max}); use floats'
    )
  return array.astype(np.int32)
