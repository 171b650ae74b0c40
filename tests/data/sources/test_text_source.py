import gzip
import json
import os
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from lm.data.sources import base, columns, python_docs, text
from lm.errors import UserError


def texts(source):
  return [source[i]['text'] for i in range(len(source))]


def write(folder, name, content):
  file = folder / name
  file.write_bytes(content if isinstance(content, bytes) else content.encode())
  return str(file)


def test_one_document_is_cut_by_characters(tmp_path):
  content = 'a中🎉b' * 25
  file = write(tmp_path, 'a.txt', content)
  assert texts(text('train', file, validation=0.1)) == [content[:90]]
  assert texts(text('validation', file, validation=0.1)) == [content[90:]]
  assert texts(text('train', file)) == [content]


def test_one_document_is_cut_by_characters_for_every_block_size(tmp_path, monkeypatch):
  content = ' \n' + 'a中🎉bé' * 25
  file = write(tmp_path, 'a.txt', content)
  for block in (1, 2, 3, 7, 1000):
    monkeypatch.setattr(base, '_BLOCK', block)
    for share in (0.01, 0.3, 0.99):
      cut = int(len(content) * (1 - share))
      assert texts(text('train', file, validation=share)) == [content[:cut]]
      assert texts(text('validation', file, validation=share)) == [content[cut:]]


def test_several_documents_are_divided_by_documents(tmp_path):
  for n in range(10):
    write(tmp_path, f'{n}.txt', f'text {n}')
  names = str(tmp_path / '*.txt')
  assert texts(text('train', names, validation=0.2)) == [f'text {n}' for n in range(8)]
  assert texts(text('validation', names, validation=0.2)) == ['text 8', 'text 9']


def test_documents_may_be_lines_or_paragraphs(tmp_path):
  file = write(tmp_path, 'a.txt', 'one\n  \ntwo\r\nthree\r\n\r\n\n\nfour\nfive')
  assert texts(text('train', file, documents='line')) == ['one', 'two', 'three', 'four', 'five']
  paragraphs = texts(text('train', file, documents='paragraph'))
  assert paragraphs == ['one\n  \ntwo\r\nthree', 'four\nfive']


def test_json_lines_gzip_and_variables_are_read(tmp_path, monkeypatch):
  records = [{'text': f'line {n}\nmore', 'label': n} for n in range(4)]
  lines = '\n'.join(map(json.dumps, records)) + '\n\n'
  write(tmp_path, 'b.jsonl', lines)
  write(tmp_path, 'c.jsonl.gz', gzip.compress(lines.encode()))
  write(tmp_path, 'd.txt.gz', gzip.compress(b'unpacked'))
  monkeypatch.setenv('CORPUS', str(tmp_path))
  documents = texts(text('train', ('$CORPUS/b.jsonl', '${CORPUS}/c.*', '$CORPUS/d.txt.gz')))
  assert documents == 2 * [r['text'] for r in records] + ['unpacked']


def test_the_fingerprint_follows_the_files(tmp_path):
  file = write(tmp_path, 'a.txt', 'one')
  before = text('train', file).fingerprint
  assert text('train', file).fingerprint == before
  os.utime(file, ns=(1, 1))
  assert text('train', file).fingerprint != before


def test_a_rewritten_file_is_read_again(tmp_path):
  file = write(tmp_path, 'a.txt', 'one')
  assert texts(text('train', file)) == ['one']
  write(tmp_path, 'a.txt', 'three')
  os.utime(file, ns=(1, 1))
  assert texts(text('train', file)) == ['three']


MISTAKES = {
  'missing': (None, {}, 'a.txt.*no such file'),
  'empty': ('', {}, 'a.txt: no text in it'),
  'blank': (' \n\t\n', {}, 'a.txt: no text in it'),
  'binary': (b'text\0more', {}, 'a.txt is not a text file: it has a NUL at byte 4'),
  'latin-1': ('ab caf\xe9 d'.encode('latin-1'), {}, 'a.txt is not UTF-8 at byte 6'),
  'late': (b'line\nline \xff', {'documents': 'line'}, 'a.txt is not UTF-8 at byte 10'),
  'unit': ('text', {'documents': 'lines'}, "documents='lines' .did you mean 'line'"),
  'share': ('text', {'validation': 1.5}, 'validation=1.5 must satisfy'),
  'few': ('one', {'validation': 0.5, 'documents': 'line'}, 'of 1 lines leaves a split empty'),
}


@pytest.mark.parametrize('kind', MISTAKES)
def test_user_errors_in_plain_text_are_reported_in_one_line(tmp_path, kind):
  content, arguments, message = MISTAKES[kind]
  file = str(tmp_path / 'a.txt') if content is None else write(tmp_path, 'a.txt', content)
  with pytest.raises(UserError, match=message) as e:
    texts(text('train', file, **arguments))
  assert '\n' not in str(e.value)


def test_user_errors_in_names_are_reported(tmp_path, monkeypatch):
  monkeypatch.delenv('NOWHERE', raising=False)
  with pytest.raises(UserError, match='environment variable NOWHERE is not set'):
    text('train', '$NOWHERE/a.txt')
  monkeypatch.delenv('LM_DATA', raising=False)
  with pytest.raises(UserError, match=r"\{split\}\.txt'.* LM_DATA is not set; .*README\.md"):
    text('train', '$LM_DATA/{split}.txt')
  with pytest.raises(UserError, match=r'it is a folder, name its files'):
    text('train', str(tmp_path))
  with pytest.raises(UserError, match=r"\*\.txt': no such file"):
    text('train', str(tmp_path / '*.txt'))
  file = write(tmp_path, 'a.txt', 'some text')
  with pytest.raises(UserError, match=r"no split 'validation'; .*'train'; validation=0\.1"):
    text('validation', file)
  with pytest.raises(UserError, match=r"no split 'valid' .*did you mean 'validation'"):
    text('valid', file, validation=0.1)


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('{"text": "a"}\n{"text": ', 'a.jsonl, line 2: not a line of JSON'),
    ('{"txt": "a"}', "line 1: no key 'text'.*available: 'txt'"),
    ('["a"]', 'not a JSON object'),
    ('{"text": 3}', "the value of 'text' is not a string"),
  ],
)
def test_user_errors_in_json_lines_are_reported(tmp_path, line, message):
  with pytest.raises(UserError, match=message):
    texts(text('train', write(tmp_path, 'a.jsonl', line)))


def test_a_damaged_gzip_file_is_reported(tmp_path):
  packed = gzip.compress(b'some text' * 100)
  for content in (packed[:-9], packed[:20], b'no gzip'):
    with pytest.raises(UserError, match=r'a\.txt\.gz is not an intact gzip file'):
      text('train', write(tmp_path, 'a.txt.gz', content))


def test_parquet_columns_are_read(tmp_path):
  for name, start in (('a', 0), ('b', 10)):
    rows = [f'row {start + n}' for n in range(10)]
    table = pyarrow.table({'id': list(range(10)), 'body': rows})
    pyarrow.parquet.write_table(table, tmp_path / f'{name}.parquet', row_group_size=3)
  names = str(tmp_path / '*.parquet')
  train = columns('train', names, text='body', validation=0.25)
  validation = columns('validation', names, text='body', validation=0.25)
  assert texts(train) == [f'row {n}' for n in range(15)]
  assert texts(validation) == [f'row {n}' for n in range(15, 20)]
  with pytest.raises(UserError, match="no column 'text'; available: 'id', 'body'"):
    columns('train', names)
  with pytest.raises(UserError, match="column 'id' holds int64, not strings"):
    columns('train', names, text='id')


def test_keys_of_json_lines_are_read(tmp_path):
  file = write(tmp_path, 'a.jsonl', '{"body": "one"}\n{"body": "two"}\n')
  assert texts(columns('train', file, text='body', validation=0.5)) == ['one']
  with pytest.raises(UserError, match="no key 'text'; available: 'body'"):
    texts(columns('train', file))


def test_user_errors_in_parquet_files_are_reported(tmp_path):
  with pytest.raises(UserError, match=r'a\.parquet is not an intact Parquet file'):
    columns('train', write(tmp_path, 'a.parquet', 'no parquet'))
  with pytest.raises(UserError, match=r'a\.csv: files must be all'):
    columns('train', write(tmp_path, 'a.csv', 'text'))
  table = pyarrow.table({'text': ['a', None]})
  pyarrow.parquet.write_table(table, tmp_path / 'b.parquet')
  with pytest.raises(UserError, match=r"row 1 \(from 0\) of 'text' is None"):
    texts(columns('train', str(tmp_path / 'b.parquet')))


def test_python_docs_are_english_prose_of_two_megabytes():
  train, validation = texts(python_docs('train')), texts(python_docs('validation'))
  size = sum(map(len, train + validation))
  assert 1.5e6 < size < 4e6
  assert 0.02 < sum(map(len, validation)) / size < 0.10
  assert not set(train) & set(validation)
  everything = '\n'.join(train + validation)
  assert 'The "if" statement is used for conditional execution' in everything
  assert sum(character.isascii() for character in everything) / size > 0.99


def test_python_docs_keep_their_split_and_order():
  small, large = (texts(python_docs('validation', validation=v)) for v in (0.05, 0.2))
  assert set(small) < set(large)
  assert python_docs('train').fingerprint == python_docs('validation').fingerprint
  with pytest.raises(UserError, match=r"no split 'test'"):
    python_docs('test')


def test_python_docs_do_not_import_the_modules_they_read():
  program = (
    'import sys\n'
    'from lm.data.sources.embedded.python_library import python_docs\n'
    "before = set(sys.modules); len(python_docs('train'))\n"
    'print(*set(sys.modules) - before)\n'
  )
  run = subprocess.run(
    [sys.executable, '-W', 'error', '-c', program], capture_output=True, text=True, check=True
  )
  loud = {'antigravity', 'asyncio', 'pydoc_data', 'this', 'tkinter', 'turtle', 'xml'}
  assert not loud & set(run.stdout.split()) and run.stderr == ''


def test_sources_load_neither_jax_nor_tensorflow_nor_grain():
  program = 'import sys, lm.data.sources, lm.data.pipeline, lm.data.batches; print(*sys.modules)'
  run = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
  heavy = {'jax', 'tensorflow', 'grain', 'tensorflow_datasets', 'pyarrow'}
  assert not heavy & set(run.stdout.split())
