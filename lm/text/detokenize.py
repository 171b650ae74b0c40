"""From tokens to text: incrementally, and grouped into words for display."""

import re
from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from lm.text.tokenizers import special_ids

_BYTE = re.compile('<0x[0-9A-F]{2}>')
_INVALID = '\ufffd'
_WINDOW = 512  # tokens decoded per step, so that its time does not grow with the text
# Scripts without spaces, in which each token is a word: Thai and Lao, Burmese, Khmer, and all from
# CJK on.
_SPACELESS = re.compile('[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\U0010ffff]')


class TextStream:
  """Decodes tokens one by one.

  The concatenated pieces equal the text that the tokens append to the decoded text of `before`. The
  first word thus keeps its leading space, which decoders strip at the start of a text. A piece is
  held back as long as later tokens can change it: the bytes of an incomplete character and, with
  byte fallback, any run of single bytes. If one byte of a run is invalid, a byte-fallback decoder
  replaces each byte of the run by U+FFFD.

  A byte may invalidate characters that were already returned. The tokens that follow the returned
  text are then decoded without the tokens before them.

  Args:
    tokenizer: that of the tokens.
    before: the tokens before the first one, such as a prompt.
    after_space: whether the text before the new tokens ends with white space. If the tokens in
      `before` have lost that space, the new text loses its leading white space.
  """

  def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = (), after_space: bool = False):
    decoder = tokenizer.decoder
    self._tokenizer = tokenizer
    self._byte_fallback = decoder is not None and b'"ByteFallback"' in decoder.__getstate__()
    self._special = special_ids(tokenizer)
    self._ids = list(before)
    self._returned = tokenizer.decode(self._ids)  # the text of the first `_done` ids
    self._done = len(self._ids)
    self._strip = after_space and not self._returned[-1:].isspace()
    self._ended = False

  def step(self, token: int) -> str:
    """Returns the text that one more token completes, often ''."""
    name = self._tokenizer.id_to_token(token)
    if name is None or token in self._special:
      return ''
    self._ids.append(token)
    text = self._tokenizer.decode(self._ids)
    if text.endswith(_INVALID) or (self._byte_fallback and _BYTE.fullmatch(name)):
      return ''
    return self._new(text)

  def finish(self) -> str:
    """Returns the text that was held back, after the last token; '' when called again."""
    text = '' if self._ended else self._new(self._tokenizer.decode(self._ids))
    self._ended = True
    return text

  def _new(self, text: str) -> str:
    if not text.startswith(self._returned):
      self._ids, self._returned = self._ids[self._done :], ''
      text = self._tokenizer.decode(self._ids)
    new, self._returned = text[len(self._returned) :], text
    if self._strip and new:
      new, self._strip = new.lstrip(), False
    if len(self._ids) > _WINDOW:
      recent = self._tokenizer.decode(self._ids[-_WINDOW // 2 :])
      if recent.strip():  # else a decoder would strip the space of the next word
        self._ids, self._returned = self._ids[-_WINDOW // 2 :], recent
    self._done = len(self._ids)
    return new


def group_words(tokenizer: Tokenizer, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
  """Returns the words that tokens spell, each with the indices of its tokens, in order.

  A word is a run of letters and digits. Any other token is a word, and so is every token of a
  script without spaces. A token of white space belongs to the next word. Tokens with parts of one
  character stay together, and U+FFFD represents invalid bytes. Special tokens are shown by name;
  remaining white space as '␣' or '⏎'.
  """
  specials = tokenizer.get_added_tokens_decoder()
  stream = DecodeStream(skip_special_tokens=False)
  words: list[tuple[str, list[int]]] = []
  indices: list[int] = []
  for index, token in enumerate(ids):
    indices.append(index)
    try:
      text = stream.step(tokenizer, token)
    except Exception:  # an invalid byte, with byte fallback: the stream cannot continue
      stream, text = DecodeStream(skip_special_tokens=False), _INVALID
    if text is None:  # the character is incomplete
      continue
    if words and token not in specials and _continues(words[-1][0], text):
      words[-1] = words[-1][0] + text, words[-1][1] + indices
    else:
      words.append((text, indices))
    indices = []
  if indices:
    words.append((_INVALID, indices))
  return [(text.strip() or ('⏎' if '\n' in text else '␣'), indices) for text, indices in words]


def _continues(word: str, text: str) -> bool:
  if word.isspace():
    return '\n' not in word and not text.isspace()
  ends = word[-1:] + text[:1]
  return len(ends) == 2 and ends[0].isalnum() and ends[1].isalnum() and not _SPACELESS.search(ends)
