import numpy as np
import pytest

from lm.errors import UserError
from lm.text.vectors import checked, not_finite, row


def test_words_have_their_rows():
  vectors = checked(['b', 'a', '\ud800', '\n'], [[1, 2], [3, 4], [5, 6], [7, 8]])
  assert vectors.words == ('b', 'a', '\ud800', '\n')
  assert vectors.matrix.dtype == np.float32
  assert vectors.matrix[row(vectors, 'a')].tolist() == [3, 4]
  assert dict(vectors.index) == {'b': 0, 'a': 1, '\ud800': 2, '\n': 3}


@pytest.mark.parametrize(
  ('words', 'matrix', 'message'),
  [
    ([], np.zeros((0, 2)), r'0 words with vectors of shape \(0, 2\)'),
    (['a'], np.zeros((2, 2)), r'1 words with vectors of shape \(2, 2\)'),
    (['a', 'b'], np.zeros(2), r'2 words with vectors of shape \(2,\)'),
    (['a'], np.zeros((1, 0)), r'1 words with vectors of shape \(1, 0\)'),
    (['a', ''], np.zeros((2, 1)), 'word 2 of 2 is empty'),
    (['a', 'b', 'a'], np.zeros((3, 1)), "word 3 is 'a', and so is word 1"),
    (['a', 'b'], [[0, 1], [2, np.nan]], "the vector of 'b' holds nan"),
    (['a'], [[1e39]], "the vector of 'a' holds inf"),
  ],
)
def test_what_cannot_be_vectors_is_told(words, matrix, message):
  with pytest.raises(UserError, match=message):
    checked(words, matrix)


def test_words_that_are_not_there_have_neighbours_in_spelling():
  vectors = checked(['Athens', 'Greece', '北京市', 'b'], np.eye(4))
  for word, close in (('athens', 'Athens'), ('Greeece', 'Greece'), ('北京', '北京市')):
    with pytest.raises(
      UserError, match=rf"{word}' is not among the 4 words \(did you mean '{close}'\?\)"
    ):
      row(vectors, word)
  for word, shown in (('zzz', 'zzz'), ('', ''), ('\ud800', r'\\ud800'), ('\x1b[2J', r'\\x1b\[2J')):
    with pytest.raises(UserError, match=f"^'{shown}' is not among the 4 words$"):
      row(vectors, word)


def test_the_first_number_that_is_not_finite_is_found():
  matrix = np.zeros((10_000, 3), np.float32)
  assert not_finite(matrix) is None
  matrix[9_000, 1], matrix[8_999, 2], matrix[9_999, 0] = np.nan, -np.inf, np.nan
  assert not_finite(matrix) == (8_999, 2)
