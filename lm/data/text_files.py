"""Local text: .txt, .jsonl and either of them gzipped, read by position and not held in memory."""

import array
import copy
import functools
import gzip
import hashlib
import json
import mmap
import pathlib
import re
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from lm.data import splits
from lm.errors import UserError, nearest
from lm.text.files import decode, find

_KEY = 'data.source: files'
_UNITS = {
  'file': re.compile(rb'(?s).+'),
  'line': re.compile(rb'[^\r\n]+'),
  'paragraph': re.compile(rb'[^\r\n]+(?:\r?\n[^\r\n]+)*'),
}


def text(
  split: str, files: str | tuple[str, ...], validation: float = 0.0, documents: str = 'file'
) -> Sequence[dict[str, str]]:
  """Returns the documents of local text files.

  Args:
    split: 'train' or, where a part is set aside, 'validation'.
    files: names or glob patterns; ~ and $VARIABLES are replaced. Lines of .jsonl files are objects
      with a string 'text', one document each; other files are plain text; either may end in .gz.
    validation: the share set aside: the last documents, or, when the corpus is one document in one
      file, its last characters.
    documents: what a document of plain text is: a 'file', a 'line', or a 'paragraph' (lines
      between empty ones). Blank ones are left out.

  Raises:
    UserError: files that are missing, empty, binary or not UTF-8; an unknown split.
  """
  if documents not in _UNITS:
    known = ', '.join(map(repr, _UNITS))
    raise UserError(
      f'data.source: documents={documents!r}{nearest(documents, _UNITS)}; there is {known}'
    )
  found = find(files, _KEY)
  everything = Documents(found, documents, 'text')
  if documents == 'file' and len(everything) == 1 and not is_jsonl(found[0]):
    return everything.characters(split, validation)
  return everything.select(*splits.bounds(split, len(everything), validation, f'{documents}s'))


class Documents(Sequence):
  """Documents of local files by their byte positions.

  Attributes:
    fingerprint: names, sizes and times of the files.
  """

  def __init__(self, files: list[pathlib.Path], documents: str, column: str):
    """Finds where documents begin and end.

    Args:
      files: plain text or JSON lines, possibly gzipped.
      documents: the unit of plain text, 'file', 'line' or 'paragraph'.
      column: the key of the text in JSON lines.

    Raises:
      UserError: there is no text in the files, or one cannot be read.
    """
    self._files = files
    self._column = column
    spans = array.array('q')
    for index, file in enumerate(files):
      unit = 'line' if is_jsonl(file) else documents
      for start, stop in _find_documents(_contents(file), unit):
        spans.extend((index, start, stop))
    if not spans:
      raise UserError(f'data.source: {files[0]}{" and others" * (len(files) > 1)}: no text in it')
    self._spans = np.frombuffer(spans, np.int64).reshape(-1, 3)
    self.fingerprint = fingerprint(files)

  def select(self, start: int, stop: int) -> 'Documents':
    """Returns some of the documents."""
    return self._with_spans(self._spans[start:stop])

  def characters(self, split: str, validation: float) -> 'Documents':
    """Returns a part of a single document, cut at a number of characters."""
    whole = self[0]['text']
    start, stop = splits.bounds(split, len(whole), validation, 'characters')
    _, first, _ = self._spans[0]
    part = (first + len(whole[:n].encode()) for n in (start, stop))
    return self._with_spans(np.array([[0, *part]]))

  def __len__(self) -> int:
    return len(self._spans)

  def __getitem__(self, index):
    file_index, start, stop = self._spans[index].tolist()
    file = self._files[file_index]
    document = decode(_contents(file)[start:stop], file, start)
    if is_jsonl(file):
      document = self._field(document, f'{file}, at byte {start}')
    return {'text': document}

  def _field(self, line: str, place: str) -> str:
    try:
      record = json.loads(line)
    except json.JSONDecodeError as e:
      raise UserError(f'{place}: not a line of JSON: {e}') from e
    if not isinstance(record, dict) or self._column not in record:
      there = ', '.join(map(repr, record)) if isinstance(record, dict) else 'no object'
      raise UserError(f'{place}: no key {self._column!r}; there is {there}')
    if not isinstance(record[self._column], str):
      raise UserError(f'{place}: the value of {self._column!r} is not a string')
    return record[self._column]

  def _with_spans(self, spans: np.ndarray) -> 'Documents':
    part = copy.copy(self)
    part._spans = spans
    return part


def fingerprint(files: list[pathlib.Path]) -> str:
  """Returns a digest of the names, sizes and modification times of files."""
  stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
  return hashlib.sha256(repr(stats).encode()).hexdigest()


def is_jsonl(file: pathlib.Path) -> bool:
  """Returns whether a file, by its name, has one JSON object a line."""
  return file.name.removesuffix('.gz').endswith('.jsonl')


def _contents(file: pathlib.Path) -> bytes | mmap.mmap:
  """Returns the bytes of a file: mapped, or, if gzipped, unpacked in memory."""
  return _load(file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _load(file: pathlib.Path, modified: int) -> bytes | mmap.mmap:
  try:
    if file.suffix == '.gz':
      return gzip.decompress(file.read_bytes())
    if not file.stat().st_size:
      return b''  # which cannot be mapped
    with file.open('rb') as f:
      return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
  except (EOFError, gzip.BadGzipFile, zlib.error) as e:
    raise UserError(f'{file} is not an intact gzip file: {e}') from e
  except OSError as e:
    raise UserError(f'{_KEY}: {file}: {e.strerror}') from e


def _find_documents(data: bytes | mmap.mmap, unit: str) -> Iterator[tuple[int, int]]:
  """Yields the start and stop of each document that is not blank."""
  for match in _UNITS[unit].finditer(data):
    if not match[0].isspace():
      yield match.span()
