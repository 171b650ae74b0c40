"""Building blocks of sources: the files of a split, byte spans of files, and lazy sequences.

'{split}' in a file name is replaced by the name of the split. Without it the files hold one corpus,
whose last part becomes the split 'validation'; the argument `validation` is the fraction of that
part. Embedded sources have no files: a hash of each item's name determines its split.

Texts of files, such as lines, are byte spans; their contents are not held in memory. Gzipped files
are unpacked into a temporary file and memory-mapped like others.
"""

import array
import copy
import errno
import fractions
import functools
import gzip
import hashlib
import json
import math
import mmap
import os
import pathlib
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

import numpy as np

from lm.data.fingerprints import strings
from lm.errors import UserError, did_you_mean
from lm.text.files import decode, expand_path, find_files, glob_files, lone_surrogate, text_offset

Example = dict[str, Any]

_SPLIT = '{split}'


class LazySequence(Sequence):
  """Examples computed from their indices.

  Attributes:
    fingerprint: changes whenever the examples do.
    place: names the origin of the example at an index, for errors; None for sources without files.
    note: count and kind of skipped records, '' for none.
  """

  def __init__(
    self,
    size: int,
    make: Callable[[int], Example],
    fingerprint: str,
    place: Callable[[int], str] | None = None,
    note: str = '',
  ):
    self._indices = range(size)
    self._make = make
    self.fingerprint, self.place, self.note = fingerprint, place, note

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index):
    return self._make(self._indices[index])


class LazyLoad(Sequence):
  """Examples that a function makes, all of them at the first access.

  Attributes:
    fingerprint: changes whenever the examples do.
  """

  def __init__(self, make: Callable[[], Iterable[Example]], fingerprint: str):
    self._examples = functools.cache(lambda: list(make()))
    self.fingerprint = fingerprint

  def __len__(self) -> int:
    return len(self._examples())

  def __getitem__(self, index):
    return self._examples()[index]


def available(name: str, known: Iterable[str]) -> str:
  """Returns the end of a message: the nearest of the known names, and all of them."""
  known = list(known)
  return f'{did_you_mean(name, known)}; available: {", ".join(map(repr, known))}'


def check_split(split: str, known: Sequence[str], remedy: str = '') -> None:
  """Raises UserError if a source has no split of that name."""
  if split not in known:
    raise UserError(f'data: no split {split!r}{available(split, known)}{remedy}')


def check_choice(key: str, value: str, known: Sequence[str]) -> None:
  """Raises UserError if an argument of a source is not one of its known values."""
  if value not in known:
    raise UserError(f'data.source: {key}={value!r}{available(value, known)}')


def split_files(
  split: str, names: str | Sequence[str], key: str = 'data.source: files'
) -> list[pathlib.Path]:
  """Returns the files of a split, or of the entire corpus if no name contains '{split}'.

  Args:
    split: replaces '{split}'.
    names: names or glob patterns; ~ and $VARIABLES are replaced.
    key: names the argument in errors.

  Raises:
    UserError: a name matches no file.
  """
  paths = []
  for name in as_tuple(names):
    expand_path(name, key)  # errors show the name as in the config
    try:
      paths += find_files(name.replace(_SPLIT, split), key)
    except UserError as e:
      if _SPLIT not in name:
        raise
      others = sorted(path.name for path in glob_files(expand_path(name.replace(_SPLIT, '*'), key)))
      wanted = pathlib.PurePath(name.replace(_SPLIT, split)).name
      raise UserError(f'{e}{available(wanted, others) if others else ""}') from e
  return paths


def has_split_files(names: str | Sequence[str]) -> bool:
  """Returns whether each split has its own files, so that all names contain '{split}'.

  Raises:
    UserError: only some of the names do.
  """
  without = [name for name in as_tuple(names) if _SPLIT not in name]
  if 0 < len(without) < len(as_tuple(names)):
    raise UserError(f"data.source: {without[0]!r} does not contain '{{split}}', but others do")
  return not without


def split_bounds(
  split: str, names: str | Sequence[str], count: int, validation: float, unit: str
) -> tuple[int, int]:
  """Returns (start, stop) of a split among the items of its files; `stop` is exclusive.

  If the names have no '{split}', 'train' is the first part of the items, and 'validation' the rest.

  Args:
    split: name of the split.
    names: names of the files, all with '{split}' or none.
    count: items in the files.
    validation: the fraction set aside, rounded up to entire items; 0 where names have '{split}'.
    unit: name of the items, for errors.

  Raises:
    UserError: the split does not exist, or one of the two splits would be empty.
  """
  if has_split_files(names):
    if validation:
      raise UserError(
        f"data.source: validation={validation} sets a part aside, but '{{split}}' in file names "
        'selects the files of each split; use only one of the two'
      )
    return 0, count
  if not _is_number(validation) or not 0 <= validation < 1:
    raise UserError(f'data.source: validation={validation!r} must satisfy 0 <= validation < 1')
  if not validation:
    check_split(split, ['train'], '; validation=0.1 would set 10 % aside')
    return 0, count
  check_split(split, ['train', 'validation'])
  # As a decimal fraction: 0.2 means 1/5, which binary floating point cannot represent.
  cut = count - math.ceil(fractions.Fraction(str(validation)) * count)
  if not 0 < cut < count:
    raise UserError(f'data.source: validation={validation} of {count} {unit} leaves a split empty')
  return (0, cut) if split == 'train' else (cut, count)


def hash_split(split: str, validation: float) -> Callable[[str], bool]:
  """Returns a function from the name of an item to whether the item belongs to a split.

  The split depends only on a hash of the name. It stays when other items are added or removed, and
  a larger fraction includes all items of a smaller one.

  Raises:
    UserError: there is no such split or fraction.
  """
  if not _is_number(validation) or not 0 < validation < 1:
    raise UserError(f'data.source: validation={validation!r} must satisfy 0 < validation < 1')
  check_split(split, ['train', 'validation'])
  return lambda name: (_hash_fraction(name) < validation) == (split == 'validation')


def _hash_fraction(name: str) -> float:
  return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], 'big') / 2**32


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def as_tuple(names: str | Sequence[str]) -> tuple[str, ...]:
  """Returns names as a tuple; a string is a single name."""
  return (names,) if isinstance(names, str) else tuple(names)


# Units of a file. Blank units are skipped, but not those of 'every line', which include line ends.
# The quantifiers are possessive, as others need memory for each repetition.
UNITS = {
  'file': re.compile(rb'(?s).+'),
  'line': re.compile(rb'[^\r\n]+'),
  # A line of cells between tabs; all of them may be empty.
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
    files: the files with the texts.
    fingerprint: digest of the names, sizes and modification times of the files.
  """

  def __init__(self, files: Sequence[pathlib.Path], units: Sequence[str]):
    """Finds the spans.

    Args:
      files: plain files, or gzipped files with names ending in .gz.
      units: for each file, the key of `UNITS` that divides it.

    Raises:
      UserError: the files have no text, or a file cannot be read.
    """
    self.files = files
    spans = array.array('q')
    for index, (file, unit) in enumerate(zip(files, units, strict=True)):
      data = _contents(file)
      # A search copies nothing; a line may be a gigabyte long.
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
      # Raises the same error with the line number, for which all line ends before it are counted.
      return decode(data, file, start, 1 + _line_ends(_contents(file), start))

  def file_of(self, index: int) -> pathlib.Path:
    """Returns the file of a span."""
    return self.files[self._spans[index, 0]]

  def place(self, index: int, line: int = 0) -> str:
    """Returns 'FILE, line N' for errors, with N from 1; `line` 0 is the first line of the span."""
    file, start, _ = self._span(index)
    return f'{file}, line {_line_ends(_contents(file), start) + 1 + line}'

  def json_object(self, index: int, keys: Iterable[str]) -> dict[str, Any]:
    """Returns the JSON object in a span.

    Raises:
      UserError: the span is no JSON object, lacks a key, or has a lone surrogate under a key.
    """
    try:
      record = read_json(self[index])
    except ValueError as e:
      raise UserError(f'{self.place(index)}: not a line of JSON: {e}') from e
    if not isinstance(record, dict):
      raise UserError(f'{self.place(index)}: not a JSON object, {{...}}')
    for key in keys:
      if key not in record:
        raise UserError(f'{self.place(index)}: no key {key!r}{available(key, record)}')
      for half in filter(None, map(lone_surrogate, strings(record[key]))):
        raise UserError(f'{self.place(index)}: {key!r} {half}')
    return record

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
    """Returns the count of characters of a UTF-8 span, without copying it."""
    return sum(len(begins) for begins in self._begins(index))

  def cut(self, index: int, start: int, stop: int) -> 'ByteSpans':
    """Returns one span alone, reduced to its characters from `start` to `stop`, exclusive."""
    part = copy.copy(self)
    file, _, end = self._spans[index].tolist()
    places, seen = [], 0
    for begins in self._begins(index):
      places += [int(begins[n - seen]) for n in (start, stop) if seen <= n < seen + len(begins)]
      seen += len(begins)
    # No character begins at the end of the span, so `end` represents a `stop` there.
    part._spans = np.array([[file, *places, end][:3]])
    return part

  def counts(self) -> np.ndarray:
    """Returns the count of spans of each file, (files,)."""
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
    ValueError: the text is invalid, nested too deeply, or has an integer of too many digits.
  """
  try:
    return json.loads(text)
  except json.JSONDecodeError:
    raise
  except RecursionError as e:
    raise ValueError('it is nested too deeply') from e
  except ValueError as e:
    raise ValueError('it has an integer of more than 4,300 digits') from e


def fingerprint(files: Sequence[pathlib.Path]) -> str:
  """Returns a digest of the names, sizes and modification times of files."""
  stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
  return hashlib.sha256(repr(stats).encode()).hexdigest()


def suffix(file: pathlib.Path) -> str:
  """Returns the suffix of a file, such as '.jsonl', without a final '.gz'."""
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
  """Returns the memory-mapped contents of a gzip file, which is unpacked block by block."""
  with tempfile.TemporaryFile() as unpacked:
    try:
      with gzip.open(file) as packed:
        shutil.copyfileobj(packed, unpacked, _BLOCK)
      unpacked.flush()
    except OSError as e:
      if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise
      raise UserError(
        f'{file}: unpacked, it does not fit into {tempfile.gettempdir()} ({e.strerror} after '
        f'{unpacked.tell():,} bytes); set TMPDIR to another folder'
      ) from e
    return _mapped(unpacked)


def _mapped(file: IO[bytes]) -> bytes | mmap.mmap:
  if not os.fstat(file.fileno()).st_size:
    return b''  # an empty file cannot be mapped
  return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _line_ends(data: bytes | mmap.mmap, stop: int) -> int:
  """Returns the count of line ends before the byte `stop`, counted block by block."""
  starts = range(0, stop, _BLOCK)
  return sum(data[start : min(start + _BLOCK, stop)].count(b'\n') for start in starts)
