"""From a prompt to text: encoding, streaming, and decoding as the tokens come."""

from collections.abc import Callable, Iterator

import flax.linen as nn
import tokenizers
from tokenizers.decoders import DecodeStream

from lm.decode.sampling import Choose, without
from lm.decode.steps import check_length
from lm.decode.stream import stream
from lm.text.tokenizers import end_id
from lm.text.vocabulary import unknown_id
from lm.types import Apply, Params


def continuations(
  model: nn.Module,
  apply: Apply,
  params: Params,
  tokenizer: tokenizers.Tokenizer,
  prompts: list[str],
  choose: Choose,
  seeds: list[int],
  max_tokens: int,
  key: str = '--prompt',
  tell: Callable[[str], None] = lambda note: None,
) -> Iterator[list[str]]:
  """Yields the new text of every row after each step, empty once a row has ended.

  Rows end at the end-of-text token, at `max_tokens`, or where the model's context is full, which
  `tell` is told beforehand. `key` names the prompt in errors. The unknown word, which stands for no
  text, is never chosen.

  Raises:
    UserError: a prompt is longer than the model's context.
  """
  end = end_id(tokenizer)
  tokenizer.encode_special_tokens = True  # '<|end|>' in a prompt is text, as it is in a corpus
  encoded = [[end, *tokenizer.encode(p, add_special_tokens=False).ids] for p in prompts]
  longest = max(map(len, encoded))
  check_length(model, longest, key)
  if longest + max_tokens > model.context + 1 and not model.reads_on:
    max_tokens = model.context - longest + 1
    tell(f'the model reads {model.context} tokens: {max_tokens} are added to the prompt')
  unknown = unknown_id(tokenizer)
  if unknown is not None:
    choose = without(choose, unknown)
  done = [False] * len(prompts)
  # Text comes in pieces that never split a character, whose bytes may be several tokens.
  decoders = [DecodeStream(skip_special_tokens=True) for _ in prompts]
  for tokens in stream(model, apply, params, encoded, choose, seeds, max_tokens):
    done = [d or int(t) == end for d, t in zip(done, tokens, strict=True)]
    rows = zip(decoders, tokens, done, strict=True)
    yield ['' if d else decoder.step(tokenizer, int(t)) or '' for decoder, t, d in rows]
    if all(done):
      return
