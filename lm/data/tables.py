"""Tables of task examples: .tsv, .csv and .jsonl, each perhaps gzipped, read by position."""

import copy
import csv
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.data import splits
from lm.data.examples import Example
from lm.data.pieces import Pieces, suffix
from lm.errors import UserError, did_you_mean

_UNITS = {'.tsv': 'row', '.csv': 'record', '.jsonl': 'line'}


def table(
  split: str,
  files: str | Sequence[str],
  columns: Mapping[str, str | Sequence[str]],
  validation: float = 0.0,
  join: str = ' ',
  empty: str = 'error',
) -> 'Table':
  """Returns an example for every row of a table.

  The first line of each .tsv and .csv names its columns. In .tsv a quotation mark is a character
  like any other; .csv is quoted as RFC 4180 has it. Lines of .jsonl are objects. Blank lines are
  left out.

  A field is a string; what JSON has as a number or a truth value is written as JSON writes it. A
  field called 'value', that of regression, is a float, and a JSON list of strings stays a list.

  Args:
    split: 'train' or, where a part is set aside, 'validation'; any that stands for '{split}'.
    files: names or glob patterns; ~, $VARIABLES and '{split}' are replaced.
    columns: the column of each field, as {'text': 'sentence', 'label': 'polarity'}, or several
      columns whose strings are joined, as {'text': ('title', 'description')}.
    validation: the share set aside, the last rows.
    join: what stands between joined strings.
    empty: what becomes of a row with an empty field: 'error', or 'skip' to leave it out.

  Raises:
    UserError: files that are missing, damaged or empty; no such column; an unknown split. A row
      that is broken is told when it is read.
  """
  check_empty(empty)
  if not isinstance(columns, Mapping) or not columns:
    raise UserError(
      f'data.source: columns={columns!r} does not name the column of each field, as in '
      "{'text': 'sentence'}"
    )
  found = splits.files(split, files, 'data.source: files')
  for file in found:
    if suffix(file) not in _UNITS:
      known = ', '.join(_UNITS)
      raise UserError(f'data.source: {file}: its name ends in none of {known} (or one with .gz)')
  pieces = Pieces(found, [_UNITS[suffix(file)] for file in found])
  everything = Table(pieces, columns, join)
  start, stop = splits.part(split, files, len(everything), validation, 'rows')
  chosen = everything.select(np.arange(start, stop))
  return chosen.complete() if empty == 'skip' else chosen


def check_empty(empty: str) -> None:
  """Raises UserError when there is no such way to treat what is empty."""
  if empty not in ('error', 'skip'):
    near = did_you_mean(empty, ('error', 'skip'))
    raise UserError(f"data.source: empty={empty!r}{near}; there is 'error', 'skip'")


class Table(Sequence):
  """Some columns of the rows of tables.

  Attributes:
    fingerprint: names, sizes and times of the files.
    note: how many rows `complete` has left out, '' for none.
  """

  note = ''

  def __init__(self, pieces: Pieces, columns: Mapping[str, str | Sequence[str]], join: str):
    """Reads the headers.

    Args:
      pieces: lines of .tsv and .jsonl and records of .csv.
      columns: the names of the columns of each field.
      join: what stands between the strings of several columns.

    Raises:
      UserError: a header names a column twice, or not all that are asked for; no rows follow.
    """
    self._columns = {f: (c,) if isinstance(c, str) else tuple(c) for f, c in columns.items()}
    self._names = {name for names in self._columns.values() for name in names}
    self._join = join
    self._headers: dict[str, list[str]] = {}
    counts = pieces.counts()
    firsts = (np.cumsum(counts) - counts)[counts > 0]
    headed = [i for i in firsts if suffix(pieces.file_of(i)) != '.jsonl']
    for index in headed:
      self._headers[str(pieces.file_of(index))] = self._header(pieces, index)
    self._pieces = pieces.select(np.delete(np.arange(len(pieces)), headed))
    if not len(self._pieces):
      raise UserError(f'data.source: {pieces.place(0)}: no row follows the header')
    self.fingerprint = pieces.fingerprint

  def select(self, chosen: np.ndarray) -> 'Table':
    """Returns some of the rows."""
    part = copy.copy(self)
    part._pieces = self._pieces.select(chosen)
    return part

  def complete(self) -> 'Table':
    """Returns the rows in which no field is empty."""
    full = [i for i in range(len(self)) if all(self._fields(i).values())]
    if not full:
      raise UserError(f'data.source: {self._pieces.file_of(0)}: every row has an empty field')
    part = self.select(np.array(full))
    left_out = len(self) - len(full)
    part.note = f'{left_out} rows with an empty field are left out' if left_out else ''
    return part

  def place(self, index: int) -> str:
    """Returns 'FILE, line N' of a row, for errors."""
    return self._pieces.place(index)

  def __len__(self) -> int:
    return len(self._pieces)

  def __getitem__(self, index):
    example = self._fields(index)
    for field, value in example.items():
      if not value:
        raise UserError(
          f"{self._pieces.place(index)}: {field!r} is empty; empty='skip' leaves such rows out"
        )
    if 'value' in example:
      example['value'] = self._number(example['value'], index)
    return example

  def _header(self, pieces: Pieces, index: int) -> list[str]:
    header = _cells(pieces, index)
    for name in self._names:
      if header.count(name) != 1:
        there = ', '.join(map(repr, header))
        wrong = 'two columns' if name in header else 'no column'
        near = '' if name in header else did_you_mean(name, header)
        raise UserError(f'{pieces.place(index)}: {wrong} {name!r}{near}; there is {there}')
    return header

  def _fields(self, index: int) -> Example:
    """Returns the fields of a row; those that are blank are empty."""
    header = self._headers.get(str(self._pieces.file_of(index)))
    if header is None:
      record: dict[str, Any] = self._pieces.json_object(index, self._names)
    else:
      cells = _cells(self._pieces, index)
      if len(cells) != len(header):
        raise UserError(
          f'{self._pieces.place(index)}: {len(cells)} columns, but the header has {len(header)}'
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
    strings = []
    for value in values:
      if not isinstance(value, str | int | float):
        raise UserError(
          f'{self._pieces.place(index)}: {value!r:.80} is no string, number or list of strings'
        )
      strings.append(value if isinstance(value, str) else json.dumps(value))
    return self._join.join(string for string in strings if string.strip())

  def _number(self, value: str | list[str], index: int) -> float:
    try:
      # Python takes '1_000' for a number, and nobody else does.
      number = float(value) if isinstance(value, str) and '_' not in value else math.nan
    except ValueError:
      number = math.nan
    if not math.isfinite(number):
      raise UserError(f"{self._pieces.place(index)}: 'value' is {value!r}, not a finite number")
    return number


def _cells(pieces: Pieces, index: int) -> list[str]:
  """Returns the strings of a row of .tsv or .csv."""
  if suffix(pieces.file_of(index)) == '.tsv':
    return pieces[index].split('\t')
  try:
    return next(csv.reader([pieces[index]], strict=True))
  except csv.Error as e:
    raise UserError(f'{pieces.place(index)}: not a record of CSV: {e}') from e
