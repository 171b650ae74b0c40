"""Converters for models that generate the target: encoder-decoders and decoders.

END is the first decoder input and the last target; it also ends the encoder input.
"""

from collections.abc import Callable, Sequence

import numpy as np
from tokenizers import Tokenizer

from lm.task import Convert, Converter, Example, Features, Task
from lm.text.tokenizers import SEPARATOR, end_id, parts_encoder, text_parts


def encoder_decoder(task: Task) -> Converter:
  """Converts for an encoder that reads the inputs and a decoder that generates the target."""

  def encode_prompt(tokenizer: Tokenizer) -> Callable[[Example], Features]:
    encode, end = parts_encoder(tokenizer), end_id(tokenizer)

    def convert(example: Example) -> Features:
      source = np.array([*encode(task.inputs(example)), end])
      return Features({'inputs': np.array([end])}, {'source': source}, {})

    return convert

  def features(tokenizer: Tokenizer, labels: Sequence[str], seq_len: int) -> Convert:
    encode, end, prompt_of = parts_encoder(tokenizer), end_id(tokenizer), encode_prompt(tokenizer)

    def convert(example: Example) -> list[Features]:
      target = [*encode([task.target(example)]), end]
      tokens = {'inputs': np.array([end, *target[:-1]]), 'targets': np.array(target)}
      return [prompt_of(example)._replace(tokens=tokens)]

    return convert

  return Converter(tokenizer_texts(task), features, encode_prompt)


def decoder(task: Task, prefix_lm: bool = True) -> Converter:
  """Converts to one sequence: END, inputs, separator, target. The loss covers the target alone.

  Args:
    task: the task.
    prefix_lm: whether attention within the inputs is bidirectional (a prefix language model).
  """

  def encode_prompt(tokenizer: Tokenizer) -> Callable[[Example], Features]:
    encode, end = parts_encoder(tokenizer), end_id(tokenizer)

    def convert(example: Example) -> Features:
      inputs = np.array([end, *encode([*task.inputs(example), SEPARATOR])])
      prefix = {'prefix': np.ones_like(inputs)} if prefix_lm else {}
      return Features({'inputs': inputs, **prefix}, {}, {})

    return convert

  def features(tokenizer: Tokenizer, labels: Sequence[str], seq_len: int) -> Convert:
    encode, end, prompt_of = parts_encoder(tokenizer), end_id(tokenizer), encode_prompt(tokenizer)

    def convert(example: Example) -> list[Features]:
      prompt = prompt_of(example).tokens['inputs']
      target = [*encode([task.target(example)]), end]
      sequence = np.array([*prompt, *target])
      tokens = {
        'inputs': sequence[:-1],
        'targets': sequence[1:],
        'weights': np.repeat([0, 1], [len(prompt) - 1, len(target)]),
      }
      if prefix_lm:
        tokens['prefix'] = np.repeat([1, 0], [len(prompt), len(target) - 1])
      return [Features(tokens, {}, {})]

    return convert

  return Converter(tokenizer_texts(task), features, encode_prompt)


def tokenizer_texts(task: Task) -> Callable[[Example], list[str]]:
  """Returns the function from an example to its inputs and its target."""
  return lambda example: [*text_parts(task.inputs(example)), task.target(example)]
