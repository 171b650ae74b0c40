"""Converters for models that generate the target: encoder-decoders and decoders.

END is the last target. Unless a pretrained model has other tokens there, it is the first decoder
input too, and ends the encoder input.
"""

from collections.abc import Callable, Sequence

import numpy as np
from tokenizers import Tokenizer

from lm.errors import UserError
from lm.task import Convert, Converter, Example, Features, Task
from lm.text.framing import frame
from lm.text.tokenizers import SEPARATOR, end_id, parts_encoder, text_parts, vocabulary_size


def encoder_decoder(
  task: Task, start: tuple[int, ...] | None = None, special_tokens: str = 'end'
) -> Converter:
  """Converts for an encoder that reads the inputs and a decoder that generates the target.

  Args:
    task: the task.
    start: ids of the tokens that the decoder starts from, such as BART's </s> and <s>. The loss
      covers those after the first one; None for END.
    special_tokens: of the encoder input: 'end' for END after it, or 'template' for those of the
      tokenizer's own post-processor (lm.text.framing).
  """

  def encode_prompt(tokenizer: Tokenizer) -> Callable[[Example], Features]:
    read = _source_reader(tokenizer, special_tokens)
    first = (end_id(tokenizer),) if start is None else start
    size = vocabulary_size(tokenizer)
    if not first or not all(isinstance(i, int) and 0 <= i < size for i in first):
      raise UserError(f'data.converter: start={start!r} must be ids of tokens, below {size}')

    def convert(example: Example) -> Features:
      source = np.array(read(task.inputs(example)))
      return Features({'inputs': np.array(first)}, {'source': source}, {})

    return convert

  def features(tokenizer: Tokenizer, labels: Sequence[str], seq_len: int) -> Convert:
    encode, end, prompt_of = parts_encoder(tokenizer), end_id(tokenizer), encode_prompt(tokenizer)

    def convert(example: Example) -> list[Features]:
      prompt = prompt_of(example)
      sequence = np.array([*prompt.tokens['inputs'], *encode([task.target(example)]), end])
      return [prompt._replace(tokens={'inputs': sequence[:-1], 'targets': sequence[1:]})]

    return convert

  return Converter(tokenizer_texts(task), features, encode_prompt)


def _source_reader(
  tokenizer: Tokenizer, special_tokens: str
) -> Callable[[Sequence[str]], Sequence[int]]:
  """Returns the function from the inputs of a task to the ids of the encoder input."""
  if special_tokens == 'template':
    framed = frame(tokenizer, special_tokens)
    return lambda inputs: framed(inputs).ids.tolist()
  if special_tokens != 'end':
    raise UserError(
      f"data.converter: special_tokens={special_tokens!r} must be 'end' or 'template'"
    )
  encode, end = parts_encoder(tokenizer), end_id(tokenizer)
  return lambda inputs: [*encode(inputs), end]


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
