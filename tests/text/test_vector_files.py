"""Word vectors as they are published: words that repeat, words cut inside a character."""

import re
import struct

import in_process
import numpy as np
import pytest

from lm.errors import UserError
from lm.text import vector_files
from lm.text.vector_files import (
  read_glove,
  read_word2vec_binary,
  read_word2vec_text,
  write_glove,
  write_word2vec_binary,
  write_word2vec_text,
)
from lm.text.vectors import make_vectors

FORMATS = {
  'word2vec text': (read_word2vec_text, write_word2vec_text),
  'word2vec binary': (read_word2vec_binary, write_word2vec_binary),
  'GloVe': (read_glove, write_glove),
}
SCRIPTS = ('az', 'АЯ', '一龥', 'את', 'ぁん', '\U0001f600\U0001f64f', '!/', '09', '\x80\xff')


def _drawn(seed):
  """Returns vectors of random sizes and numbers, and words in many scripts."""
  rng = np.random.default_rng(seed)
  words = set()
  for _ in range(rng.integers(1, 60)):
    first, last = map(ord, SCRIPTS[rng.integers(len(SCRIPTS))])
    words.add(''.join(map(chr, rng.integers(first, last + 1, rng.integers(1, 9)))))
  shape = (len(words), rng.integers(1, 40))
  matrix = rng.normal(size=shape) * 10.0 ** rng.integers(-44, 38, shape)
  matrix[rng.random(shape) < 0.1] = [0.0, -0.0][seed % 2]
  return make_vectors(sorted(words), matrix)


@pytest.mark.parametrize('name', FORMATS)
@pytest.mark.parametrize('seed', range(8))
def test_round_trip_is_exact(tmp_path, monkeypatch, name, seed):
  monkeypatch.setattr(vector_files, '_CHUNK', 300)  # a few words
  monkeypatch.setattr(vector_files, 'LONGEST', 64)
  read, write = FORMATS[name]
  vectors = _drawn(seed)
  write(tmp_path / 'file', vectors)
  found = read(tmp_path / 'file')
  assert found.words == vectors.words and found.index == vectors.index
  assert found.matrix.tobytes() == vectors.matrix.tobytes()
  assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_the_formats_by_hand(tmp_path):
  vectors = make_vectors(['the', '北京'], [[0.5, -1], [1e-10, 3]])
  numbers = [np.array(row, '<f4').tobytes() for row in ([0.5, -1], [1e-10, 3])]
  expected = {
    'word2vec text': '2 2\nthe 0.5 -1\n北京 1.00000001e-10 3\n'.encode(),
    'word2vec binary': b'2 2\nthe ' + numbers[0] + '\n北京 '.encode() + numbers[1] + b'\n',
    'GloVe': 'the 0.5 -1\n北京 1.00000001e-10 3\n'.encode(),
  }
  for name, (_, write) in FORMATS.items():
    write(tmp_path / 'file', vectors)
    assert (tmp_path / 'file').read_bytes() == expected[name]


@pytest.fixture
def file(tmp_path):
  """Returns a function that writes bytes to a file and returns its path."""

  def write(content):
    (tmp_path / 'v.txt').write_bytes(content)
    return tmp_path / 'v.txt'

  return write


def test_files_of_other_programs(file):
  # word2vec itself ends lines of text with a space; some files have the line ends of Windows.
  found = read_word2vec_text(file(b'2 2 \na 1.000000 2.5e-1 \nb -3 4 \r\n'))
  assert found.words == ('a', 'b') and found.matrix.tolist() == [[1, 0.25], [-3, 4]]
  # Gensim puts no line ends between binary vectors.
  numbers = np.array([[1, 2], [3, 4]], '<f4')
  found = read_word2vec_binary(
    file(b'2 2\na ' + numbers[0].tobytes() + b'b ' + numbers[1].tobytes())
  )
  assert found.words == ('a', 'b') and found.matrix.tolist() == numbers.tolist()


def test_endless_line_is_refused_before_it_is_in_memory(file, monkeypatch):
  monkeypatch.setattr(vector_files, '_LINE', 50)
  message = 'v.txt, line {}: more than 50 bytes without a line end'
  for first in (b'a 1 2\n', b''):
    line = 3 - (not first)
    for endless in (b'b' * 100, b'b' + b' 1' * 50, b' ' * 100):
      content = first + endless
      with pytest.raises(UserError, match=message.format(line)):
        read_word2vec_text(file(b'2 2\n' + content))
      with pytest.raises(UserError, match=message.format(line - 1)):
        read_glove(file(content))
  longest = b'a' * 46 + b' 1 2'
  assert read_word2vec_text(file(b'1 2\n' + longest[1:] + b'\n')).words == ('a' * 45,)
  with pytest.raises(UserError, match=message.format(2)):
    read_word2vec_text(file(b'1 2\n' + longest + b'\n'))


@pytest.mark.parametrize('read', [read_word2vec_text, read_word2vec_binary])
def test_header_with_huge_vectors_is_refused(file, monkeypatch, read):
  monkeypatch.setattr(vector_files, '_MAX_SIZE', 9)
  with pytest.raises(UserError, match='10 values per word, above 9'):
    read(file(b'1 10\na ' + b'0 ' * 20))


def test_byte_order_mark_is_skipped(file):
  mark = b'\xef\xbb\xbf'
  assert read_word2vec_text(file(mark + b'1 2\na 1 2\n')).words == ('a',)
  assert read_glove(file(mark + b'a 1 2\n')).words == ('a',)
  assert read_glove(file(mark + b' 1 2\na 1 2\n')).words == ('\ufeff', 'a')
  with pytest.raises(UserError, match='is not UTF-8 but UTF-16'):
    read_glove(file('a 1 2\n'.encode('utf-16')))


def test_glove_words_with_spaces_and_numbers(file):
  found = read_glove(file(b', 1 2\n. . . 3 4\nat name@domain.com 5 6\n7 7 8\n\xc2\xa0 9 0\n'))
  assert found.words == (',', '. . .', 'at name@domain.com', '7', '\xa0')
  assert found.matrix.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 0]]
  assert read_glove(file(b'. . . 3 4\n')).words == ('. . .',)
  assert read_glove(file(b'1 2 3\n')).matrix.tolist() == [[2, 3]]


@pytest.mark.parametrize('name', FORMATS)
def test_truncated_file_is_refused(file, name):
  read, write = FORMATS[name]
  vectors = _drawn(3)
  path = file(b'')
  write(path, vectors)
  content = path.read_bytes()
  assert len(content) > 1000
  for size in [*range(60), *range(60, len(content) - 1, 61), len(content) - 1]:
    if name == 'GloVe' and size and content[size - 1] == ord('\n'):
      continue  # a file of fewer words
    if name == 'word2vec binary' and size == len(content) - 1:
      continue  # only the last line end is missing, which Gensim never writes
    with pytest.raises(UserError) as error:
      read(file(content[:size]))
    assert '\n' not in str(error.value) and len(str(error.value)) < 300


def test_out_of_memory_is_reported(file, monkeypatch):
  def full(shape, dtype):
    raise MemoryError

  monkeypatch.setattr(np, 'empty', full)
  with pytest.raises(UserError, match='2 words of 1 values exceed the memory'):
    read_glove(file(b'a 1\nb 2\n'))


HEADERS = [b'', b'\n', b'2\n', b'2 2', b'2 x\n', b'-2 2\n', b'0 2\n', b'2 0\n', b'the 0.1 0.2\n']


@pytest.mark.parametrize('header', HEADERS)
@pytest.mark.parametrize('read', [read_word2vec_text, read_word2vec_binary])
def test_wrong_headers_are_refused(file, read, header):
  message = f'v.txt, line 1: {header.decode()!r} is no header such as'
  with pytest.raises(UserError, match=re.escape(message)):
    read(file(header))


LARGE = b'999999999999 300\na 1\n'
TOLD_OF_TEXT = [
  (LARGE, '999,999,999,999 words of 300 values, .* has 21: it is truncated'),
  (b'2 2\na 1 2\nbee 1\n', r"line 3: 1 values after 'bee', not 2"),
  (b'2 2\na 1 2 3\nb 1 2\n', r"line 2: 3 values after 'a', not 2"),
  (b'2 2\naaaaaaaa 1 2\n\n', r"line 3: 0 values after '', not 2"),
  (b'2 2\n 1 2\nb 1 25\n', 'line 2: the word is empty'),
  (b'2 2\na 1 2\nb 1 2.5', 'line 3: no line end: the file is truncated, or'),
  (b'2 2\naaaaaaaa 1 2\n', 'ends after 1 of the 2 words'),
  (b'1 2\na 1 2\nb 1 2\n', 'line 3: more lines than the 1 words'),
  (b'2 2\na 1 2\nb 1 0,5\n', r"line 3: '0,5' is not a number"),
  (b'2 2\na 1 2\nb 1 1_0\n', r"line 3: '1_0' is not a number"),
  (b'2 2\na 1 2\nb 1\r2 3\n', r"line 3: '1\\r2' is not a number"),
  ('2 2\n北京 1 2 3\nb 1 2\n'.encode(), "line 2: 3 values after '北京', not 2"),
  (b'2 2\na 1 2\nb  1.5\n', r"line 3: '' is not a number"),
  (b'2 2\na 1 2\nb 1 nan\n', "line 3: value 2 of 'b' is nan"),
  (b'2 2\na 1e39 2\nb 1 2\n', "line 2: value 1 of 'a' is inf"),
  (b'2 2\na 1 2\nb\xe9 1 2\n', r"line 3: b'b\\xe9' is not UTF-8 at its byte 1; convert"),
  (b'2 2\na 1 2\n\xed\xa0\x80 1 2\n', 'line 3: .* is not UTF-8 at its byte 0'),  # a surrogate
  (b'2 2\na\x1b[2J 1 2\nb 1 2\n', r"line 2: the word 'a\\x1b\[2J' contains '\\x1b'"),
  (b'2 2\na\tb 1 2\nb 1 2\n', r"line 2: the word 'a\\tb' contains '\\t'"),
]


@pytest.mark.parametrize(('content', 'message'), TOLD_OF_TEXT)
def test_broken_text_is_refused(file, content, message):
  with pytest.raises(UserError, match=f'v.txt.*{message}') as error:
    read_word2vec_text(file(content))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'line 1: not a word and its values'),
    (b'the\n', 'line 1: not a word and its values'),
    (b'2 2\na 1 2\nb 1 2\n', 'line 1: a header, which files of GloVe lack'),
    (b'a 1 2\nb 1\n', r"line 2: 1 values after 'b', not 2"),
    (b'a 1 2\nb 1 2 3\n', r"line 2: 3 values after 'b', not 2"),
    (b'a 1 0,5 2\nb 1 2 3\n', r"line 2: 3 values after 'b', not 1"),
    (b'a 1 2\n b c 1 2\n', r"line 2: the word ' b c' contains ' '"),
    (b'a 1 2\nb 1 x\n', r"line 2: 'x' is not a number"),
    (b'a 1 2\nb 1 inf\n', "line 2: value 2 of 'b' is inf"),
    (b'a 1 2\nb\0 1 2\n', r"line 2: the word 'b\\x00' contains '\\x00'"),
    (b'a 1 2\nb 1 2', 'line 2: no line end'),
    (b'\n', 'line 1: not a word'),
  ],
)
def test_broken_glove_is_refused(file, content, message):
  with pytest.raises(UserError, match=f'v.txt, {message}') as error:
    read_glove(file(content))
  assert '\n' not in str(error.value)


ONE, NAN = np.array([1, 2], '<f4').tobytes(), np.array([1, np.nan], '<f4').tobytes()


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (LARGE, '999,999,999,999 words of 300 values'),
    (b'2 2\na ' + ONE + b'bbbb ' + ONE[:6], 'word 2 of 2 at byte 14: the file ends within it'),
    (b'2 2\na ' + ONE + b'b' * 20, 'word 2 of 2 at byte 14: the file ends within it'),
    (b'2 2\na ' + ONE + b'b' * 20_000, 'word 2 of 2 at byte 14: no space after it'),
    (b'1 2\na ' + ONE + b'b ' + ONE, 'data after the 1 words of its header, from byte 14 on'),
    (b'2 2\na ' + ONE + b'b ' + NAN, "word 2 of 2 at byte 14: value 2 of 'b' is nan"),
    (b'2 2\na ' + ONE + b'\n ' + ONE, 'word 2 of 2 at byte 15: the word is empty'),
    (b'2 2\na ' + ONE + b'\xff ' + ONE, r"word 2 of 2 at byte 14: b'\\xff' is not UTF-8 at its"),
    (b'2 2\na ' + ONE + b'b\n ' + ONE, r"word 2 of 2 at byte 14: the word 'b\\n' contains '\\n'"),
    (
      b'3 2\na 1.125 2.25\nb 1.125 2.25\nc 1.125 2.25\n',
      'its values are text, not binary; use --format=word2vec',
    ),
  ],
)
def test_broken_binary_is_refused(file, content, message):
  with pytest.raises(UserError, match=f'v.txt.*{message}') as error:
    read_word2vec_binary(file(content))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', FORMATS)
def test_illegal_words_keep_the_old_file(tmp_path, name):
  _, write = FORMATS[name]
  path = tmp_path / 'file'
  path.write_text('old')
  for word, message in (
    ('New York', r"the word 'New York' contains ' '"),
    ('a\n', r"the word 'a\\n' contains '\\n'"),
    ('\x1b', r"the word '\\x1b' contains '\\x1b'"),
    ('\ud800', r"the word '\\ud800' has the lone surrogate"),
  ):
    with pytest.raises(UserError, match=f'file: {message}'):
      write(path, make_vectors(['good', word], np.eye(2)))
    assert path.read_text() == 'old' and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize('name', FORMATS)
def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch, name):
  def full(descriptor):
    raise OSError(28, 'No space left on device')

  path = tmp_path / 'file'
  path.write_text('old')
  monkeypatch.setattr('os.fsync', full)
  with pytest.raises(UserError, match='file cannot be written: No space left on device'):
    FORMATS[name][1](path, make_vectors('a', [[1]]))
  assert path.read_text() == 'old' and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize('name', FORMATS)
def test_missing_files_are_reported(tmp_path, name):
  read, write = FORMATS[name]
  with pytest.raises(UserError, match='none cannot be read: No such file'):
    read(tmp_path / 'none')
  with pytest.raises(UserError, match='cannot be read: Is a directory'):
    read(tmp_path)
  with pytest.raises(UserError, match='none/file cannot be written: No such file'):
    write(tmp_path / 'none/file', make_vectors('a', [[1]]))


@pytest.mark.parametrize(
  ('name', 'options'),
  [
    ('word2vec text', {}),
    ('word2vec binary', {'binary': True}),
    ('GloVe', {'no_header': True}),
  ],
)
@pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)  # it leaves files open
def test_round_trip_with_gensim(tmp_path, name, options):
  models = pytest.importorskip('gensim.models')
  read, write = FORMATS[name]
  vectors = _drawn(5)
  write(tmp_path / 'written', vectors)
  published = models.KeyedVectors.load_word2vec_format(str(tmp_path / 'written'), **options)
  assert tuple(published.index_to_key) == vectors.words
  np.testing.assert_array_equal(published.vectors, vectors.matrix)
  write_header = not options.pop('no_header', False)
  published.save_word2vec_format(str(tmp_path / 'gensim'), write_header=write_header, **options)
  found = read(tmp_path / 'gensim')
  assert found.words == vectors.words
  np.testing.assert_array_equal(found.matrix, vectors.matrix)


@pytest.mark.parametrize('read', [read_word2vec_text, read_word2vec_binary, read_glove])
@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'\x1f\x8b\x08\0', 'unpack it first, as with gunzip'),
    (b'\x80\x04\x95', 'save_word2vec_format'),
  ],
)
def test_other_formats_are_refused(file, read, content, message):
  with pytest.raises(UserError, match=message):
    read(file(content))


@pytest.mark.parametrize('read', [read_word2vec_text, read_glove])
def test_binary_file_is_refused_as_text(file, read):
  with pytest.raises(UserError, match=r'binary, not text; use --format=word2vec_binary$'):
    read(file(b'2 2\na ' + ONE + b'b ' + ONE))


ROWS = [('the', 1), ('\ufffd\ufffd', 3), ('cat', 5), ('\ufffd\ufffd', 7), ('the', 9), ('dog', 11)]


def written(tmp_path, form, rows):
  """Writes rows of (word, first number); the second number is one more."""
  rows = [(word if isinstance(word, bytes) else word.encode(), x) for word, x in rows]
  header = b'' if form == 'glove' else b'%d 2\n' % len(rows)
  if form == 'binary':
    body = b''.join(word + b' ' + struct.pack('<2f', x, x + 1) for word, x in rows)
  else:
    body = b''.join(word + b' %d %d\n' % (x, x + 1) for word, x in rows)
  (tmp_path / 'v').write_bytes(header + body)
  return tmp_path / 'v'


READERS = {'word2vec': read_word2vec_text, 'glove': read_glove, 'binary': read_word2vec_binary}


@pytest.mark.parametrize('form', READERS)
def test_first_of_repeated_words_counts(form, tmp_path, capsys):
  vectors = READERS[form](written(tmp_path, form, ROWS))
  assert vectors.words == ('the', '\ufffd\ufffd', 'cat', 'dog')
  np.testing.assert_array_equal(vectors.matrix, [[1, 2], [3, 4], [5, 6], [11, 12]])
  (note,) = capsys.readouterr().err.splitlines()
  assert 'repeated' in note and ': 2, ' in note and '\ufffd\ufffd' in note


@pytest.mark.parametrize('form', READERS)
def test_truncated_character_is_replaced(form, tmp_path, capsys):
  rows = [('中文'.encode()[:5], 1), ('cat', 3), ('д'.encode()[:1], 5), (b'caf\xc3', 7)]
  vectors = READERS[form](written(tmp_path, form, rows))
  assert vectors.words == ('中\ufffd', 'cat', '\ufffd', 'caf\ufffd')
  np.testing.assert_array_equal(vectors.matrix[:, 0], [1, 3, 5, 7])
  (note,) = capsys.readouterr().err.splitlines()
  assert 'within a character' in note and ': 3, ' in note
  write_glove(tmp_path / 'again', vectors)
  assert read_glove(tmp_path / 'again').words == vectors.words


@pytest.mark.parametrize('form', READERS)
@pytest.mark.parametrize('word', [b'caf\xe9', b'\xe9t\xe9'])
def test_another_encoding_is_refused(form, word, tmp_path):
  with pytest.raises(UserError, match='is not UTF-8 at its byte') as error:
    READERS[form](written(tmp_path, form, [('the', 1), (word, 3)]))
  assert ('iconv' in str(error.value)) == (form != 'binary')  # iconv would destroy the values


@pytest.mark.parametrize('form', READERS)
def test_places_count_repeated_words(form, tmp_path):
  file = written(tmp_path, form, [('a', 1), ('a', 3), ('b', 5), ('a', 7), ('c', 9)])
  data = file.read_bytes()
  nan = struct.pack('<f', np.nan) if form == 'binary' else b'nan'
  nine = struct.pack('<f', 9) if form == 'binary' else b'9'
  file.write_bytes(data.replace(nine, nan))
  where = {'word2vec': 'line 6', 'glove': 'line 5', 'binary': 'word 5 of 5'}[form]
  with pytest.raises(UserError, match=rf"{where}.*: value 1 of 'c' is nan"):
    READERS[form](file)


def test_import_warns_of_repeated_words(tmp_path):
  file = written(tmp_path, 'glove', ROWS)
  result = in_process.run(
    'vectors', 'import', f'--workdir={tmp_path / "w"}', f'--file={file}', '--format=glove'
  )
  assert result.returncode == 0 and '4 words' in result.stdout
  (line,) = result.stderr.splitlines()
  assert line.startswith('warning: words repeated')
