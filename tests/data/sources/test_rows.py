"""Rows of files and streams: the values of fields, and the line of each mistake."""

import pytest

from lm.data.sources.rows import read_rows, rows
from lm.errors import UserError


def read(data, form, field='text'):
  return [row.fields for row in read_rows(data.splitlines(keepends=True), 'in', form, field)]


def test_values_are_those_of_tables():
  line = '{"text": "é", "label": 1, "yes": true, "value": 2, "words": ["a"]}\n'
  (row,) = read(line.encode('utf-8-sig'), 'jsonl')
  assert row == {'text': 'é', 'label': '1', 'yes': 'true', 'value': 2, 'words': ['a']}
  assert read(b'text\tvalue\r\n"a" b\t1.5\r\n', 'tsv') == [{'text': '"a" b', 'value': 1.5}]
  assert read(b' a \nb\n', 'text', 'source') == [{'source': ' a '}, {'source': 'b'}]


def test_answers_of_squad_have_a_start():
  answer = b'{"answers": [{"text": "b", "answer_start": 2}]}'
  assert read(answer, 'jsonl')[0]['answers'][0]['start'] == 2


@pytest.mark.parametrize(
  ('data', 'form', 'message'),
  [
    (b'a\nb\xff\n', 'text', r'^in, line 2 is not UTF-8 at byte 1'),
    (b'a\0\n', 'text', r'^in, line 1 is not text'),
    (b'a\n \n', 'text', r'^in, line 2 is blank'),
    (b'', 'text', r'^in: no row'),
    (b'text\n', 'tsv', r'^in: no row'),
    (b'text\tvalue\na\tone\n', 'tsv', r"^in, line 2: 'value' is 'one', not a number"),
    (b'{"a": "\\ud800"}\n', 'jsonl', r"^in, line 1: 'a' has the lone surrogate"),
    (b'[' * 10**5, 'jsonl', r'^in, line 1: not a line of JSON'),
    (b'a\n', 'csv', r"format='csv'"),
  ],
)
def test_mistakes_name_their_line(data, form, message):
  with pytest.raises(UserError, match=message):
    read(data, form)


def test_a_file_is_a_source(tmp_path):
  (tmp_path / 'a.tsv').write_text('text\nx\ny\n')
  found = rows('train', str(tmp_path / 'a.tsv'))
  assert [*found] == [{'text': 'x'}, {'text': 'y'}] and found.place(1).endswith('a.tsv, line 3')
  with pytest.raises(UserError, match=r'nowhere\.tsv: No such file'):
    rows('train', str(tmp_path / 'nowhere.tsv'))
  with pytest.raises(UserError, match=r'a\.csv: its name ends in none of \.jsonl'):
    rows('train', str(tmp_path / 'a.csv'))
