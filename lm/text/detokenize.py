"""The text of tokens as they come, which is the text of all of them decoded together."""

import re
from collections.abc import Sequence

import tokenizers
from tokenizers.decoders import DecodeStream

from lm.text.tokenizers import special_ids

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
    self._silent = special_ids(tokenizer)
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


# Scripts without spaces, whose tokens stand for themselves: Thai and Lao, Burmese, Khmer, and all
# from CJK on.
_SPACELESS = re.compile('[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\U0010ffff]')
_UNFINISHED = '\ufffd'


def group_words(tokenizer: tokenizers.Tokenizer, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
  """Returns the words that tokens spell, each with the indices of its tokens, in order.

  A word is a run of letters and digits; any other token, and in scripts without spaces every token,
  is a word of its own. A token that is only a space goes with the word after it, and tokens that
  hold parts of one character stay together; U+FFFD stands for broken bytes. Special tokens go
  by their names, and space that is left is shown as '␣' or '⏎'.
  """
  specials = tokenizer.get_added_tokens_decoder()
  stream = DecodeStream(skip_special_tokens=False)
  words: list[tuple[str, list[int]]] = []
  indices: list[int] = []
  for index, token in enumerate(ids):
    indices.append(index)
    try:
      text = stream.step(tokenizer, token)
    except Exception:  # a broken byte, under a decoder with byte fallback: it can go no further
      stream, text = DecodeStream(skip_special_tokens=False), _UNFINISHED
    if text is None:  # the bytes of its last character are still to come
      continue
    if words and token not in specials and _continues(words[-1][0], text):
      words[-1] = words[-1][0] + text, words[-1][1] + indices
    else:
      words.append((text, indices))
    indices = []
  if indices:
    words.append((_UNFINISHED, indices))
  return [(_shown(text), indices) for text, indices in words]


def _continues(word: str, text: str) -> bool:
  if word.isspace():
    return '\n' not in word and not text.isspace()
  ends = word[-1:] + text[:1]
  return len(ends) == 2 and ends[0].isalnum() and ends[1].isalnum() and not _SPACELESS.search(ends)


def _shown(text: str) -> str:
  return text.strip() or ('⏎' if '\n' in text else '␣')
