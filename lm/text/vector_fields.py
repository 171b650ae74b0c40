"""What stands in files of word vectors, headers, words and numbers, and what can be wrong there.

The formats are those of lm.text.vector_files.
"""

import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lm.errors import UserError
from lm.text.files import CONVERT
from lm.text.vectors import not_finite

LONGEST = 10_000  # bytes of a word or a header
_MOST = 1 << 20  # numbers of a vector
_HEADER = re.compile(rb'(\d{1,12}) (\d{1,9}) ?\r?\n')
_UNSHOWN = re.compile(rb'[^\x20-\x7e\r\n]')
_NUMBER = re.compile(rb'[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan|inf|infinity)', re.IGNORECASE)
_ILLEGAL = re.compile('[\0-\x20\x7f]')
_ILLEGAL_WHERE_SPACED = re.compile('[\0-\x1f\x7f]|^ | $')


def check_form(file: BinaryIO, path: str | Path, binary: bool) -> None:
  """Raises UserError where the first word after a header has numbers of the other form.

  The file stays at its start.
  """
  header = _HEADER.fullmatch(file.readline(LONGEST))
  word = file.read(LONGEST)
  file.seek(0)
  if not header:
    return
  fields = word.partition(b'\n')[0].split()[1:]
  if binary and fields and len(fields) == int(header[2]) and all(map(_is_number, fields)):
    raise UserError(f'{path}: its numbers are text, not binary; --format=word2vec')
  begin = word.partition(b' ')[2].lstrip().partition(b'\n')[0][:64]
  if not binary and not _is_number(begin.partition(b' ')[0]) and _UNSHOWN.search(begin):
    raise UserError(f'{path}: its numbers are binary, not text; --format=word2vec_binary')


def read_header(file: BinaryIO, path: str | Path, least: int) -> tuple[int, int, int]:
  """Returns words and numbers that the first line promises, and its length.

  Args:
    file: at its start.
    path: its name.
    least: bytes that a number takes at least.
  """
  line = file.readline(LONGEST)
  header = _HEADER.fullmatch(line)
  count, size = (int(header[1]), int(header[2])) if header else (0, 0)
  if not count or not size:
    raise UserError(
      f"{path}, line 1: {_shown(line)} is no header such as '400000 300', of words and of numbers "
      'for each; files of GloVe have none, --format=glove'
    )
  if size > _MOST:
    raise UserError(
      f'{path}: its header promises {size:,} numbers for each word; {_MOST:,} are the most there '
      'can be'
    )
  needed = len(line) + count * (least * size + 2)  # with a letter, and a space or a line end
  there = os.fstat(file.fileno()).st_size
  if there < needed:
    raise UserError(
      f'{path}: its header promises {count:,} words of {size:,} numbers, which take {needed:,} '
      f'bytes or more, but it has {there:,}: it is truncated, or the header is wrong'
    )
  return count, size, len(line)


def word_and_numbers(line: bytes, size: int, spaced: bool) -> tuple[bytes, bytes]:
  """Returns the word and the numbers of a line; ValueError says what is wrong with it."""
  if not line.endswith(b'\n'):
    raise ValueError('no line end: the file is truncated, or its last line needs one')
  line = line.rstrip()
  word, _, numbers = line.partition(b' ')
  found = numbers.count(b' ') + 1 if numbers else 0
  if found > size and spaced:
    longer, *last = line.rsplit(b' ', size)
    if not _is_number(longer.rpartition(b' ')[2]):  # else there are too many numbers
      return longer, b' '.join(last)
  if found != size:
    raise ValueError(f'{found} numbers after {_shown(word)}, not {size}')
  return word, numbers


class Words:
  """The words of a file in their order, and what published files have wrong with them.

  A word that stands there again is passed over. Where a program cut a long word inside a character,
  as word2vec does after 100 bytes, U+FFFD stands for what is left of the character.

  Attributes:
    index: the row of each word.
    count: words read, those passed over included.
  """

  def __init__(self, convert: str = CONVERT):
    self.index: dict[str, int] = {}
    self.count = 0
    self._convert = convert
    self._again: list[tuple[int, str]] = []  # the number of the word, and what to show of it
    self._cut: list[str] = []
    self._mistake: UserError | None = None
    self._is_utf8 = False  # whether any character shows it

  def add(self, word: bytes, place: str, spaced: bool) -> bool:
    """Gives a word the next row; returns whether it is new.

    Raises:
      UserError: it is not UTF-8, or no word.
    """
    try:
      text = self._decoded(word, place)
      check_word(text, spaced)
    except ValueError as e:
      raise UserError(f'{place}: {e}') from e
    new = text not in self.index
    if new:
      self.index[text] = len(self.index)
    else:
      self._again.append((self.count, f'{place}: {text!r:.80}'))
    self.count += 1
    return new

  def _decoded(self, word: bytes, place: str) -> str:
    try:
      text = word.decode()
    except UnicodeDecodeError as e:
      mistake = f'{place}: {word!r:.60} is not UTF-8 at its byte {e.start}; {self._convert}'
      if e.reason != 'unexpected end of data':
        raise UserError(mistake) from e
      self._mistake = self._mistake or UserError(mistake)
      text = word[: e.start].decode()
      self._is_utf8 |= not text.isascii()
      text += '\ufffd'
      self._cut.append(f'{place}: {text!r:.80}')
      return text
    self._is_utf8 |= not text.isascii()
    return text

  def number(self, row: int) -> int:
    """Returns which word of the file a row is, from 0."""
    for number, _ in self._again:
      row += number <= row
    return row

  def report(self, tell: Callable[[str], None]) -> None:
    """Tells what was passed over or replaced.

    Raises:
      UserError: words end within a character, and no character of any word is in UTF-8.
    """
    if self._mistake and not self._is_utf8:
      raise self._mistake
    for places, what in (
      ([place for _, place in self._again], 'already there, the first of each counts'),
      (self._cut, 'cut inside a character, U+FFFD stands for it'),
    ):
      if places:
        tell(f'words {what}: {len(places):,}, the first at {places[0]}')


def check_word(word: str, spaced: bool) -> None:
  if not word:
    raise ValueError('the word is empty')
  if found := (_ILLEGAL_WHERE_SPACED if spaced else _ILLEGAL).search(word):
    raise ValueError(f'the word {word!r:.80} has a {found[0]!r}, which no word may have there')


def check_finite(matrix: np.ndarray, index: dict[str, int], place: Callable[[int], str]) -> None:
  if bad := not_finite(matrix):
    word = list(index)[bad[0]]
    raise UserError(f'{place(bad[0])}: number {bad[1] + 1} of {word!r:.80} is {matrix[bad]}')


def misread(lines: list[bytes], first: int) -> str:
  """Returns the number of the line with the first thing that is no number, and that thing."""
  fields = ((i, field) for i, line in enumerate(lines) for field in line.split(b' '))
  i, field = next(pair for pair in fields if not _is_number(pair[1]))
  return f'line {first + i}: {_shown(field)} is not a number'


def numbers_at_the_end(fields: list[bytes]) -> int:
  """Returns how many numbers the fields of a line end in, after at least one for the word."""
  return sum(1 for _ in itertools.takewhile(_is_number, reversed(fields[1:])))


def _is_number(field: bytes) -> bool:
  return _NUMBER.fullmatch(field) is not None


def _shown(text: bytes) -> str:
  if text.count(b'\0'):
    return 'what stands there, and is binary,'
  return f'{text.decode(errors="replace")!r:.60}'
