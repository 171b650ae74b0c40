"""Which tokens make up which word, so that people can read what is said of tokens."""

import re
from collections.abc import Sequence

import tokenizers
from tokenizers.decoders import DecodeStream

# Scripts without spaces, whose tokens stand for themselves: Thai and Lao, Burmese, Khmer, and all
# from CJK on.
_SPACELESS = re.compile('[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\U0010ffff]')
_UNFINISHED = '\ufffd'


def group(tokenizer: tokenizers.Tokenizer, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
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
