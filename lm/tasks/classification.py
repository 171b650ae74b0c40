"""Converters for encoders whose head finds a task's answer in what is read.

END begins what is read by an encoder that pools: it stands for the whole.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import tokenizers

from lm.errors import UserError, nearest
from lm.task import Converter, Example, Features, Task
from lm.text.tokenizers import Special, end_id, parts_encoder, text_reader

if TYPE_CHECKING:
  from lm.types import Array, Batch, Output


def classifier(task: Task) -> Converter:
  """Finds the class of the whole, one of `data.labels`; for an encoder that pools.

  Raises:
    UserError: an example's class is none of them.
  """

  def features(
    tokenizer: tokenizers.Tokenizer, labels: Sequence[str], context: int
  ) -> Callable[[Example], list[Features]]:
    del context
    index, answer, read = _index(labels), _answer(task), _reader(task, tokenizer)
    return lambda example: [_whole(read(example), index(answer(example)))]

  def predict(output: 'Output', batch: 'Batch') -> dict[str, 'Array']:
    del batch
    return {'values/class': output.unembed(output.hidden).argmax(-1)}

  def read(labels: Sequence[str], example: Example, pieces: list[dict[str, np.ndarray]]) -> str:
    del example
    return labels[int(pieces[0]['values/class'])]

  return Converter(_texts(task), features, predict=predict, read=read)


def regressor(task: Task) -> Converter:
  """Finds a number for the whole; for an encoder that pools, with one class."""

  def features(
    tokenizer: tokenizers.Tokenizer, labels: Sequence[str], context: int
  ) -> Callable[[Example], list[Features]]:
    del labels, context
    answer, read = _answer(task), _reader(task, tokenizer)
    return lambda example: [_whole(read(example), float(answer(example)))]

  def predict(output: 'Output', batch: 'Batch') -> dict[str, 'Array']:
    del batch
    return {'values/number': output.unembed(output.hidden)[..., 0]}

  def read(labels: Sequence[str], example: Example, pieces: list[dict[str, np.ndarray]]) -> float:
    del labels, example
    return float(pieces[0]['values/number'])

  return Converter(_texts(task), features, predict=predict, read=read)


def tagger(task: Task) -> Converter:
  """Finds a tag for each word, one of `data.labels`, on the first token of the word.

  A word without a token of its own, or cut off with the end of a long example, is predicted to have
  the first of `data.labels`.

  Raises:
    UserError: an example has a tag that is none of them.
  """

  def features(
    tokenizer: tokenizers.Tokenizer, labels: Sequence[str], context: int
  ) -> Callable[[Example], list[Features]]:
    del context
    reader = text_reader(tokenizer)
    index, answer = _index(labels), _answer(task)

    def convert(example: Example) -> list[Features]:
      (text,) = task.inputs(example)
      found = reader.encode(text, add_special_tokens=False)
      words = answer(example)
      tokens = {name: np.zeros(len(found.ids), int) for name in ('targets', 'weights', 'words')}
      firsts = first_tokens(found.offsets, [span[:2] for span in words])
      for i, (first, (_, _, tag)) in enumerate(zip(firsts, words, strict=True)):
        if first is not None:
          for name, value in (('targets', index(tag)), ('weights', 1), ('words', i)):
            tokens[name][first] = value
      return [Features({'inputs': np.array(found.ids), **tokens}, {}, {})]

    return convert

  def predict(output: 'Output', batch: 'Batch') -> dict[str, 'Array']:
    del batch
    return {'tokens/tag': output.unembed(output.hidden).argmax(-1)}

  def read(
    labels: Sequence[str], example: Example, pieces: list[dict[str, np.ndarray]]
  ) -> list[str]:
    found = [labels[0]] * len(_answer(task)(example))
    for piece in pieces:
      labelled = piece['tokens/weights'] > 0
      words, predicted = piece['tokens/words'][labelled], piece['tokens/tag'][labelled]
      for word, tag in zip(words, predicted, strict=True):
        found[word] = labels[tag]
    return found

  return Converter(_texts(task), features, predict=predict, read=read)


def first_tokens(
  offsets: Sequence[tuple[int, int]], words: Sequence[tuple[int, int]]
) -> list[int | None]:
  """Returns the first token that holds a character of each word; None where none does.

  A token that holds the end of one word and the start of the next goes to the earlier one.

  Args:
    offsets: (start, stop) of each token in characters, in order.
    words: (start, stop) of each word, in order.
  """
  firsts: list[int | None] = []
  at = 0
  for start, stop in words:
    while at < len(offsets) and offsets[at][1] <= start:
      at += 1
    holds = at < len(offsets) and offsets[at][0] < stop
    firsts.append(at if holds else None)
    at += holds
  return firsts


def _whole(tokens: list[int], target: float) -> Features:
  return Features({'inputs': np.array(tokens)}, {}, {'targets': target, 'weights': 1})


def _reader(task: Task, tokenizer: tokenizers.Tokenizer) -> Callable[[Example], list[int]]:
  encode, end = parts_encoder(tokenizer), end_id(tokenizer)
  return lambda example: [end, *encode(task.inputs(example))]


def _texts(task: Task) -> Callable[[Example], list[str]]:
  def texts(example: Example) -> list[str]:
    return [part for part in task.inputs(example) if not isinstance(part, Special)]

  return texts


def _index(labels: Sequence[str]) -> Callable[[str], int]:
  known = {name: i for i, name in enumerate(labels)}
  if not known:
    raise UserError('data.labels is empty; name the classes, in order')
  if len(known) < len(labels):
    twice = next(name for i, name in enumerate(labels) if name in labels[:i])
    raise UserError(f'data.labels has {twice!r} twice; name each class once')

  def index(name: str) -> int:
    if name not in known:
      there = ', '.join(map(repr, list(known)[:20]))
      raise UserError(f'data.labels: there is no {name!r}{nearest(name, known)}; there is {there}')
    return known[name]

  return index


def _answer(task: Task) -> Callable:
  if task.answer is None:
    raise UserError(
      'data.convert: the task has no answer that a head could find; '
      'take a converter of lm.tasks.seq2seq, such as lm.tasks.seq2seq:encoder_decoder'
    )
  return task.answer
