"""What stands in files of word vectors, headers, words and numbers, and what can be wrong there.

The formats are those of lm.text.vector_files.
"""

import contextlib
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lm.errors import UserError
from lm.text.files import CONVERT, lines, replace, text_start
from lm.text.vectors import Vectors, not_finite

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


_Tell = Callable[[str], None]

_PIECE = 1 << 22  # bytes read together
_LINE = 1 << 22  # bytes of a line of text
_READ = (
  'its words have another encoding, and only the program that wrote it can write them in UTF-8'
)
# How files begin that are none of these, and what to do.
_OTHERS = {
  b'\x1f\x8b': 'is packed by gzip: unpack it first, as with gunzip',
  b'PK\x03\x04': 'is packed by zip: unpack it first, as with unzip',
  **{
    bytes([0x80, protocol]): "is a pickle, as Gensim's save makes (.kv); write it there with "
    'save_word2vec_format, and give --format=word2vec or word2vec_binary'
    for protocol in range(2, 6)
  },
}


def _warn(note: str) -> None:
  print(f'warning: {note}', file=sys.stderr)


def read_word2vec_text(path: str | Path, tell: _Tell = _warn) -> Vectors:
  """Reads the text format of word2vec.

  Raises:
    UserError: the file cannot be read, or its header, a line, a number or a word is wrong; the line
      is named.
  """
  with _opened(path) as file:
    check_form(file, path, binary=False)
    _start(file, path)
    count, size, _ = read_header(file, path, least=2)
    return _read_lines(file, path, count, size, 2, spaced=False, tell=tell)


def read_glove(path: str | Path, tell: _Tell = _warn) -> Vectors:
  """Reads the text format of GloVe.

  The numbers at the end of the first line say how many there are in every line.

  Raises:
    UserError: as `read_word2vec_text`; the file has a header.
  """
  with _opened(path) as file:
    check_form(file, path, binary=False)
    count, ended = 0, True
    for piece in iter(lambda: file.read(_PIECE), b''):
      count, ended = count + piece.count(b'\n'), piece.endswith(b'\n')
    count += not ended
    start = _start(file, path)
    begin = lines(file, path, _LINE)
    fields, second = (next(begin, b'').split() for _ in range(2))
    size = numbers_at_the_end(fields)
    if size < 1:
      raise UserError(f'{path}, line 1: not a word and its numbers, separated by single spaces')
    if fields == [b'%d' % (count - 1), b'%d' % (len(second) - 1)]:
      raise UserError(f'{path}, line 1: a header, which files of GloVe lack; --format=word2vec')
    file.seek(start)
    return _read_lines(file, path, count, size, 1, spaced=True, tell=tell)


def read_word2vec_binary(path: str | Path, tell: _Tell = _warn) -> Vectors:
  """Reads the binary format of word2vec.

  Raises:
    UserError: the file cannot be read, or its header, its size, a number or a word is wrong; the
      word is named by its number and its place.
  """
  with _opened(path) as file:
    check_form(file, path, binary=True)
    count, size, begin = read_header(file, path, least=4)
    matrix = _room(path, count, size)
    words = Words(_READ)
    longest = LONGEST + 4 * size + 2
    data, at = b'', 0  # a piece of the file, and where in it the next word begins
    for i in range(count):
      if len(data) - at < longest:
        begin, data, at = begin + at, data[at:] + file.read(max(longest, _PIECE)), 0
      at += data[at : at + 1] == b'\n'
      space = data.find(b' ', at, at + LONGEST)
      start, end = space + 1, space + 1 + 4 * size
      place = f'{path}, word {i + 1} of {count} at byte {begin + at}'
      if space < 0 and len(data) - at > LONGEST:
        raise UserError(f'{place}: no space after it; the header is wrong, or the format')
      if space < 0 or end > len(data):
        raise UserError(f'{place}: the file ends within it; it is truncated')
      if words.add(data[at:space], place, spaced=False):
        matrix[len(words.index) - 1] = np.frombuffer(data[start:end], '<f4')
      at = end
    if data[at : at + 2] + file.read(2) not in (b'', b'\n'):
      raise UserError(
        f'{path}: more follows the {count} words of its header, from byte {begin + at} on'
      )
  return _checked(matrix, words, lambda i: f'{path}, word {i + 1} of {count}', tell)


def write_word2vec_text(path: str | Path, vectors: Vectors) -> None:
  """Writes the text format of word2vec, or nothing; numbers are read back as they are.

  Raises:
    UserError: a word has white space, a control character or a lone surrogate; the file cannot be
      written.
  """
  _write(path, vectors, itertools.chain([_header(vectors)], _lines(vectors)))


def write_glove(path: str | Path, vectors: Vectors) -> None:
  """Writes the text format of GloVe, or nothing; numbers are read back as they are.

  Raises:
    UserError: as `write_word2vec_text`; a space is no part of a word to other programs.
  """
  _write(path, vectors, _lines(vectors))


def write_word2vec_binary(path: str | Path, vectors: Vectors) -> None:
  """Writes the binary format of word2vec, or nothing; with line ends, as word2vec itself does.

  Raises:
    UserError: as `write_word2vec_text`.
  """
  rows = zip(vectors.words, vectors.matrix, strict=True)
  words = (f'{word} '.encode() + row.astype('<f4').tobytes() + b'\n' for word, row in rows)
  _write(path, vectors, itertools.chain([_header(vectors)], words))


def _header(vectors: Vectors) -> bytes:
  return b'%d %d\n' % vectors.matrix.shape


def _lines(vectors: Vectors) -> Iterator[bytes]:
  numbers = ' '.join(['%.9g'] * vectors.matrix.shape[1])  # nine digits tell all float32 apart
  for word, row in zip(vectors.words, vectors.matrix, strict=True):
    yield f'{word} {numbers % tuple(row.tolist())}\n'.encode()


def _write(path: str | Path, vectors: Vectors, pieces: Iterable[bytes]) -> None:
  """Writes the file whole or not at all, once the words are found to fit the format."""
  for word in vectors.words:
    try:
      word.encode()
      check_word(word, spaced=False)
    except UnicodeEncodeError:
      raise UserError(f'{path}: {word!r:.80} has a lone surrogate, which UTF-8 lacks') from None
    except ValueError as e:
      raise UserError(f'{path}: {e}') from e
  try:
    replace(Path(path), pieces)
  except OSError as e:
    raise UserError(f'{path} cannot be written: {e.strerror}') from e


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[BinaryIO]:
  try:
    with open(path, 'rb') as file:
      begin = file.read(4)
      for known, remedy in _OTHERS.items():
        if begin.startswith(known):
          raise UserError(f'{path} {remedy}')
      file.seek(0)
      yield file
  except OSError as e:
    raise UserError(f'{path} cannot be read: {e.strerror}') from e


def _start(file: BinaryIO, path: str | Path) -> int:
  """Goes to where the text begins, after a byte order mark; returns that place."""
  file.seek(0)
  first = file.read(4)
  # A word may be nothing but the character that the mark is.
  start = 0 if first[3:] == b' ' else text_start(first, Path(path))
  file.seek(start)
  return start


def _read_lines(
  file: BinaryIO, path: str | Path, count: int, size: int, first: int, spaced: bool, tell: _Tell
) -> Vectors:
  """Reads `count` lines of a word, which may be `spaced`, and `size` numbers.

  Line `first` of the file comes first.
  """
  matrix, words = _room(path, count, size), Words()
  for piece in _pieces(lines(file, path, _LINE, first)):
    row, begin, numbers, new = len(words.index), words.count, [], []
    for line in piece:
      place = f'{path}, line {first + words.count}'
      if words.count == count:
        raise UserError(f'{place}: more lines than the {count} words of the header')
      try:
        word, its_numbers = word_and_numbers(line, size, spaced)
      except ValueError as e:
        raise UserError(f'{place}: {e}') from e
      new.append(words.add(word, place, spaced))
      numbers.append(its_numbers)
    try:
      found = np.loadtxt(numbers, np.float32, comments=None, delimiter=' ', ndmin=2)
    except ValueError as e:
      raise UserError(f'{path}, {misread(numbers, first + begin)}') from e
    matrix[row : len(words.index)] = found[new]
  if words.count < count:
    raise UserError(f'{path}: it ends after {words.count} of the {count} words of its header')
  return _checked(matrix, words, lambda i: f'{path}, line {first + i}', tell)


def _checked(matrix: np.ndarray, words: Words, place: Callable[[int], str], tell: _Tell) -> Vectors:
  """Returns the vectors of the words; `place` says where in the file the i-th word is."""
  matrix = matrix[: len(words.index)]
  check_finite(matrix, words.index, lambda row: place(words.number(row)))
  words.report(tell)
  return Vectors(tuple(words.index), matrix, words.index)


def _pieces(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
  """Yields about `_PIECE` bytes of lines at a time."""
  piece: list[bytes] = []
  size = 0
  for line in lines:
    piece.append(line)
    size += len(line)
    if size >= _PIECE:
      yield piece
      piece, size = [], 0
  if piece:
    yield piece


def _room(path: str | Path, count: int, size: int) -> np.ndarray:
  try:
    return np.empty((count, size), np.float32)
  except (MemoryError, ValueError) as e:
    raise UserError(
      f'{path}: {count:,} words of {size:,} numbers, as its first line has it, exceed the memory'
    ) from e
