"""Files of word vectors: the text and binary formats of word2vec, and the text format of GloVe.

word2vec text: a line 'V D', then for each word a line with the word and D values, separated by
single spaces. Binary: the same first line, then for each word the word, a space, D little-endian
float32 and an optional line end. GloVe: word2vec text without the first line; words may contain
spaces. Words are UTF-8, without control characters and other ASCII white space.

Published files repeat a few words, and truncate some within a character. Of a repeated word the
first vector counts; U+FFFD replaces a truncated character. Readers warn of both on stderr.
https://github.com/tmikolov/word2vec, https://github.com/stanfordnlp/GloVe
"""

import contextlib
import itertools
import mmap
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lm.errors import UserError
from lm.text.files import CONVERT, lone_surrogate, read_lines, text_offset, write_atomic
from lm.text.vectors import Vectors

LONGEST = 10_000  # bytes of a word or a header
_LINE = 1 << 22  # bytes of a line of text
_CHUNK = 1 << 22  # bytes read at a time
_MAX_SIZE = 1 << 20  # elements of a vector
_HEADER = re.compile(rb'(\d{1,12}) (\d{1,9}) ?\r?\n')
_NUMBER = re.compile(rb'[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan|inf|infinity)', re.IGNORECASE)
_NOT_ASCII_TEXT = re.compile(rb'[^\x20-\x7e\r\n]')
_ILLEGAL = re.compile('[\0-\x20\x7f]')
_ILLEGAL_IN_GLOVE = re.compile('[\0-\x1f\x7f]|^ | $')  # spaces inside a word are legal
_REWRITE = 'its words have another encoding; write it in UTF-8 with the program that made it'
# First bytes of other formats, and how to convert them.
_OTHER_FORMATS = {
  b'\x1f\x8b': 'is a gzip file: unpack it first, as with gunzip',
  b'PK\x03\x04': 'is a zip file: unpack it first, as with unzip',
  **{
    bytes(
      [0x80, protocol]
    ): "is a pickle, as written by Gensim's save (.kv); convert it in Gensim with "
    'save_word2vec_format, and give --format=word2vec or word2vec_binary'
    for protocol in range(2, 6)
  },
}

_Records = Iterable[tuple[str, bytes, np.ndarray]]  # place in the file, word, vector


def read_word2vec_text(path: str | Path) -> Vectors:
  """Reads the text format of word2vec.

  Raises:
    UserError: the file cannot be read, or its header, a line, a value or a word is wrong; the
      message names the line.
  """
  with _open(path, binary=False) as file:
    _skip_byte_order_mark(file, path)
    count, size = _read_header(file, path, bytes_per_value=2)
    return _collect(path, _text_records(file, path, size, 2, in_glove=False), count, size)


def read_glove(path: str | Path) -> Vectors:
  """Reads the text format of GloVe; the first line determines the size of the vectors.

  Raises:
    UserError: as `read_word2vec_text`; the file has a header.
  """
  with _open(path, binary=False) as file:
    count = sum(chunk.count(b'\n') for chunk in iter(lambda: file.read(_CHUNK), b''))
    start = _skip_byte_order_mark(file, path)
    first_lines = read_lines(file, path, _LINE)
    first, second = (next(first_lines, b'').split() for _ in range(2))
    size = sum(1 for _ in itertools.takewhile(_NUMBER.fullmatch, reversed(first[1:])))
    if size < 1:
      raise UserError(f'{path}, line 1: not a word and its values, separated by single spaces')
    if first == [b'%d' % (count - 1), b'%d' % (len(second) - 1)]:
      raise UserError(f'{path}, line 1: a header, which files of GloVe lack; use --format=word2vec')
    file.seek(start)
    records = _text_records(file, path, size, 1, in_glove=True)
    return _collect(path, records, count, size, _ILLEGAL_IN_GLOVE)


def read_word2vec_binary(path: str | Path) -> Vectors:
  """Reads the binary format of word2vec.

  Raises:
    UserError: the file cannot be read, or its header, its length, a value or a word is wrong; the
      message names the word by its index and its byte offset.
  """
  with _open(path, binary=True) as file:
    count, size = _read_header(file, path, bytes_per_value=4)
    records = _binary_records(file, path, count, size)
    return _collect(path, records, count, size, remedy=_REWRITE)


def write_word2vec_text(path: str | Path, vectors: Vectors) -> None:
  """Writes the text format of word2vec; every float32 is read back bit for bit.

  Raises:
    UserError: the format cannot hold a word, or the file cannot be written; an existing file stays
      as it was.
  """
  _write(path, vectors, itertools.chain([_header(vectors)], _lines(vectors)))


def write_glove(path: str | Path, vectors: Vectors) -> None:
  """Writes the text format of GloVe; every float32 is read back bit for bit.

  Raises:
    UserError: as `write_word2vec_text`, also for a space in a word, which other programs reject.
  """
  _write(path, vectors, _lines(vectors))


def write_word2vec_binary(path: str | Path, vectors: Vectors) -> None:
  """Writes the binary format of word2vec, with line ends, as word2vec itself does.

  Raises:
    UserError: as `write_word2vec_text`.
  """
  rows = zip(vectors.words, vectors.matrix, strict=True)
  words = (f'{word} '.encode() + row.astype('<f4').tobytes() + b'\n' for word, row in rows)
  _write(path, vectors, itertools.chain([_header(vectors)], words))


@contextlib.contextmanager
def _open(path: str | Path, binary: bool) -> Iterator[BinaryIO]:
  """Opens a file after checking by its first bytes that it has the format."""
  try:
    with open(path, 'rb') as file:
      header, sample = file.readline(LONGEST), file.read(LONGEST)
      for start, remedy in _OTHER_FORMATS.items():
        if header.startswith(start):
          raise UserError(f'{path} {remedy}')
      if match := _HEADER.fullmatch(header):
        _check_form(path, sample, int(match[2]), binary)
      file.seek(0)
      yield file
  except OSError as e:
    raise UserError(f'{path} cannot be read: {e.strerror}') from e


def _check_form(path: str | Path, sample: bytes, size: int, binary: bool) -> None:
  """Raises UserError if the first vector after a header has the other form, text or binary."""
  fields = sample.partition(b'\n')[0].split()[1:]
  if binary and fields and len(fields) == size and all(map(_NUMBER.fullmatch, fields)):
    raise UserError(f'{path}: its values are text, not binary; use --format=word2vec')
  vector = sample.partition(b' ')[2].lstrip().partition(b'\n')[0][:64]
  if not (binary or _NUMBER.fullmatch(vector.partition(b' ')[0])) and _NOT_ASCII_TEXT.search(
    vector
  ):
    raise UserError(f'{path}: its values are binary, not text; use --format=word2vec_binary')


def _skip_byte_order_mark(file: BinaryIO, path: str | Path) -> int:
  """Seeks to the start of the text, after a byte order mark, and returns its offset."""
  file.seek(0)
  first = file.read(4)
  # A word may consist of U+FEFF, the character of the mark.
  return file.seek(0 if first[3:] == b' ' else text_offset(first, Path(path)))


def _read_header(file: BinaryIO, path: str | Path, bytes_per_value: int) -> tuple[int, int]:
  """Returns V and D of the first line, after checking that the file is long enough for them."""
  line = file.readline(LONGEST)
  header = _HEADER.fullmatch(line)
  count, size = (int(header[1]), int(header[2])) if header else (0, 0)
  if not count or not size:
    raise UserError(
      f"{path}, line 1: {_shown(line)} is no header such as '400000 300', the counts of words "
      'and of values per word; files of GloVe have no header: use --format=glove'
    )
  if size > _MAX_SIZE:
    raise UserError(f'{path}: its header has {size:,} values per word, above {_MAX_SIZE:,}')
  # A word has at least one letter, and a space or a line end.
  needed = len(line) + count * (bytes_per_value * size + 2)
  length = os.fstat(file.fileno()).st_size
  if length < needed:
    raise UserError(
      f'{path}: its header has {count:,} words of {size:,} values, at least {needed:,} bytes, but '
      f'the file has {length:,}: it is truncated, or the header is wrong'
    )
  return count, size


def _text_records(
  file: BinaryIO, path: str | Path, size: int, first: int, in_glove: bool
) -> _Records:
  """Yields the records of lines; `first` numbers the next line."""
  for n, line in enumerate(read_lines(file, path, _LINE, first), first):
    place = f'{path}, line {n}'
    if not line.endswith(b'\n'):
      raise UserError(f'{place}: no line end: the file is truncated, or its last line lacks one')
    word, _, values = line.rstrip().partition(b' ')
    columns = values.count(b' ') + 1 if values else 0
    if in_glove and columns > size:
      longer, *last = line.rstrip().rsplit(b' ', size)
      # If the word ends with a number, the line has too many values.
      if not _NUMBER.fullmatch(longer.rpartition(b' ')[2]):
        word, values, columns = longer, b' '.join(last), size
    if columns != size:
      raise UserError(f'{place}: {columns} values after {_shown(word)}, not {size}')
    try:
      vector = np.loadtxt([values], np.float32, comments=None, delimiter=' ', ndmin=1)
    except ValueError as e:
      wrong = next(field for field in values.split(b' ') if not _NUMBER.fullmatch(field))
      raise UserError(f'{place}: {_shown(wrong)} is not a number') from e
    yield place, word, vector


def _binary_records(file: BinaryIO, path: str | Path, count: int, size: int) -> _Records:
  """Yields the records after the header."""
  at = file.tell()
  with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
    for i in range(count):
      at += data[at : at + 1] == b'\n'
      place = f'{path}, word {i + 1} of {count} at byte {at}'
      space = data.find(b' ', at, at + LONGEST)
      end = space + 1 + 4 * size
      if space < 0 and len(data) - at > LONGEST:
        raise UserError(f'{place}: no space after it; the header or the format is wrong')
      if space < 0 or end > len(data):
        raise UserError(f'{place}: the file ends within it; it is truncated')
      yield place, data[at:space], np.frombuffer(data[space + 1 : end], '<f4')
      at = end
    if data[at : at + 2] not in (b'', b'\n'):
      raise UserError(f'{path}: data after the {count} words of its header, from byte {at} on')


def _collect(
  path: str | Path,
  records: _Records,
  count: int,
  size: int,
  illegal: re.Pattern = _ILLEGAL,
  remedy: str = CONVERT,
) -> Vectors:
  """Returns the vectors of `count` records.

  Repeated words keep their first vector; truncated words end with U+FFFD.

  Raises:
    UserError: a record is wrong, there are more or fewer, or the matrix exceeds the memory; words
      are truncated, and no valid non-ASCII character shows that the file is UTF-8.
  """
  try:
    matrix = np.empty((count, size), np.float32)
  except (MemoryError, ValueError) as e:
    raise UserError(f'{path}: {count:,} words of {size:,} values exceed the memory') from e
  index: dict[str, int] = {}
  repeated: list[str] = []
  truncated: list[str] = []
  not_utf8, is_utf8, seen = None, False, 0
  for seen, (place, raw, vector) in enumerate(records, 1):
    if seen > count:
      raise UserError(f'{place}: more lines than the {count} words of the header')
    valid = raw
    try:
      word = raw.decode()
    except UnicodeDecodeError as e:
      not_utf8 = not_utf8 or f'{place}: {raw!r:.60} is not UTF-8 at its byte {e.start}; {remedy}'
      if e.reason != 'unexpected end of data':
        raise UserError(not_utf8) from e
      valid = raw[: e.start]
      word = valid.decode() + '\ufffd'
      truncated.append(f'{place}: {word!r:.80}')
    is_utf8 |= not valid.isascii()
    if mistake := _mistake(word, illegal):
      raise UserError(f'{place}: {mistake}')
    if word in index:
      repeated.append(f'{place}: {word!r:.80}')
      continue
    if not np.isfinite(vector).all():
      i = int(np.isfinite(vector).argmin())
      raise UserError(f'{place}: value {i + 1} of {word!r:.80} is {vector[i]}')
    matrix[len(index)] = vector
    index[word] = len(index)
  if seen < count:
    raise UserError(f'{path}: it ends after {seen} of the {count} words of its header')
  if not_utf8 and not is_utf8:
    raise UserError(not_utf8)
  for places, what in (
    (repeated, 'repeated; the first vector of each counts'),
    (truncated, 'truncated within a character; U+FFFD replaces it'),
  ):
    if places:
      line = f'warning: words {what}: {len(places):,}, the first at {places[0]}'
      print(line, file=sys.stderr)
  return Vectors(tuple(index), matrix[: len(index)], index)


def _mistake(word: str, illegal: re.Pattern) -> str:
  """Returns what is wrong with a word, or ''."""
  if not word:
    return 'the word is empty'
  match = illegal.search(word)
  return f'the word {word!r:.80} contains {match[0]!r}, which is illegal there' if match else ''


def _shown(text: bytes) -> str:
  return 'binary data' if b'\0' in text else f'{text.decode(errors="replace")!r:.60}'


def _header(vectors: Vectors) -> bytes:
  return b'%d %d\n' % vectors.matrix.shape


def _lines(vectors: Vectors) -> Iterator[bytes]:
  values = ' '.join(['%.9g'] * vectors.matrix.shape[1])  # nine digits distinguish all float32
  for word, row in zip(vectors.words, vectors.matrix, strict=True):
    yield f'{word} {values % tuple(row.tolist())}\n'.encode()


def _write(path: str | Path, vectors: Vectors, chunks: Iterable[bytes]) -> None:
  """Checks that the format can hold all words, then writes the file atomically."""
  for word in vectors.words:
    if mistake := _mistake(word, _ILLEGAL):
      raise UserError(f'{path}: {mistake}')
    if surrogate := lone_surrogate(word):
      raise UserError(f'{path}: the word {word!r:.80} {surrogate}')
  try:
    write_atomic(Path(path), chunks)
  except OSError as e:
    raise UserError(f'{path} cannot be written: {e.strerror}') from e
