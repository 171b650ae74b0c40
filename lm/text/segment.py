"""Words: Chinese ones by jieba's dictionary, those of other scripts by the rules of Unicode."""

from collections.abc import Iterator
from typing import Any

import regex

from lm.errors import UserError
from lm.text.normal import simplified
from lm.text.tokens import Text, split

_ATTACHED = r'[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]'
# Runs of ideographs are cut off at a thousand, which bounds what jieba holds in memory. \b is the
# boundary of UAX #29; between flags it counts all of them from the first of the run, so that flags
# amid flags are taken by twos instead.
_PIECE = regex.compile(
  rf"""(?wsx)
    (?P<gap> [\s\p{{Cc}}\p{{Cf}}]++ )
  | (?P<han> (?: \p{{Han}} {_ATTACHED}*+ ){{1,1000}}+ )
  | (?: \p{{RI}} {_ATTACHED}*+ ){{2}} (?= \p{{RI}} )
  | .+? \b
  """
)
_ATTACHES = regex.compile(_ATTACHED)


def words(text: Text, simplify: bool = False) -> Text:
  """Returns the text with each token split into words; see `spans`."""
  return split(text, lambda part: spans(part, simplify))


def spans(raw: str, simplify: bool = False) -> Iterator[tuple[int, int]]:
  """Yields the first and last character, exclusive, of each word.

  A run of Han characters is cut by jieba: the likeliest way through its dictionary, and a hidden
  Markov model for what is not in it. All else is cut by the default word boundaries of UAX #29:
  "can't", '3,000.5' and a family of emoji are one word, and punctuation marks are words. What lies
  between words is white space, control characters and format characters.

  Not known: words of scripts that put no space between them. Japanese kanji are cut as if they were
  Chinese, hiragana, Thai, Lao, Khmer and Burmese into single characters with their marks.

  Args:
    raw: any string, also with lone surrogates, each of which is a word.
    simplify: cut Chinese as if it were written in simplified characters, which are what jieba's
      dictionary is in; for traditional text.

  Raises:
    UserError: a library that is needed is not installed.
  """
  for piece in _PIECE.finditer(raw):
    if piece.lastgroup == 'han':
      yield from _chinese(piece[0], piece.start(), simplify)
    elif piece.lastgroup != 'gap':
      yield piece.span()


def _chinese(run: str, first: int, simplify: bool) -> Iterator[tuple[int, int]]:
  """Yields the spans of the words of a run of ideographs that begins at `first`."""
  cut = jieba().tokenize(simplified(run) if simplify else run)
  # A variation selector belongs to the character before.
  starts = [start for _, start, _ in cut if not _ATTACHES.match(run, start)]
  for start, end in zip(starts, [*starts[1:], len(run)], strict=True):
    yield first + start, first + end


def jieba() -> Any:
  """Returns the module rjieba.

  Raises:
    UserError: it is not installed.
  """
  try:
    import rjieba
  except ModuleNotFoundError as e:
    raise UserError('words of Chinese need rjieba: pip install -e ".[zh]"') from e
  return rjieba
