"""Text columns of Parquet and JSON lines files, read by position."""

import bisect
import functools
import itertools
import pathlib
from collections.abc import Sequence

import pyarrow
import pyarrow.parquet

from lm.data import splits, text_files
from lm.data.pieces import fingerprint
from lm.errors import UserError, did_you_mean


def columns(
  split: str, files: str | tuple[str, ...], text: str = 'text', validation: float = 0.0
) -> Sequence[dict[str, str]]:
  """Returns a document for every row of a table.

  Args:
    split: 'train' or, where a part is set aside, 'validation'; any that stands for '{split}'.
    files: names or glob patterns of .parquet or of .jsonl and .jsonl.gz files, of one kind; ~,
      $VARIABLES and '{split}' are replaced.
    text: the column that holds the text.
    validation: the share set aside, the last rows.

  Raises:
    UserError: files that are missing, damaged or empty; no such column; an unknown split.
  """
  found = splits.files(split, files, 'data.source: files')
  if all(map(text_files.is_jsonl, found)):
    documents = text_files.Documents.open(found, 'line', text)
    start, stop = splits.part(split, files, len(documents), validation, 'rows')
    return documents.select(start, stop)
  for file in found:
    if file.suffix != '.parquet':
      raise UserError(f'data.source: {file} is not like the others .parquet, nor all are .jsonl')
  counts = [_row_groups(file, text) for file in found]
  start, stop = splits.part(split, files, sum(map(sum, counts)), validation, 'rows')
  return ParquetColumn(found, text, counts, range(start, stop))


class ParquetColumn(Sequence):
  """The rows of a text column of Parquet files, read one row group at a time.

  Attributes:
    fingerprint: names, sizes and times of the files.
  """

  def __init__(self, files: list[pathlib.Path], column: str, counts: list[list[int]], rows: range):
    """Holds which rows of which files.

    Args:
      files: the Parquet files.
      column: the column that holds the text.
      counts: the numbers of rows of each file's row groups.
      rows: the rows of this sequence among those of all files.
    """
    self._column = column
    self._groups = [
      (f, g) for f, sizes in zip(files, counts, strict=True) for g in range(len(sizes))
    ]
    firsts = itertools.accumulate(map(sum, counts), initial=0)
    self._firsts = dict(zip(files, firsts, strict=False))  # the first row of each file
    self._starts = [0, *itertools.accumulate(itertools.chain.from_iterable(counts))]
    self._rows = rows
    self.fingerprint = fingerprint(files)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index):
    row = self._rows[index]
    group = bisect.bisect_right(self._starts, row) - 1
    file, group_in_file = self._groups[group]
    place = f'data.source: {file}: row {row - self._firsts[file]} (from 0) of {self._column!r}'
    found = _read(file, group_in_file, self._column)[row - self._starts[group]]
    try:
      value = found.as_py()
    except UnicodeDecodeError as e:
      raise UserError(f'{place} is not UTF-8 at byte {e.start}') from e
    if not isinstance(value, str):
      raise UserError(f'{place} is {value!r}, not a string')
    return {'text': value}


def _row_groups(file: pathlib.Path, column: str) -> list[int]:
  """Returns the numbers of rows of the row groups of a file, after checking its column."""
  try:
    with pyarrow.parquet.ParquetFile(file) as table:
      schema, metadata = table.schema_arrow, table.metadata
  except (pyarrow.ArrowException, OSError) as e:
    raise UserError(f'data.source: {file} is not an intact Parquet file: {e}') from e
  if column not in schema.names:
    there = ', '.join(map(repr, schema.names))
    near = did_you_mean(column, schema.names)
    raise UserError(f'data.source: {file}: no column {column!r}{near}; there is {there}')
  if (times := schema.names.count(column)) > 1:
    raise UserError(
      f'data.source: {file}: {times} columns are named {column!r}; rename all but one'
    )
  kind = schema.field(column).type
  if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
    raise UserError(f'data.source: {file}: column {column!r} holds {kind}, not strings')
  return [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]


@functools.lru_cache(maxsize=2)
def _read(file: pathlib.Path, group: int, column: str) -> pyarrow.ChunkedArray:
  try:
    with pyarrow.parquet.ParquetFile(file) as table:
      return table.read_row_group(group, columns=[column]).column(0)
  except (pyarrow.ArrowException, OSError) as e:
    said = ' '.join(str(e).split())
    raise UserError(f'data.source: {file}: row group {group} (from 0) is damaged: {said}') from e
