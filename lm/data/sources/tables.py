"""Tables of task examples, and parallel text, which is aligned line by line. Files may be gzipped.

Only the byte positions of rows and lines are held in memory; each is read when it is needed.
"""

import csv
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lm.data.sources.base import (
  ByteSpans,
  Example,
  LazySequence,
  as_tuple,
  available,
  check_choice,
  has_split_files,
  split_bounds,
  split_files,
  suffix,
)
from lm.errors import UserError

_UNITS = {'.tsv': 'row', '.csv': 'record', '.jsonl': 'line'}
_EMPTY = ('error', 'skip')
_Files = str | Sequence[str]


def table(
  split: str,
  files: _Files,
  columns: Mapping[str, str | Sequence[str]],
  validation: float = 0.0,
  join: str = ' ',
  empty: str = 'error',
) -> LazySequence:
  """Returns an example for every row of a table.

  The first line of each .tsv and .csv names its columns. In .tsv a quotation mark is an ordinary
  character; .csv is quoted according to RFC 4180. Lines of .jsonl are objects. Blank lines are
  skipped.

  A field is a string; JSON numbers and booleans become their JSON text, such as 'true'. The field
  'value', for regression, becomes a float, and a JSON list of strings stays a list.

  Args:
    split: 'train', or 'validation' if `validation` is above 0. Where file names contain '{split}',
      any name that yields existing files.
    files: names or glob patterns; ~, $VARIABLES and '{split}' are replaced.
    columns: the column of each field, as in {'text': 'sentence', 'label': 'polarity'}, or several
      columns whose strings are joined, as in {'text': ('title', 'description')}.
    validation: the fraction of the rows set aside, taken from the end.
    join: separator of joined strings.
    empty: policy for rows with an empty field: 'error' or 'skip'.

  Raises:
    UserError: files that are missing, damaged or empty; no such column; an unknown split. A
      malformed row raises when it is read.
  """
  check_choice('empty', empty, _EMPTY)
  if not isinstance(columns, Mapping) or not columns:
    raise UserError(
      f"data.source: columns={columns!r} must name the column of each field, as {{'text': "
      "'sentence'}"
    )
  paths = split_files(split, files)
  for file in paths:
    if suffix(file) not in _UNITS:
      raise UserError(
        f'data.source: {file}: its name must end in one of {", ".join(_UNITS)}, or that with .gz'
      )
  spans = ByteSpans(paths, [_UNITS[suffix(file)] for file in paths])
  fields = {f: (c,) if isinstance(c, str) else tuple(c) for f, c in columns.items()}
  names = {name for several in fields.values() for name in several}
  counts = spans.counts()
  firsts = (np.cumsum(counts) - counts)[counts > 0]
  header_rows = [i for i in firsts if suffix(spans.file_of(i)) != '.jsonl']
  headers = {spans.file_of(i): _header(spans, i, names) for i in header_rows}
  rows = np.delete(np.arange(len(spans)), header_rows)
  if not len(rows):
    raise UserError(f'data.source: {spans.place(0)}: no row follows the header')
  rows = rows[slice(*split_bounds(split, files, len(rows), validation, 'rows'))]

  def read(row: int) -> Example:
    record = _record(spans, row, headers.get(spans.file_of(row)), names)
    return {
      field: _joined([record[name] for name in several], join, spans.place, row)
      for field, several in fields.items()
    }

  def make(index: int) -> Example:
    example = read(rows[index])
    for field, value in example.items():
      if not value:
        raise UserError(f"{place(index)}: {field!r} is empty; empty='skip' skips such rows")
    if 'value' in example:
      example['value'] = _to_finite_float(example['value'], place(index))
    return example

  def place(index: int) -> str:
    return spans.place(rows[index])

  count = len(rows)
  if empty == 'skip':
    rows = np.array([row for row in rows.tolist() if all(read(row).values())], np.int64)
    if not len(rows):
      raise UserError(f'data.source: {paths[0]}: every row has an empty field')
  skipped = count - len(rows)
  note = f'{skipped} rows with an empty field are skipped' if skipped else ''
  return LazySequence(len(rows), make, spans.fingerprint, place, note)


def _header(spans: ByteSpans, index: int, names: Iterable[str]) -> list[str]:
  """Returns the names of the columns, after checking that each of `names` occurs once."""
  header = _cells(spans, index)
  for name in names:
    if header.count(name) != 1:
      wrong, near = ('two columns', '') if name in header else ('no column', name)
      raise UserError(f'{spans.place(index)}: {wrong} {name!r}{available(near, header)}')
  return header


def _record(
  spans: ByteSpans, row: int, header: list[str] | None, names: Iterable[str]
) -> dict[str, Any]:
  """Returns the values of a row by the names of their columns."""
  if header is None:
    return spans.json_object(row, names)
  cells = _cells(spans, row)
  if len(cells) != len(header):
    raise UserError(f'{spans.place(row)}: {len(cells)} columns, but the header has {len(header)}')
  return dict(zip(header, cells, strict=True))


def _joined(values: list[Any], join: str, place: Callable[[int], str], row: int) -> str | list[str]:
  """Returns the non-blank values joined to one string, or a list of strings unchanged."""
  first = values[0]
  if len(values) == 1 and isinstance(first, list) and all(isinstance(v, str) for v in first):
    return first
  for value in values:
    if not isinstance(value, str | int | float):
      raise UserError(f'{place(row)}: {value!r:.80} is no string, number or list of strings')
  strings = (value if isinstance(value, str) else json.dumps(value) for value in values)
  return join.join(string for string in strings if string.strip())


def _to_finite_float(value: str | list[str], place: str) -> float:
  try:
    # Python accepts '1_000' as a number; other programs do not.
    number = float(value) if isinstance(value, str) and '_' not in value else math.nan
  except ValueError:
    number = math.nan
  if not math.isfinite(number):
    raise UserError(f"{place}: 'value' is {value!r}, not a finite number")
  return number


def _cells(spans: ByteSpans, index: int) -> list[str]:
  """Returns the strings of a row of .tsv or .csv."""
  if suffix(spans.file_of(index)) == '.tsv':
    return spans[index].split('\t')
  try:
    return next(csv.reader([spans[index]], strict=True))
  except csv.Error as e:
    raise UserError(f'{spans.place(index)}: malformed CSV record: {e}') from e


def parallel(
  split: str, source: _Files, target: _Files, validation: float = 0.0, empty: str = 'error'
) -> Sequence[Example]:
  """Returns {'source', 'target'} for each line of two aligned texts.

  Args:
    split: 'train', or 'validation' if `validation` is above 0. Where file names contain '{split}',
      any name that yields existing files.
    source: names or glob patterns of files; ~, $VARIABLES and '{split}' are replaced. They may be
      gzipped.
    target: the files of the other side, in the same order.
    validation: the fraction of the lines set aside, taken from the end.
    empty: policy for pairs with a blank side: 'error' or 'skip'.

  Raises:
    UserError: files that are missing, damaged, empty or not aligned; an unknown split.
  """
  files = {'source': source, 'target': target}
  return _pairs(split, files, [('source', 'target')], validation, empty, with_languages=False)


def directions(
  split: str,
  files: Mapping[str, _Files],
  pairs: Sequence[tuple[str, str]],
  validation: float = 0.0,
  empty: str = 'error',
) -> Sequence[Example]:
  """Returns examples of several directions of translation between aligned texts.

  They are {'source', 'target', 'source_language', 'target_language'}, one direction after another.
  The same lines of every language are set aside. No sentence of 'validation' is thus in 'train' in
  another direction.

  Args:
    split: 'train', or 'validation' if `validation` is above 0. Where file names contain '{split}',
      any name that yields existing files.
    files: names or glob patterns of the files of each language; ~, $VARIABLES and '{split}' are
      replaced.
    pairs: source and target language of each direction.
    validation: the fraction of the lines set aside, taken from the end.
    empty: policy for pairs with a blank side: 'error' or 'skip'.

  Raises:
    UserError: a language without files; files that are missing, damaged, empty or not aligned; an
      unknown split.
  """
  if not pairs:
    raise UserError("data.source: pairs is empty; give some as in (('de', 'en'), ('en', 'fr'))")
  for language in itertools.chain.from_iterable(pairs):
    if language not in files:
      raise UserError(f'data.source: pairs: no files of {language!r}{available(language, files)}')
  used = {language: files[language] for pair in pairs for language in pair}
  return _pairs(split, used, pairs, validation, empty, with_languages=True)


def _pairs(
  split: str,
  files: Mapping[str, _Files],
  pairs: Sequence[tuple[str, str]],
  validation: float,
  empty: str,
  with_languages: bool,
) -> LazySequence:
  """Returns the examples of all pairs of sides, one pair after another."""
  check_choice('empty', empty, _EMPTY)
  sides, lines = _aligned(split, files, validation)
  chosen = [lines] * len(pairs)
  if empty == 'skip':
    blank = {name: np.array([side.is_blank(i) for i in lines]) for name, side in sides.items()}
    chosen = [lines[~(blank[source] | blank[target])] for source, target in pairs]
  skipped = len(lines) * len(pairs) - sum(map(len, chosen))
  pair_of, line_of = np.repeat(np.arange(len(pairs)), [*map(len, chosen)]), np.concatenate(chosen)

  def make(index: int) -> Example:
    (source, target), line = pairs[pair_of[index]], line_of[index]
    example = {'source': _text(sides[source], line), 'target': _text(sides[target], line)}
    languages = {'source_language': source, 'target_language': target}
    return example | languages if with_languages else example

  def place(index: int) -> str:
    return sides[pairs[pair_of[index]][0]].place(line_of[index])

  fingerprint = ' '.join(side.fingerprint for side in sides.values())
  note = f'{skipped} pairs with a blank side are skipped' if skipped else ''
  return LazySequence(len(line_of), make, fingerprint, place, note)


def _aligned(
  split: str, files: Mapping[str, _Files], validation: float
) -> tuple[dict[str, ByteSpans], np.ndarray]:
  """Returns all lines of each side, and the indices of those in the split."""
  names = [name for given in files.values() for name in as_tuple(given)]
  has_split_files(names)
  paths_of = {
    side: split_files(split, given, f'data.source: {side}') for side, given in files.items()
  }
  sides = {side: ByteSpans(paths, ['every line'] * len(paths)) for side, paths in paths_of.items()}
  first, *others = sides.values()
  for other in others:
    _check_aligned(first, other)
  return sides, np.arange(*split_bounds(split, names, len(first), validation, 'lines'))


def _check_aligned(one: ByteSpans, other: ByteSpans) -> None:
  """Raises UserError if two sides differ in their number of files, or of lines in a file."""
  if len(one.files) != len(other.files):
    raise UserError(
      f'data.source: {one.files[0]} is one of {len(one.files)} files, but {other.files[0]} is one '
      f'of {len(other.files)}; both sides need the same number'
    )
  for *files, a, b in zip(one.files, other.files, one.counts(), other.counts(), strict=True):
    if a != b:
      (fewer, shorter), (more, longer) = sorted(zip((a, b), files, strict=True))
      raise UserError(
        f'data.source: {longer}, line {fewer + 1} has no counterpart: {shorter} has {fewer} lines, '
        f'but this file has {more}'
      )


def _text(side: ByteSpans, line: int) -> str:
  if side.is_blank(line):
    raise UserError(f"{side.place(line)} is blank; empty='skip' skips such lines")
  return side[line].rstrip('\r\n')
