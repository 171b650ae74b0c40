"""Local text: .txt, .jsonl and columns of Parquet, read by position and not held in memory."""

import bisect
import functools
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

from lm.data.sources.base import (
  ByteSpans,
  Example,
  LazySequence,
  available,
  check_choice,
  fingerprint,
  split_bounds,
  split_files,
  suffix,
)
from lm.errors import UserError

_UNITS = ('file', 'line', 'paragraph')


def text(
  split: str, files: str | tuple[str, ...], validation: float = 0.0, documents: str = 'file'
) -> Sequence[dict[str, str]]:
  """Returns the documents of local text files.

  Args:
    split: 'train', or 'validation' if `validation` is above 0. Where file names contain '{split}',
      any name that yields existing files.
    files: names or glob patterns; ~, $VARIABLES and '{split}' are replaced. A line of a .jsonl file
      is an object with a string 'text', which is one document. Other files are plain text. Both may
      be gzipped (.gz).
    validation: the fraction set aside: the last documents or, if the corpus is one document in one
      file, its last characters.
    documents: the unit of plain text: a 'file', a 'line', or a 'paragraph' (lines between empty
      ones). Blank units are skipped.

  Raises:
    UserError: files that are missing, empty, binary or not UTF-8; an unknown split.
  """
  check_choice('documents', documents, _UNITS)
  paths = split_files(split, files)
  spans = ByteSpans(paths, ['line' if _is_jsonl(file) else documents for file in paths])
  if documents == 'file' and len(spans) == 1 and not _is_jsonl(paths[0]):
    size = spans.characters(0) if validation else 1
    bounds = split_bounds(split, files, size, validation, 'characters')
    return _documents(spans.cut(0, *bounds) if validation else spans, 'text')
  bounds = split_bounds(split, files, len(spans), validation, f'{documents}s')
  return _documents(spans.select(slice(*bounds)), 'text')


def columns(
  split: str, files: str | tuple[str, ...], text: str = 'text', validation: float = 0.0
) -> Sequence[dict[str, str]]:
  """Returns a document for every row of a table.

  Args:
    split: 'train', or 'validation' if `validation` is above 0. Where file names contain '{split}',
      any name that yields existing files.
    files: names or glob patterns of either .parquet, or .jsonl and .jsonl.gz files; ~, $VARIABLES
      and '{split}' are replaced.
    text: the column with the text.
    validation: the fraction set aside, the last rows.

  Raises:
    UserError: files that are missing, damaged or empty; no such column; an unknown split.
  """
  paths = split_files(split, files)
  if all(map(_is_jsonl, paths)):
    spans = ByteSpans(paths, ['line'] * len(paths))
    bounds = split_bounds(split, files, len(spans), validation, 'rows')
    return _documents(spans.select(slice(*bounds)), text)
  for file in paths:
    if file.suffix != '.parquet':
      raise UserError(f'data.source: {file}: files must be all .parquet or all .jsonl')
  counts = [_row_groups(file, text) for file in paths]
  bounds = split_bounds(split, files, sum(map(sum, counts)), validation, 'rows')
  return _parquet(paths, text, counts, range(*bounds))


def _documents(spans: ByteSpans, column: str) -> LazySequence:
  """Returns documents of plain text, or of JSON lines with their text under the key `column`."""

  def make(index: int) -> Example:
    if not _is_jsonl(spans.file_of(index)):
      return {'text': spans[index]}
    document = spans.json_object(index, [column])[column]
    if not isinstance(document, str):
      raise UserError(f'{spans.place(index)}: the value of {column!r} is not a string')
    return {'text': document}

  return LazySequence(len(spans), make, spans.fingerprint, spans.place)


def _parquet(files: list[pathlib.Path], column: str, counts: list[list[int]], rows: range):
  """Returns rows of a text column of Parquet files, read one row group at a time.

  Args:
    files: the Parquet files.
    column: the column with the text.
    counts: the number of rows in each file's row groups.
    rows: the rows to return, among those of all files.
  """
  groups = [(f, g) for f, sizes in zip(files, counts, strict=True) for g in range(len(sizes))]
  # The first row of each file, and of each row group.
  firsts = dict(zip(files, itertools.accumulate(map(sum, counts), initial=0), strict=False))
  starts = [0, *itertools.accumulate(itertools.chain.from_iterable(counts))]

  def make(index: int) -> Example:
    row = rows[index]
    group = bisect.bisect_right(starts, row) - 1
    file, group_in_file = groups[group]
    place = f'data.source: {file}: row {row - firsts[file]} (from 0) of {column!r}'
    try:
      value = _read(file, group_in_file, column)[row - starts[group]].as_py()
    except UnicodeDecodeError as e:
      raise UserError(f'{place} is not UTF-8 at byte {e.start}') from e
    if not isinstance(value, str):
      raise UserError(f'{place} is {value!r}, not a string')
    return {'text': value}

  return LazySequence(len(rows), make, fingerprint(files))


def _is_jsonl(file: pathlib.Path) -> bool:
  """Returns whether a file, by its name, has one JSON object per line."""
  return suffix(file) == '.jsonl'


def _row_groups(file: pathlib.Path, column: str) -> list[int]:
  """Returns the number of rows in each row group of a file, after checking its column."""
  try:
    import pyarrow.parquet  # an extra: most sources do not need it
  except ModuleNotFoundError as e:
    raise UserError(f'data.source: {file} needs pyarrow: pip install -e ".[parquet]"') from e
  try:
    with pyarrow.parquet.ParquetFile(file) as table:
      schema, metadata = table.schema_arrow, table.metadata
  except (pyarrow.ArrowException, OSError) as e:
    raise UserError(f'data.source: {file} is not an intact Parquet file: {e}') from e
  if column not in schema.names:
    raise UserError(f'data.source: {file}: no column {column!r}{available(column, schema.names)}')
  if (times := schema.names.count(column)) > 1:
    raise UserError(
      f'data.source: {file}: {times} columns are named {column!r}; rename all but one'
    )
  kind = schema.field(column).type
  if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
    raise UserError(f'data.source: {file}: column {column!r} holds {kind}, not strings')
  return [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]


@functools.lru_cache(maxsize=2)
def _read(file: pathlib.Path, group: int, column: str) -> Any:
  """Returns the column of a row group, as a pyarrow.ChunkedArray."""
  import pyarrow.parquet

  try:
    with pyarrow.parquet.ParquetFile(file) as table:
      return table.read_row_group(group, columns=[column]).column(0)
  except (pyarrow.ArrowException, OSError) as e:
    raise UserError(
      f'data.source: {file}: row group {group} (from 0) is damaged: {" ".join(str(e).split())}'
    ) from e
