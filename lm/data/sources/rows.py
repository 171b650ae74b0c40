"""Rows of a file or a stream, one per line: JSON objects, cells between tabs, or plain texts."""

import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from lm.data.fingerprints import strings
from lm.data.sources.base import Example, LazySequence, check_choice, fingerprint, read_json
from lm.errors import UserError
from lm.text.files import expand_path, lone_surrogate, read_lines

# The formats, by the suffixes of files that have them.
FORMATS = {'.jsonl': 'jsonl', '.json': 'jsonl', '.tsv': 'tsv', '.txt': 'text'}
_LONGEST = 2**28  # bytes of a line


class Row(NamedTuple):
  """A row and its origin, 'FILE, line N', for errors."""

  place: str
  fields: Example


def read_rows(lines: Iterable[bytes], name: str, form: str, field: str) -> Iterator[Row]:
  """Yields the row of each line, in order; no line is skipped.

  A field is a string. JSON numbers and booleans become their JSON text, as in
  `lm.data.sources:table`; the field 'value' becomes a number; lists stay.

  Args:
    lines: UTF-8, with their line ends.
    name: of the file, for errors.
    form: 'jsonl'; 'tsv', whose first line names the fields; or 'text', a line per row.
    field: the field of a row of 'text'.

  Raises:
    UserError: a line is blank, not UTF-8 or malformed, or there is no row.
  """
  check_choice('format', form, sorted({*FORMATS.values()}))
  header: list[str] | None = None
  place = ''
  for n, line in enumerate(lines, 1):
    at = f'{name}, line {n}'
    text = _decoded(line, at, n == 1)
    if form == 'tsv' and header is None:
      header = _header(text, at)
      continue
    if not text.strip():
      raise UserError(f'{at} is blank; every line is a row')
    place = at
    if form == 'jsonl':
      fields = _object(text, place)
    elif header is not None:
      fields = _cells(text, header, place)
    else:
      fields = {field: text}
    yield Row(place, {key: _value(key, value, place) for key, value in fields.items()})
  if not place:
    raise UserError(f'{name}: no row in it')


def format_of(path: pathlib.Path, remedy: str) -> str:
  """Returns the format of a file by its suffix.

  Raises:
    UserError: the suffix is another one; `remedy` says what to give.
  """
  if path.suffix not in FORMATS:
    raise UserError(f'{path}: its name ends in none of {", ".join(FORMATS)}; give {remedy}')
  return FORMATS[path.suffix]


def file_rows(path: pathlib.Path, key: str, form: str, field: str) -> Iterator[Row]:
  """Yields the rows of a file; see `read_rows`.

  Args:
    path: of the file.
    key: the flag or argument that names it, for errors.
    form: the format.
    field: the field of a row of 'text'.

  Raises:
    UserError: it cannot be read, or as `read_rows`.
  """
  try:
    with path.open('rb') as file:
      yield from read_rows(read_lines(file, path, _LONGEST), str(path), form, field)
  except OSError as e:
    raise UserError(f'{key}={path}: {e.strerror}') from e


def rows(split: str, file: str, form: str = '', field: str = 'text') -> LazySequence:
  """Returns the rows of a file as a source; see `read_rows`. All of them are held in memory.

  Args:
    split: any name; the file has one split.
    file: its path; ~ and $VARIABLES are replaced.
    form: 'jsonl', 'tsv' or 'text'; '' for that of the suffix.
    field: the field of a row of 'text'.

  Raises:
    UserError: as `file_rows`.
  """
  del split
  path = expand_path(file, 'data.source: file')
  found = list(file_rows(path, 'data.source: file', form or format_of(path, 'form'), field))
  make, place = (lambda i: found[i].fields), (lambda i: found[i].place)
  return LazySequence(len(found), make, fingerprint([path]), place)


def _decoded(line: bytes, place: str, first: bool) -> str:
  try:
    text = line.decode('utf-8-sig' if first else 'utf-8').rstrip('\r\n')
  except UnicodeDecodeError as e:
    raise UserError(f'{place} is not UTF-8 at byte {e.start}') from e
  if '\0' in text:
    raise UserError(f'{place} is not text: it has a NUL')
  return text


def _header(text: str, place: str) -> list[str]:
  names = text.split('\t')
  for name in names:
    if not name.strip() or names.count(name) > 1:
      raise UserError(f'{place}: the header has the column {name!r} without a name or twice')
  return names


def _cells(text: str, header: list[str], place: str) -> Example:
  cells = text.split('\t')
  if len(cells) != len(header):
    raise UserError(f'{place}: {len(cells)} columns, but the header has {len(header)}')
  return dict(zip(header, cells, strict=True))


def _object(text: str, place: str) -> Example:
  try:
    found = read_json(text)
  except ValueError as e:
    raise UserError(f'{place}: not a line of JSON: {e}') from e
  if not isinstance(found, dict):
    raise UserError(f'{place}: not a JSON object, {{...}}')
  return found


def _with_start(answer: Any) -> Any:
  """Returns an answer of SQuAD's JSON as `lm.data.sources:squad` has it."""
  is_squad = isinstance(answer, dict) and 'answer_start' in answer
  return {'start': answer['answer_start'], **answer} if is_squad else answer


def _value(key: str, value: Any, place: str) -> Any:
  for half in filter(None, map(lone_surrogate, strings(value))):
    raise UserError(f'{place}: {key!r} {half}')
  if key == 'answers' and isinstance(value, list):
    return list(map(_with_start, value))
  if key == 'value' and isinstance(value, str):
    try:
      return float(value)
    except ValueError as e:
      raise UserError(f'{place}: {key!r} is {value!r:.60}, not a number') from e
  return json.dumps(value) if isinstance(value, int | float) and key != 'value' else value
