"""Converters for models that write a task's target in words.

END begins what is written and ends what is read or written.
"""

from collections.abc import Callable, Sequence

import numpy as np
import tokenizers

from lm.task import Converter, Example, Features, Task
from lm.text.tokenizers import SEPARATOR, Special, end_id, parts_encoder


def encoder_decoder(task: Task) -> Converter:
  """Gives an encoder what is read, and a decoder what is to be written."""

  def features(
    tokenizer: tokenizers.Tokenizer, labels: Sequence[str], context: int
  ) -> Callable[[Example], list[Features]]:
    del labels, context
    encode, end = parts_encoder(tokenizer), end_id(tokenizer)

    def convert(example: Example) -> list[Features]:
      target = [*encode([task.target(example)]), end]
      source = [*encode(task.inputs(example)), end]
      tokens = {'inputs': np.array([end, *target[:-1]]), 'targets': np.array(target)}
      return [Features(tokens, {'source': np.array(source)}, {})]

    return convert

  def prompt(tokenizer: tokenizers.Tokenizer) -> Callable[[Example], Features]:
    encode, end = parts_encoder(tokenizer), end_id(tokenizer)

    def convert(example: Example) -> Features:
      source = [*encode(task.inputs(example)), end]
      return Features({'inputs': np.array([end])}, {'source': np.array(source)}, {})

    return convert

  return Converter(_texts(task), features, prompt)


def decoder(task: Task, both_ways: bool = True) -> Converter:
  """Gives one sequence: what is read, a separator, and the target, on which alone the loss is.

  Args:
    task: what is to be done.
    both_ways: what is read sees itself both ways: a prefix language model.
  """

  def features(
    tokenizer: tokenizers.Tokenizer, labels: Sequence[str], context: int
  ) -> Callable[[Example], list[Features]]:
    del labels, context
    encode, end = parts_encoder(tokenizer), end_id(tokenizer)

    def convert(example: Example) -> list[Features]:
      target = [*encode([task.target(example)]), end]
      read = [end, *encode([*task.inputs(example), SEPARATOR])]
      whole = np.array([*read, *target])
      tokens = {
        'inputs': whole[:-1],
        'targets': whole[1:],
        'weights': np.repeat([0, 1], [len(read) - 1, len(target)]),
      }
      if both_ways:
        tokens['prefix'] = np.repeat([1, 0], [len(read), len(target) - 1])
      return [Features(tokens, {}, {})]

    return convert

  def prompt(tokenizer: tokenizers.Tokenizer) -> Callable[[Example], Features]:
    encode, end = parts_encoder(tokenizer), end_id(tokenizer)

    def convert(example: Example) -> Features:
      read = np.array([end, *encode([*task.inputs(example), SEPARATOR])])
      prefix = {'prefix': np.ones_like(read)} if both_ways else {}
      return Features({'inputs': read, **prefix}, {}, {})

    return convert

  return Converter(_texts(task), features, prompt)


def _texts(task: Task) -> Callable[[Example], list[str]]:
  def texts(example: Example) -> list[str]:
    read = [part for part in task.inputs(example) if not isinstance(part, Special)]
    return [*read, task.target(example)]

  return texts
