"""Errors in Parquet files are reported in one line."""

import pyarrow
import pyarrow.parquet
import pytest

from lm.data.sources import columns
from lm.errors import UserError


def read(files):
  rows = columns('train', files)
  return [rows[i]['text'] for i in range(len(rows))]


def test_two_columns_of_one_name_are_reported(tmp_path):
  file = str(tmp_path / 'a.parquet')
  arrays = [pyarrow.array(['x']), pyarrow.array(['y'])]
  pyarrow.parquet.write_table(pyarrow.Table.from_arrays(arrays, names=['text', 'text']), file)
  with pytest.raises(UserError, match=r"a\.parquet: 2 columns are named 'text'"):
    read(file)


def test_a_string_that_is_not_utf8_is_reported(tmp_path):
  file = str(tmp_path / 'a.parquet')
  strings = pyarrow.array([b'ok', b'caf\xe9']).view(pyarrow.string())
  pyarrow.parquet.write_table(pyarrow.table({'text': strings}), file)
  with pytest.raises(UserError, match=r"a\.parquet: row 1 .* of 'text' is not UTF-8 at byte 3"):
    read(file)


def test_errors_count_rows_within_a_file(tmp_path):
  files = (str(tmp_path / 'a.parquet'), str(tmp_path / 'b.parquet'))
  for file, rows in zip(files, (['a', 'b'], ['c', 'd', 'e', None]), strict=True):
    pyarrow.parquet.write_table(pyarrow.table({'text': rows}), file, row_group_size=2)
  with pytest.raises(UserError, match=r"b\.parquet: row 3 \(from 0\) of 'text' is None"):
    read(files)


def test_damaged_rows_after_an_intact_footer_are_reported(tmp_path):
  file = tmp_path / 'a.parquet'
  rows = [f'row {n}' for n in range(1000)]
  pyarrow.parquet.write_table(pyarrow.table({'text': rows}), file, compression='none')
  data = bytearray(file.read_bytes())
  data[4:64] = bytes(60)  # the header of the first page
  file.write_bytes(data)
  with pytest.raises(UserError, match=r'a\.parquet: row group 0 \(from 0\) is damaged') as e:
    read(str(file))
  assert '\n' not in str(e.value)
