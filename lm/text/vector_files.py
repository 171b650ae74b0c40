"""Files of word vectors: the text and binary formats of word2vec, and the text format of GloVe.

word2vec text: a line 'V D', then for each word a line of the word and D numbers, all separated by
single spaces. Binary: the same first line, then for each word the word, a space, D little-endian
float32 and, as some write it, a line end. GloVe: as word2vec text without the first line; a word
may have spaces inside. Words are UTF-8, without control characters and other ASCII white space.
Published files have a few words twice, and some that end within a character: of the former the
first counts, in the latter U+FFFD stands for the character. Readers `tell` how many.
https://github.com/tmikolov/word2vec, https://github.com/stanfordnlp/GloVe
"""

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lm.errors import UserError
from lm.text.files import lines, replace, text_start
from lm.text.vector_fields import (
  LONGEST,
  Words,
  check_finite,
  check_form,
  check_word,
  misread,
  numbers_at_the_end,
  read_header,
  word_and_numbers,
)
from lm.text.vectors import Vectors

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
