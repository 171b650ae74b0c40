"""Texts as byte spans of local files, such as lines; their contents are not held in memory.

Files may be gzipped; they are unpacked into a temporary file and memory-mapped like others.
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

from lm.data.sources.base import available
from lm.errors import UserError
from lm.text.files import decode, lone_surrogate, text_offset

# Units of a file. Blank ones are skipped, except for 'every line', which includes the line end.
# Quantifiers are possessive; others need memory in proportion to the number of repetitions.
UNITS = {
  'file': re.compile(rb'(?s).+'),
  'line': re.compile(rb'[^\r\n]+'),
  # A line of cells between tabs, which may all be empty.
  'row': re.compile(rb'[^\r\n]+'),
  'every line': re.compile(rb'[^\n]*\n|[^\n]+'),
  'paragraph': re.compile(rb'[^\r\n]++(?:\r?\n[^\r\n]++)*+'),
  # A line of CSV, which continues within quotation marks.
  'record': re.compile(rb'(?:[^"\r\n]++|"[^"]*+(?:"|\Z))++'),
}
_SOLID = re.compile(rb'\S')
_CELL = re.compile(rb'\S|\t')
_BLOCK = 2**22  # bytes processed together
LONGEST = 2**31 - 1  # bytes of a text, as batches hold int32


class ByteSpans(Sequence):
  """Texts by their byte positions in files.

  Attributes:
    files: that contain them.
    fingerprint: of names, sizes and times of the files.
  """

  def __init__(self, files: Sequence[pathlib.Path], units: Sequence[str]):
    """Finds the spans.

    Args:
      files: plain files, or gzipped files with names ending in .gz.
      units: of each file: a key of `UNITS`.

    Raises:
      UserError: there is no text in the files, or one cannot be read.
    """
    self.files = files
    spans = array.array('q')
    for index, (file, unit) in enumerate(zip(files, units, strict=True)):
      data = _contents(file)
      # A search copies nothing: a line may have a gigabyte.
      solid = _CELL if unit == 'row' else _SOLID
      for match in UNITS[unit].finditer(data, text_offset(data[:4], file)):
        if unit == 'every line' or solid.search(data, *match.span()):
          spans.extend((index, *match.span()))
    if not spans:
      raise UserError(f'data.source: {files[0]}{" and others" * (len(files) > 1)}: no text in it')
    self._spans = np.frombuffer(spans, np.int64).reshape(-1, 3)
    self.fingerprint = fingerprint(files)

  def __len__(self) -> int:
    return len(self._spans)

  def __getitem__(self, index):
    file, start, stop = self._span(index)
    if stop - start > LONGEST:
      raise UserError(
        f'{self.place(index)}: {stop - start:,} bytes; the maximum is {LONGEST:,}: divide it into '
        'several'
      )
    data = _contents(file)[start:stop]
    try:
      return decode(data, file, start)
    except UserError:
      # Again, with the line, which requires reading everything before.
      return decode(data, file, start, 1 + _line_ends(_contents(file), start))

  def file_of(self, index: int) -> pathlib.Path:
    """Returns the file of a span."""
    return self.files[self._spans[index, 0]]

  def place(self, index: int, line: int = 0) -> str:
    """Returns 'FILE, line N' of a span, or of a line in it, for errors."""
    file, start, _ = self._span(index)
    return f'{file}, line {_line_ends(_contents(file), start) + 1 + line}'

  def json_object(self, index: int, keys: Iterable[str]) -> dict[str, Any]:
    """Returns the JSON object in a span.

    Raises:
      UserError: there is none, it lacks one of the keys, or has a lone surrogate under one of them.
    """
    try:
      found = read_json(self[index])
    except ValueError as e:
      raise UserError(f'{self.place(index)}: not a line of JSON: {e}') from e
    if not isinstance(found, dict):
      raise UserError(f'{self.place(index)}: not a JSON object, {{...}}')
    for key in keys:
      if key not in found:
        raise UserError(f'{self.place(index)}: no key {key!r}{available(key, found)}')
      for half in filter(None, map(lone_surrogate, strings(found[key]))):
        raise UserError(f'{self.place(index)}: {key!r} {half}')
    return found

  def is_blank(self, index: int) -> bool:
    """Returns whether a span has only white space."""
    file, start, stop = self._span(index)
    return not _contents(file)[start:stop].strip()

  def select(self, chosen: slice | np.ndarray) -> 'ByteSpans':
    """Returns some of the spans."""
    part = copy.copy(self)
    part._spans = self._spans[chosen]
    return part

  def characters(self, index: int) -> int:
    """Returns the number of characters of a UTF-8 span, without copying it."""
    return sum(len(begins) for begins in self._begins(index))

  def cut(self, index: int, start: int, stop: int) -> 'ByteSpans':
    """Returns the characters from `start` to `stop`, exclusive, of one span as the only span."""
    part = copy.copy(self)
    file, _, end = self._spans[index].tolist()
    places, seen = [], 0
    for begins in self._begins(index):
      places += [int(begins[n - seen]) for n in (start, stop) if seen <= n < seen + len(begins)]
      seen += len(begins)
    # No character begins at the end of the span.
    part._spans = np.array([[file, *places, end][:3]])
    return part

  def counts(self) -> np.ndarray:
    """Returns the number of spans of each file, (files,)."""
    return np.bincount(self._spans[:, 0], minlength=len(self.files))

  def _begins(self, index: int) -> Iterator[np.ndarray]:
    """Yields the positions in the file of the characters of a span, block by block."""
    file, start, stop = self._span(index)
    data = np.frombuffer(_contents(file), np.uint8)
    for at in range(start, stop, _BLOCK):
      continuation = data[at : min(at + _BLOCK, stop)] & 0xC0 == 0x80
      yield at + np.flatnonzero(~continuation)

  def _span(self, index: int) -> tuple[pathlib.Path, int, int]:
    file, start, stop = self._spans[index].tolist()
    return self.files[file], start, stop


def read_json(text: str) -> Any:
  """Returns the value of a JSON text.

  Raises:
    ValueError: it is invalid, nested too deeply, or has an integer of too many digits.
  """
  try:
    return json.loads(text)
  except RecursionError as e:
    raise ValueError('it is nested too deeply') from e
  except json.JSONDecodeError:
    raise
  except ValueError as e:
    raise ValueError('it has an integer of more than 4,300 digits') from e


def strings(value: Any) -> Iterator[str]:
  """Yields the strings in a JSON value."""
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
  """Returns the suffix of a file, such as '.jsonl', ignoring a .gz after it."""
  return pathlib.PurePath(file.name.removesuffix('.gz')).suffix


def _contents(file: pathlib.Path) -> bytes | mmap.mmap:
  """Returns the memory-mapped bytes of a file, unpacked if it is gzipped."""
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
  """Returns the contents of a gzip file, with at most a block in memory."""
  with tempfile.TemporaryFile() as unpacked:
    try:
      with gzip.open(file) as packed:
        shutil.copyfileobj(packed, unpacked, _BLOCK)
      unpacked.flush()
    except OSError as e:
      if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise
      raise UserError(
        f'{file}: unpacked it does not fit into {tempfile.gettempdir()} ({e.strerror} after '
        f'{unpacked.tell():,} bytes); set TMPDIR to another folder'
      ) from e
    return _mapped(unpacked)


def _mapped(file: IO[bytes]) -> bytes | mmap.mmap:
  if not os.fstat(file.fileno()).st_size:
    return b''  # an empty file cannot be mapped
  return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _line_ends(data: bytes | mmap.mmap, stop: int) -> int:
  """Returns the number of lines that end before the byte `stop`, block by block."""
  starts = range(0, stop, _BLOCK)
  return sum(data[start : min(start + _BLOCK, stop)].count(b'\n') for start in starts)
