"""From a prompt to text: encoding, streaming, and decoding as the tokens come."""

from collections.abc import Callable, Iterator, Sequence

import flax.linen as nn
import tokenizers

from lm.decode.sampling import Choose, without
from lm.decode.steps import check_length
from lm.decode.stream import stream
from lm.text.detokenize import TextStream
from lm.text.tokenizers import end_id, text_reader, unknown_id
from lm.types import Apply, Params


def prompt_encoder(tokenizer: tokenizers.Tokenizer) -> Callable[[str], list[int]]:
  """Returns the function from a prompt to its tokens, after the end of the text before it.

  '<|end|>' in a prompt is text, as it is in a corpus.
  """
  reader, end = text_reader(tokenizer), end_id(tokenizer)
  return lambda prompt: [end, *reader.encode(prompt, add_special_tokens=False).ids]


def continuations(
  model: nn.Module,
  apply: Apply,
  params: Params,
  tokenizer: tokenizers.Tokenizer,
  prompts: list[str],
  encode: Callable[[str], list[int]],
  choose: Choose,
  draws: Sequence[int],
  max_tokens: int,
  seed: int = 0,
  key: str = '--prompt',
  tell: Callable[[str], None] = lambda note: None,
) -> Iterator[list[str]]:
  """Yields the new text of every row after each step, empty once a row has ended.

  The texts of a row add up to what `tokenizer.decode` adds to the decoded prompt. Where a prompt
  ends in white space that the tokenizer drops, they begin without any.

  Rows end at the end-of-text token, at `max_tokens`, or where the model's context is full, which
  `tell` is told beforehand. `encode` is `prompt_encoder(tokenizer)`. `draws` and `seed` are as in
  `stream`. `key` names the prompt in errors. The unknown word, which stands for no text, is never
  chosen.

  Raises:
    UserError: a prompt is longer than the model's context.
  """
  end = end_id(tokenizer)
  encoded = [encode(prompt) for prompt in prompts]
  longest = max(map(len, encoded))
  check_length(model, longest, key)
  if longest + max_tokens > model.context + 1 and not model.reads_on:
    max_tokens = model.context - longest + 1
    tell(f'the model reads {model.context} tokens: {max_tokens} are added to the prompt')
  unknown = unknown_id(tokenizer)
  if unknown is not None:
    choose = without(choose, unknown)
  rows = [_Row(tokenizer, prompt, ids[1:]) for prompt, ids in zip(prompts, encoded, strict=True)]
  for tokens in stream(model, apply, params, encoded, choose, draws, max_tokens, seed):
    yield [row.step(int(token), end) for row, token in zip(rows, tokens, strict=True)]
    if all(row.ended for row in rows):
      return
  yield [row.finish() for row in rows]


class _Row:
  """The text of a row; `ended` says whether its end of text has come."""

  def __init__(self, tokenizer: tokenizers.Tokenizer, prompt: str, ids: list[int]):
    self._stream = TextStream(tokenizer, ids)
    self._after_space = prompt[-1:].isspace() and not tokenizer.decode(ids)[-1:].isspace()
    self.ended = False

  def step(self, token: int, end: int) -> str:
    if self.ended:
      return ''
    if token == end:
      return self.finish()
    return self._shown(self._stream.step(token))

  def finish(self) -> str:
    if self.ended:
      return ''
    self.ended = True
    return self._shown(self._stream.finish())

  def _shown(self, text: str) -> str:
    if self._after_space and text:
      self._after_space = False
      return text.lstrip()
    return text
