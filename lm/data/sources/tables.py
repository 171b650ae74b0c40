"""Tables of task examples: .tsv, .csv and .jsonl, optionally gzipped, read by position."""

import copy
import csv
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.data.sources.base import Example, check_choice, split_bounds, split_files
from lm.data.sources.byte_spans import ByteSpans, suffix
from lm.errors import UserError, did_you_mean

_UNITS = {'.tsv': 'row', '.csv': 'record', '.jsonl': 'line'}
EMPTY = ('error', 'skip')


def table(
  split: str,
  files: str | Sequence[str],
  columns: Mapping[str, str | Sequence[str]],
  validation: float = 0.0,
  join: str = ' ',
  empty: str = 'error',
) -> 'Table':
  """Returns an example for every row of a table.

  The first line of each .tsv and .csv names its columns. In .tsv a quotation mark is an ordinary
  character; .csv is quoted according to RFC 4180. Lines of .jsonl are objects. Blank lines are
  skipped.

  A field is a string; JSON numbers and booleans become strings as JSON writes them. A field called
  'value', for regression, becomes a float, and a JSON list of strings stays a list.

  Args:
    split: 'train'; 'validation' if a part is set aside; any name that replaces '{split}'.
    files: names or glob patterns; ~, $VARIABLES and '{split}' are replaced.
    columns: the column of each field, as {'text': 'sentence', 'label': 'polarity'}, or several
      columns whose strings are joined, as {'text': ('title', 'description')}.
    validation: the fraction set aside, the last rows.
    join: separator of joined strings.
    empty: policy for rows with an empty field: 'error' or 'skip'.

  Raises:
    UserError: files that are missing, damaged or empty; no such column; an unknown split. A
      malformed row raises when it is read.
  """
  check_choice('empty', empty, EMPTY)
  if not isinstance(columns, Mapping) or not columns:
    raise UserError(
      f"data.source: columns={columns!r} must name the column of each field, as {{'text': "
      "'sentence'}"
    )
  found = split_files(split, files)
  for file in found:
    if suffix(file) not in _UNITS:
      known = ', '.join(_UNITS)
      raise UserError(f'data.source: {file}: its name must end in one of {known}, or that with .gz')
  spans = ByteSpans(found, [_UNITS[suffix(file)] for file in found])
  everything = Table(spans, columns, join)
  bounds = split_bounds(split, files, len(everything), validation, 'rows')
  chosen = everything.select(np.arange(*bounds))
  return chosen.complete() if empty == 'skip' else chosen


class Table(Sequence):
  """Some columns of the rows of tables.

  Attributes:
    fingerprint: of names, sizes and times of the files.
    note: how many rows `complete` skipped, '' for none.
  """

  note = ''

  def __init__(self, spans: ByteSpans, columns: Mapping[str, str | Sequence[str]], join: str):
    """Reads the headers.

    Args:
      spans: lines of .tsv and .jsonl and records of .csv.
      columns: the names of the columns of each field.
      join: separator of the strings of several columns.

    Raises:
      UserError: a header has a column twice, or lacks one; no rows follow.
    """
    self._columns = {f: (c,) if isinstance(c, str) else tuple(c) for f, c in columns.items()}
    self._names = {name for names in self._columns.values() for name in names}
    self._join = join
    counts = spans.counts()
    firsts = (np.cumsum(counts) - counts)[counts > 0]
    headed = [i for i in firsts if suffix(spans.file_of(i)) != '.jsonl']
    self._headers = {str(spans.file_of(i)): self._header(spans, i) for i in headed}
    self._spans = spans.select(np.delete(np.arange(len(spans)), headed))
    if not len(self._spans):
      raise UserError(f'data.source: {spans.place(0)}: no row follows the header')
    self.fingerprint = spans.fingerprint

  def select(self, chosen: np.ndarray) -> 'Table':
    """Returns some of the rows."""
    part = copy.copy(self)
    part._spans = self._spans.select(chosen)
    return part

  def complete(self) -> 'Table':
    """Returns the rows in which no field is empty."""
    full = [i for i in range(len(self)) if all(self._fields(i).values())]
    if not full:
      raise UserError(f'data.source: {self._spans.file_of(0)}: every row has an empty field')
    part = self.select(np.array(full))
    skipped = len(self) - len(full)
    part.note = f'{skipped} rows with an empty field are skipped' if skipped else ''
    return part

  def place(self, index: int) -> str:
    """Returns 'FILE, line N' of a row, for errors."""
    return self._spans.place(index)

  def __len__(self) -> int:
    return len(self._spans)

  def __getitem__(self, index):
    example = self._fields(index)
    for field, value in example.items():
      if not value:
        raise UserError(f"{self.place(index)}: {field!r} is empty; empty='skip' skips such rows")
    if 'value' in example:
      example['value'] = self._number(example['value'], index)
    return example

  def _header(self, spans: ByteSpans, index: int) -> list[str]:
    header = _cells(spans, index)
    for name in self._names:
      if header.count(name) != 1:
        available = ', '.join(map(repr, header))
        wrong = 'two columns' if name in header else 'no column'
        near = '' if name in header else did_you_mean(name, header)
        raise UserError(f'{spans.place(index)}: {wrong} {name!r}{near}; available: {available}')
    return header

  def _fields(self, index: int) -> Example:
    """Returns the fields of a row; blank ones are empty."""
    header = self._headers.get(str(self._spans.file_of(index)))
    if header is None:
      record: dict[str, Any] = self._spans.json_object(index, self._names)
    else:
      cells = _cells(self._spans, index)
      if len(cells) != len(header):
        raise UserError(
          f'{self.place(index)}: {len(cells)} columns, but the header has {len(header)}'
        )
      record = dict(zip(header, cells, strict=True))
    return {
      field: self._joined([record[name] for name in names], index)
      for field, names in self._columns.items()
    }

  def _joined(self, values: list[Any], index: int) -> str | list[str]:
    first = values[0]
    if len(values) == 1 and isinstance(first, list) and all(isinstance(v, str) for v in first):
      return first
    for value in values:
      if not isinstance(value, str | int | float):
        raise UserError(
          f'{self.place(index)}: {value!r:.80} is no string, number or list of strings'
        )
    strings = (value if isinstance(value, str) else json.dumps(value) for value in values)
    return self._join.join(string for string in strings if string.strip())

  def _number(self, value: str | list[str], index: int) -> float:
    try:
      # Python accepts '1_000' as a number; other programs do not.
      number = float(value) if isinstance(value, str) and '_' not in value else math.nan
    except ValueError:
      number = math.nan
    if not math.isfinite(number):
      raise UserError(f"{self.place(index)}: 'value' is {value!r}, not a finite number")
    return number


def _cells(spans: ByteSpans, index: int) -> list[str]:
  """Returns the strings of a row of .tsv or .csv."""
  if suffix(spans.file_of(index)) == '.tsv':
    return spans[index].split('\t')
  try:
    return next(csv.reader([spans[index]], strict=True))
  except csv.Error as e:
    raise UserError(f'{spans.place(index)}: malformed CSV record: {e}') from e
