import csv
import gzip
import json
import os

import pytest

from lm.data.sources import parallel, table
from lm.data.sources.base import ByteSpans
from lm.errors import UserError

COLUMNS = {'text': 'text', 'label': 'label'}


@pytest.fixture
def write(tmp_path):
  """Returns a function that writes a file and returns its name."""

  def write(content, name='a.tsv'):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(tmp_path / name)

  return write


def test_tsv_is_not_quoted(write):
  file = write('\ufefflabel\ttext\tmore\n1\t"Yes", he said\tx\n\n0\t"unclosed\ty\r\n')
  assert list(table('train', file, COLUMNS)) == [
    {'text': '"Yes", he said', 'label': '1'},
    {'text': '"unclosed', 'label': '0'},
  ]


def test_csv_is_read_as_by_the_standard_library(write, tmp_path):
  rows = [['a, b', 'x'], ['two\nlines', 'y'], ['"quoted"', 'z'], [' plain ', '""'], ['\n', 'v']]
  with (tmp_path / 'a.csv').open('w', newline='') as f:
    csv.writer(f).writerows([['text', 'label'], *rows])
  records = list(ByteSpans([tmp_path / 'a.csv'], ['record']))[1:]
  assert [next(csv.reader([record])) for record in records] == rows
  kept = table('train', str(tmp_path / 'a.csv'), COLUMNS, empty='skip')
  assert [[e['text'], e['label']] for e in kept] == rows[:4]


def test_json_lines_are_read(write):
  records = [{'text': 'a', 'label': 3, 'ok': True}, {'text': 'b', 'label': 'x', 'ok': False}]
  packed = gzip.compress('\n'.join(map(json.dumps, records)).encode())
  file = write(packed, 'a.jsonl.gz')
  examples = list(table('train', file, COLUMNS | {'fine': 'ok'}))
  assert examples[0] == {'text': 'a', 'label': '3', 'fine': 'true'}
  assert examples[1] == {'text': 'b', 'label': 'x', 'fine': 'false'}


def test_a_byte_order_mark_is_skipped(write):
  for name in ('a.jsonl', 'a.jsonl.gz'):
    content = '\ufeff{"text": "a", "label": "b"}'.encode()
    file = write(gzip.compress(content) if name.endswith('gz') else content, name)
    assert list(table('train', file, COLUMNS)) == [{'text': 'a', 'label': 'b'}]


@pytest.mark.parametrize('columns', ['text', ('text',), {}])
def test_columns_that_name_no_field_are_reported(write, columns):
  with pytest.raises(UserError, match='must name the column of each field'):
    table('train', write('text\na\n'), columns)


def test_columns_are_joined_and_lists_and_numbers_stay(write):
  file = write('label\ttitle\tbody\tscore\n1\tTitle\tBody\t2.5\n2\t\tAlone\t-1\n')
  columns = {'text': ('title', 'body'), 'value': 'score'}
  assert list(table('train', file, columns, join=': ')) == [
    {'text': 'Title: Body', 'value': 2.5},
    {'text': 'Alone', 'value': -1.0},
  ]
  file = write('{"said": ["Hi.", "Hello."]}', 'b.jsonl')
  assert table('train', file, {'turns': 'said'})[0] == {'turns': ['Hi.', 'Hello.']}


def test_each_file_of_a_split_has_a_header(write, tmp_path):
  write('text\tlabel\na\t0\nb\t0\n', 'train.tsv')
  write('label\ttext\n1\tc\n1\td\n', 'val.tsv')

  def texts(split, files, **arguments):
    return [e['text'] for e in table(split, f'{tmp_path}/{files}', COLUMNS, **arguments)]

  assert texts('val', '{split}.tsv') == ['c', 'd']
  assert texts('train', '*.tsv', validation=0.25) == ['a', 'b', 'c']
  assert texts('validation', '*.tsv', validation=0.25) == ['d']


MISTAKES = {
  'columns': ('text\tlabel\na\t0\nb\n', 'a.tsv', r'a\.tsv, line 3: 1 columns, but .* has 2'),
  'header': ('txt\tlabel\na\t0\n', 'a.tsv', "line 1: no column 'text' .did you mean 'txt'"),
  'twice': ('text\ttext\tlabel\na\tb\t0\n', 'a.tsv', "line 1: two columns 'text'"),
  'no rows': ('text\tlabel\n', 'a.tsv', 'no row follows the header'),
  'blank field': ('text\tlabel\na\t0\n \t1\n', 'a.tsv', r"line 3: 'text' is empty; empty='skip'"),
  'kind': ('text', 'a.txt', r'a\.txt: its name must end in one of \.tsv, \.csv, \.jsonl'),
  'open quote': ('text,label\na,1\n"b,1\nc,2\n', 'a.csv', r'a\.csv, line 3: malformed CSV record'),
  'stray quote': ('text,label\n5" pipe,1\n6" pipe,2\n', 'a.csv', r'line 2: (malformed|\d col)'),
  'key': ('{"text": "a", "lable": 1}', 'a.jsonl', "line 1: no key 'label' .did you mean 'lable'"),
  'null': ('{"text": null, "label": 1}', 'a.jsonl', 'line 1: None is no string, number or list'),
  'half a character': (
    '{"text": "good", "label": 1}\n{"text": "a \\ud800", "label": 1}',
    'a.jsonl',
    r"a\.jsonl, line 2: 'text' has the lone surrogate '\\ud800' at character 2, after 'a '",
  ),
  'half in a list': (
    '{"text": ["a", "\\udc00"], "label": 1}',
    'a.jsonl',
    "line 1: 'text' has the lone",
  ),
  'deep': (100_000 * '[', 'a.jsonl', 'line 1: not a line of JSON: it is nested too deep'),
  'digits': (
    f'{{"text": {5000 * "9"}, "label": 1}}',
    'a.jsonl',
    'line 1: not a line of JSON: it has an integer of more than 4,300 digits',
  ),
  'no number': ('{"text": "a", "label": 1, "score": ["1"]}', 'a.jsonl', r"'value' is \['1'\], not"),
  'underscore': ('score\ttext\tlabel\n1_000\ta\tb\n', 'a.tsv', "'value' is '1_000', not a fin"),
  'tabs': ('text\tlabel\na\t1\n\t\nb\t0\n', 'a.tsv', r"a\.tsv, line 3: 'text' is empty"),
  'commas': ('text,label\na,1\n,\nb,0\n', 'a.csv', r"a\.csv, line 3: 'text' is empty"),
  'number': ('score\ttext\tlabel\nnan\ta\tb\n', 'a.tsv', "'value' is 'nan', not a finite number"),
}


@pytest.mark.parametrize('kind', MISTAKES)
def test_user_errors_are_reported_with_file_and_line(write, kind):
  content, name, message = MISTAKES[kind]
  columns = COLUMNS | ({'value': 'score'} if 'score' in content else {})
  with pytest.raises(UserError, match=message) as e:
    list(table('train', write(content, name), columns))
  assert '\n' not in str(e.value)


@pytest.mark.skipif('LM_DATA' not in os.environ, reason='needs the folder LM_DATA')
@pytest.mark.parametrize(
  ('files', 'split', 'columns', 'count', 'labels'),
  [
    ('sst2/{split}.tsv', 'dev', COLUMNS, 872, {'0', '1'}),
    ('chnsenticorp_hotel/{split}.tsv', 'test', COLUMNS, 700, {'0', '1'}),
    ('ag_news/{split}.tsv', 'test', {'text': ('title', 'description'), 'label': 'label'}, 1000, 4),
    ('legal_contracts/{split}.jsonl', 'train', COLUMNS, 240, 6),
    ('tatoeba_zh_en/{split}.tsv', 'dev', {'source': 'en', 'target': 'zh'}, 1000, None),
    ('xdailydialog/{split}.jsonl', 'dev', {'turns': 'turns_en'}, 395, None),
  ],
)
def test_real_tables(files, split, columns, count, labels):
  examples = list(table(split, f'$LM_DATA/{files}', columns))
  assert len(examples) == count and all(example.keys() == columns.keys() for example in examples)
  if labels is not None:
    seen = {example['label'] for example in examples}
    assert labels in (seen, len(seen))


def test_a_row_of_empty_cells_counts_and_a_blank_line_does_not(write):
  content = 'text\tlabel\na\t1\n\t\n\n  \nb\t0\n'
  assert len(table('train', write(content), COLUMNS)) == 3
  kept = table('train', write(content), COLUMNS, empty='skip')
  assert [e['text'] for e in kept] == ['a', 'b']


def test_skipped_rows_are_counted(write):
  content = 'text\tlabel\na\t1\n\t2\nb\t0\n'
  note = '1 rows with an empty field are skipped'
  assert table('train', write(content), COLUMNS, empty='skip').note == note
  assert table('train', write('text\tlabel\na\t1\n'), COLUMNS, empty='skip').note == ''
  file = write('one\n\ntwo\n', 'a.de')
  pairs = parallel('train', source=file, target=file, empty='skip')
  assert pairs.note == '1 pairs with a blank side are skipped'
