"""Pieces of local files, such as lines, by their byte positions; they are not held in memory.

Files may be gzipped; then they are unpacked into a temporary file, which is mapped like others.
"""

import array
import copy
import errno
import functools
import gzip
import hashlib
import json
import mmap
import os
import pathlib
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import numpy as np

from lm.errors import UserError, did_you_mean
from lm.text.files import decode, lone_surrogate, text_offset

# What a file is cut into. Pieces that are blank are left out, except among 'every line', which
# are pieces with the line end. Repeats are possessive: else the memory grows with their number.
UNITS = {
  'file': re.compile(rb'(?s).+'),
  'line': re.compile(rb'[^\r\n]+'),
  # A line of cells between tabs, which may all be empty.
  'row': re.compile(rb'[^\r\n]+'),
  'every line': re.compile(rb'[^\n]*\n|[^\n]+'),
  'paragraph': re.compile(rb'[^\r\n]++(?:\r?\n[^\r\n]++)*+'),
  # A line of CSV, which goes on while a quotation mark is open.
  'record': re.compile(rb'(?:[^"\r\n]++|"[^"]*+(?:"|\Z))++'),
}


_SOLID = re.compile(rb'\S')
_CELL = re.compile(rb'\S|\t')
_BLOCK = 2**22  # bytes looked at together
LONGEST = 2**31 - 1  # bytes of a text: batches have int32


class Pieces(Sequence):
  """Texts by their byte positions in files.

  Attributes:
    files: in which they lie.
    fingerprint: names, sizes and times of the files.
  """

  def __init__(self, files: Sequence[pathlib.Path], units: Sequence[str]):
    """Finds where pieces begin and end.

    Args:
      files: plain files, or gzipped ones, whose names end in .gz.
      units: of each file, what it is cut into: a key of `UNITS`.

    Raises:
      UserError: there is no text in the files, or one cannot be read.
    """
    self.files = files
    spans = array.array('q')
    for index, (file, unit) in enumerate(zip(files, units, strict=True)):
      data = _contents(file)
      for start, stop in _find(data, unit, text_offset(data[:4], file)):
        spans.extend((index, start, stop))
    if not spans:
      raise UserError(f'data.source: {files[0]}{" and others" * (len(files) > 1)}: no text in it')
    self._spans = np.frombuffer(spans, np.int64).reshape(-1, 3)
    self.fingerprint = fingerprint(files)

  def __len__(self) -> int:
    return len(self._spans)

  def __getitem__(self, index):
    _, start, stop = self._spans[index].tolist()
    if stop - start > LONGEST:
      raise UserError(
        f'{self.place(index)}: {stop - start:,} bytes, and {LONGEST:,} are the most that are read '
        'together: divide it into several'
      )
    data, file, start = self._bytes(index)
    try:
      return decode(data, file, start)
    except UserError:
      # Once more, and with the line, for which all before is read.
      return decode(data, file, start, 1 + _line_ends(_contents(file), start))

  def file_of(self, index: int) -> pathlib.Path:
    """Returns the file that a piece is from."""
    return self.files[self._spans[index, 0]]

  def place(self, index: int, line: int = 0) -> str:
    """Returns 'FILE, line N' of a piece, or of a line of it, for errors."""
    file_index, start, _ = self._spans[index].tolist()
    before = _line_ends(_contents(self.files[file_index]), start)
    return f'{self.files[file_index]}, line {before + 1 + line}'

  def json_object(self, index: int, keys: Iterable[str]) -> dict[str, Any]:
    """Returns the JSON object that a piece is.

    Raises:
      UserError: it is none, has not all of the keys, or has half a character under one of them.
    """
    try:
      found = read_json(self[index])
    except ValueError as e:
      raise UserError(f'{self.place(index)}: not a line of JSON: {e}') from e
    if not isinstance(found, dict):
      raise UserError(f'{self.place(index)}: not an object of JSON, {{...}}')
    for key in keys:
      if key not in found:
        there = ', '.join(map(repr, found))
        near = did_you_mean(key, found)
        raise UserError(f'{self.place(index)}: no key {key!r}{near}; there is {there}')
      for half in filter(None, map(lone_surrogate, strings(found[key]))):
        raise UserError(f'{self.place(index)}: {key!r} {half}')
    return found

  def is_blank(self, index: int) -> bool:
    """Returns whether there is nothing but white space in a piece."""
    return not self._bytes(index)[0].strip()

  def select(self, chosen: slice | np.ndarray) -> 'Pieces':
    """Returns some of the pieces."""
    part = copy.copy(self)
    part._spans = self._spans[chosen]
    return part

  def characters(self, index: int) -> int:
    """Returns how many characters a piece of UTF-8 has; nothing of it is copied."""
    return sum(len(begins) for begins in self._begins(index))

  def cut(self, index: int, start: int, stop: int) -> 'Pieces':
    """Returns some characters of one piece, `stop` exclusive, as the only piece."""
    part = copy.copy(self)
    file, _, end = self._spans[index].tolist()
    places, seen = [], 0
    for begins in self._begins(index):
      places += [int(begins[n - seen]) for n in (start, stop) if seen <= n < seen + len(begins)]
      seen += len(begins)
    # Where the piece ends no character begins.
    part._spans = np.array([[file, *places, end][:3]])
    return part

  def _begins(self, index: int) -> Iterator[np.ndarray]:
    """Yields the places in the file where characters of a piece begin, a block at a time."""
    file, start, stop = self._spans[index].tolist()
    data = np.frombuffer(_contents(self.files[file]), np.uint8)
    for at in range(start, stop, _BLOCK):
      inner = data[at : min(at + _BLOCK, stop)] & 0xC0 == 0x80  # not the first byte
      yield at + np.flatnonzero(~inner)

  def counts(self) -> np.ndarray:
    """Returns the (files,) numbers of pieces of each file."""
    return np.bincount(self._spans[:, 0], minlength=len(self.files))

  def _bytes(self, index: int) -> tuple[bytes, pathlib.Path, int]:
    file_index, start, stop = self._spans[index].tolist()
    file = self.files[file_index]
    return _contents(file)[start:stop], file, start


def read_json(text: str) -> Any:
  """Returns what JSON says.

  Raises:
    ValueError: it is none, or more than can be read: nested too deep, a number of too many digits.
  """
  try:
    return json.loads(text)
  except RecursionError as e:
    raise ValueError('it is nested too deep') from e
  except json.JSONDecodeError:
    raise
  except ValueError as e:
    raise ValueError('it has a whole number of more than 4,300 digits') from e


def strings(value: Any) -> Iterator[str]:
  """Yields the strings in a value of JSON."""
  left = [value]
  while left:
    value = left.pop()
    if isinstance(value, str):
      yield value
    elif isinstance(value, list | dict):
      left += value.values() if isinstance(value, dict) else value


def fingerprint(files: Sequence[pathlib.Path]) -> str:
  """Returns a digest of the names, sizes and modification times of files."""
  stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
  return hashlib.sha256(repr(stats).encode()).hexdigest()


def suffix(file: pathlib.Path) -> str:
  """Returns the suffix of a file, such as '.jsonl', without regard to a .gz after it."""
  return pathlib.PurePath(file.name.removesuffix('.gz')).suffix


def _contents(file: pathlib.Path) -> bytes | mmap.mmap:
  """Returns the bytes of a file, mapped; if it is gzipped, those that it is unpacked to."""
  return _load(file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _load(file: pathlib.Path, modified: int) -> bytes | mmap.mmap:
  try:
    if file.suffix == '.gz':
      return _unpacked(file)
    with file.open('rb') as f:
      return _mapped(f)
  except (EOFError, gzip.BadGzipFile, zlib.error) as e:
    raise UserError(f'{file} is not an intact gzip file: {e}') from e
  except OSError as e:
    raise UserError(f'data.source: files: {file}: {e.strerror}') from e


def _unpacked(file: pathlib.Path) -> bytes | mmap.mmap:
  """Returns what is packed in a gzip file, of which no more than a block is in memory."""
  folder = tempfile.gettempdir()
  with tempfile.TemporaryFile() as unpacked:
    try:
      with gzip.open(file) as packed:
        shutil.copyfileobj(packed, unpacked, _BLOCK)
      unpacked.flush()
    except OSError as e:
      if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise
      raise UserError(
        f'{file}: unpacked it does not fit into {folder} ({e.strerror} after {unpacked.tell():,} '
        'bytes); the variable TMPDIR names another folder'
      ) from e
    return _mapped(unpacked)


def _mapped(file: IO[bytes]) -> bytes | mmap.mmap:
  if not os.fstat(file.fileno()).st_size:
    return b''  # which cannot be mapped
  return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _line_ends(data: bytes | mmap.mmap, stop: int) -> int:
  """Returns how many lines end before the byte `stop`; no more than a block is copied."""
  starts = range(0, stop, _BLOCK)
  return sum(data[start : min(start + _BLOCK, stop)].count(b'\n') for start in starts)


def _find(data: bytes | mmap.mmap, unit: str, first: int) -> Iterator[tuple[int, int]]:
  """Yields the start and stop of each piece from the byte `first` on."""
  for match in UNITS[unit].finditer(data, first):
    # Sought and not cut out: a line may be a gigabyte.
    solid = _CELL if unit == 'row' else _SOLID
    if unit == 'every line' or solid.search(data, *match.span()):
      yield match.span()
