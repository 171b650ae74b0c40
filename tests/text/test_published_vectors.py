"""Word vectors as they are published: words that repeat, words cut inside a character."""

import struct

import in_process
import numpy as np
import pytest

from lm.errors import UserError
from lm.text.vector_files import read_glove, read_word2vec_binary, read_word2vec_text, write_glove

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
def test_of_words_that_repeat_the_first_counts(form, tmp_path):
  told = []
  vectors = READERS[form](written(tmp_path, form, ROWS), told.append)
  assert vectors.words == ('the', '\ufffd\ufffd', 'cat', 'dog')
  np.testing.assert_array_equal(vectors.matrix, [[1, 2], [3, 4], [5, 6], [11, 12]])
  (note,) = told
  assert 'already there' in note and ': 2, ' in note and '\ufffd\ufffd' in note


@pytest.mark.parametrize('form', READERS)
def test_a_word_cut_inside_a_character_ends_in_its_sign(form, tmp_path):
  told = []
  rows = [('中文'.encode()[:5], 1), ('cat', 3), ('д'.encode()[:1], 5), (b'caf\xc3', 7)]
  vectors = READERS[form](written(tmp_path, form, rows), told.append)
  assert vectors.words == ('中\ufffd', 'cat', '\ufffd', 'caf\ufffd')
  np.testing.assert_array_equal(vectors.matrix[:, 0], [1, 3, 5, 7])
  (note,) = told
  assert 'inside a character' in note and ': 3, ' in note
  write_glove(tmp_path / 'again', vectors)
  assert read_glove(tmp_path / 'again').words == vectors.words


@pytest.mark.parametrize('form', READERS)
@pytest.mark.parametrize('word', [b'caf\xe9', b'\xe9t\xe9'])
def test_another_encoding_is_refused(form, word, tmp_path):
  with pytest.raises(UserError, match='is not UTF-8 at its byte') as told:
    READERS[form](written(tmp_path, form, [('the', 1), (word, 3)]))
  assert ('iconv' in str(told.value)) == (form != 'binary')  # which it would destroy


@pytest.mark.parametrize('form', READERS)
def test_places_count_the_words_that_are_passed_over(form, tmp_path):
  file = written(tmp_path, form, [('a', 1), ('a', 3), ('b', 5), ('a', 7), ('c', 9)])
  data = file.read_bytes()
  nan = struct.pack('<f', np.nan) if form == 'binary' else b'nan'
  nine = struct.pack('<f', 9) if form == 'binary' else b'9'
  file.write_bytes(data.replace(nine, nan))
  where = {'word2vec': 'line 6', 'glove': 'line 5', 'binary': 'word 5 of 5'}[form]
  with pytest.raises(UserError, match=rf"{where}: number 1 of 'c' is nan"):
    READERS[form](file)


def test_import_says_what_it_passes_over(tmp_path):
  file = written(tmp_path, 'glove', ROWS)
  result = in_process.run(
    'vectors', 'import', f'--workdir={tmp_path / "w"}', f'--file={file}', '--format=glove'
  )
  assert result.returncode == 0 and '4 words' in result.stdout
  (line,) = result.stderr.splitlines()
  assert line.startswith('warning: words already there')
