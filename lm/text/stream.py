"""The text of tokens as they come, which is the text of all of them decoded together."""

import re
from collections.abc import Sequence

import tokenizers

from lm.text.vocabulary import specials

_BYTE = re.compile('<0x[0-9A-F]{2}>')
_BROKEN = '\ufffd'
_WINDOW = 512  # tokens decoded at a step, so that the time of a step does not grow with the text


class TextStream:
  """Turns tokens into text one by one.

  The pieces of text add up to what `tokenizer.decode` adds to the text of the tokens before them.
  So the first word keeps the space before it, which decoders strip at the start of a text. A piece
  is held back as long as later tokens can change it: the bytes of a character that is not
  complete, and, under a decoder with byte fallback, any run of single bytes. Such a decoder turns
  a run with one broken byte into U+FFFD throughout.

  Bytes may break the last characters of the tokens before, whose text is given away already. The
  text of the new tokens is then what they spell by themselves.
  """

  def __init__(self, tokenizer: tokenizers.Tokenizer, before: Sequence[int] = ()):
    decoder = tokenizer.decoder
    self._tokenizer = tokenizer
    self._falls_back = decoder is not None and b'"ByteFallback"' in decoder.__getstate__()
    self._silent = specials(tokenizer)
    self._ids = list(before)
    self._given = tokenizer.decode(self._ids)  # the text of the first `_done` of the ids
    self._done = len(self._ids)

  def step(self, token: int) -> str:
    """Returns the text that one more token makes certain, often none."""
    name = self._tokenizer.id_to_token(token)
    if name is None or token in self._silent:
      return ''
    self._ids.append(token)
    text = self._tokenizer.decode(self._ids)
    if text.endswith(_BROKEN) or (self._falls_back and _BYTE.fullmatch(name)):
      return ''
    return self._new(text)

  def finish(self) -> str:
    """Returns what was held back, once the last token has come."""
    return self._new(self._tokenizer.decode(self._ids))

  def _new(self, text: str) -> str:
    if not text.startswith(self._given):
      self._ids, self._given = self._ids[self._done :], ''
      text = self._tokenizer.decode(self._ids)
    new, self._given = text[len(self._given) :], text
    if len(self._ids) > _WINDOW:
      last = self._tokenizer.decode(self._ids[-_WINDOW // 2 :])
      if last.strip():  # else a decoder would take the next word for the first one
        self._ids, self._given = self._ids[-_WINDOW // 2 :], last
    self._done = len(self._ids)
    return new
