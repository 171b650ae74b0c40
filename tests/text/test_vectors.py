import numpy as np
import pytest

from lm.errors import UserError
from lm.text.vectors import (
  analogies,
  analogy,
  cosine,
  cosines,
  make_vectors,
  nearest_words,
  principal_components,
  row_of,
  three_cos_add,
  three_cos_mul,
)


def test_words_have_their_rows():
  vectors = make_vectors(['b', 'a', '\ud800', '\n'], [[1, 2], [3, 4], [5, 6], [7, 8]])
  assert vectors.words == ('b', 'a', '\ud800', '\n')
  assert vectors.matrix.dtype == np.float32
  assert vectors.matrix[row_of(vectors, 'a')].tolist() == [3, 4]
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
    (['a', 'b'], [[0, 1], [2, np.nan]], "the vector of 'b' has nan"),
    (['a'], [[1e39]], "the vector of 'a' has inf"),
  ],
)
def test_wrong_vectors_are_refused(words, matrix, message):
  with pytest.raises(UserError, match=message):
    make_vectors(words, matrix)


def test_unknown_word_names_similar_spellings():
  vectors = make_vectors(['Athens', 'Greece', '北京市', 'b'], np.eye(4))
  for word, close in (('athens', 'Athens'), ('Greeece', 'Greece'), ('北京', '北京市')):
    with pytest.raises(
      UserError, match=rf"{word}' is not among the 4 words \(did you mean '{close}'\?\)"
    ):
      row_of(vectors, word)
  for word, shown in (('zzz', 'zzz'), ('', ''), ('\ud800', r'\\ud800'), ('\x1b[2J', r'\\x1b\[2J')):
    with pytest.raises(UserError, match=f"^'{shown}' is not among the 4 words$"):
      row_of(vectors, word)


def test_first_nonfinite_number_is_named():
  matrix = np.zeros((10_000, 3), np.float32)
  words = list(map(str, range(10_000)))
  assert make_vectors(words, matrix).matrix is matrix
  matrix[9_000, 1], matrix[8_999, 2], matrix[9_999, 0] = np.nan, -np.inf, np.nan
  with pytest.raises(UserError, match="'8999' has -inf"):
    make_vectors(words, matrix)


@pytest.fixture
def plane():
  """Vectors at known angles, of lengths that must not matter."""
  angles = {'east': 0, 'north': 90, 'west': 180, 'south': 270, 'northeast': 45, 'nearly': 30}
  radians = np.deg2rad(list(angles.values()))
  lengths = np.array([1, 5, 0.1, 1e-30, 1e30, 2])[:, None]
  return make_vectors(angles, np.stack([np.cos(radians), np.sin(radians)], 1) * lengths)


def test_cosines_are_those_of_the_angles(plane):
  assert cosine(plane, 'east', 'nearly') == pytest.approx(3**0.5 / 2)
  assert cosine(plane, 'south', 'northeast') == pytest.approx(-(0.5**0.5))
  pairs = [(0, 1), (0, 2), (4, 4)]
  np.testing.assert_allclose(cosines(plane, pairs), [0, -1, 1], atol=1e-6)


def test_nearest_words_come_first(plane):
  found = nearest_words(plane, 'east', 3)
  assert [word for word, _ in found] == ['nearly', 'northeast', 'north']
  assert [score for _, score in found] == pytest.approx([3**0.5 / 2, 0.5**0.5, 0], abs=1e-6)
  assert nearest_words(plane, [0, -7], 1) == [('south', pytest.approx(1))]
  left = nearest_words(plane, 'east', 10, exclude=['nearly', 'elsewhere'])
  assert [word for word, _ in left] == ['northeast', 'north', 'south', 'west']


def test_ties_keep_their_order():
  words = [f'w{i}' for i in range(100)]  # enough for a sort that is not stable to show
  vectors = make_vectors(words, np.tile([[1, 0], [0, 1]], (50, 1)))
  found = [word for word, _ in nearest_words(vectors, 'w4', 99)]
  assert found == [*words[:4:2], *words[6::2], *words[1::2]]


def test_cosine_with_a_zero_vector_is_0():
  vectors = make_vectors('abc', [[0, 0], [1, 0], [-1, 0]])
  assert nearest_words(vectors, 'a') == [('b', 0), ('c', 0)]
  assert nearest_words(vectors, 'b') == [('a', 0), ('c', -1)]


def test_wrong_queries_are_refused(plane):
  with pytest.raises(UserError, match=r"'norht' is not among the 6 words .did you mean 'north'"):
    nearest_words(plane, 'norht')
  with pytest.raises(UserError, match=r"'eats' is not .*did you mean 'east'"):
    analogy(plane, 'west', 'eats', 'north')
  with pytest.raises(UserError, match='k=0'):
    nearest_words(plane, 'north', 0)
  for vector in ([1, 2, 3], [np.nan, 1]):
    with pytest.raises(ValueError, match='2 finite numbers'):
      nearest_words(plane, vector)


def test_analogies_by_hand():
  # Axes: royal, male, female. A king is royal and male; without a man and with a woman, a queen.
  words = {'man': (0, 1, 0), 'woman': (0, 0, 1), 'king': (1, 1, 0), 'queen': (1, 0, 1)}
  words |= {'crown': (1, 0, 0), 'person': (0, 1, 1)}
  vectors = make_vectors(words, list(words.values()))
  half = 0.5**0.5
  found = analogy(vectors, 'man', 'king', 'woman', 2)
  # queen: cos with king 1/2, with man 0, with woman half. crown: half - 0 + 0.
  assert found == [('queen', pytest.approx(0.5 + half)), ('crown', pytest.approx(half))]
  found = analogy(vectors, 'man', 'king', 'woman', 1, three_cos_mul)
  assert found == [('queen', pytest.approx((1.5 / 2) * ((1 + half) / 2) / (0.5 + 0.001)))]
  assert analogies(vectors, [(0, 2, 1), (1, 3, 0)]).tolist() == [3, 2]


@pytest.mark.parametrize('score', [three_cos_add, three_cos_mul])
def test_many_analogies_equal_one_at_a_time(score, monkeypatch):
  monkeypatch.setattr('lm.text.vectors._COSINES', 700)  # blocks of a few words
  rng = np.random.default_rng(0)
  vectors = make_vectors(map(str, range(100)), rng.normal(size=(100, 5)))
  questions = rng.integers(0, 100, (200, 3))
  matrix = vectors.matrix.astype(np.float64)
  cos = matrix @ matrix.T / np.outer(*[np.linalg.norm(matrix, axis=1)] * 2)
  expected = []
  for question in questions:
    scores = score(*cos[question])
    scores[question] = -np.inf
    expected.append(scores.argmax())
  np.testing.assert_array_equal(analogies(vectors, questions, score), expected)
  a, b, c = questions[0].astype(str)
  (best,) = analogy(vectors, a, b, c, 1, score)
  assert best[0] == str(expected[0])


def test_no_questions_and_no_words_left():
  vectors = make_vectors('abc', np.eye(3))
  assert analogies(vectors, []).shape == (0,)
  assert analogies(vectors, [(0, 1, 2), (0, 1, 1)]).tolist() == [-1, 2]
  assert analogy(vectors, 'a', 'b', 'c') == []


def test_principal_components_by_hand():
  # Along (3, 4) / 5 at -2, 0, 2, and across it at 1, -2, 1: variance 8 of 14 and 6 of 14.
  along, across = np.array([3, 4]) / 5, np.array([4, -3]) / 5
  matrix = np.outer([-2, 0, 2], along) + np.outer([1, -2, 1], across) + [10, 20]
  points, shares = principal_components(matrix, 3)
  np.testing.assert_allclose(points, [[-2, 1, 0], [0, -2, 0], [2, 1, 0]], atol=1e-12)
  np.testing.assert_allclose(shares, [8 / 14, 6 / 14, 0], atol=1e-12)


def test_one_word_has_no_directions():
  points, shares = principal_components(np.array([[3.0, 4.0]]))
  assert points.tolist() == [[0, 0]] and shares.tolist() == [0, 0]


@pytest.mark.filterwarnings('ignore:Call to deprecated .init_sims')  # by Gensim itself
def test_results_equal_those_of_gensim():
  models = pytest.importorskip('gensim.models')
  rng = np.random.default_rng(0)
  words = [f'w{i}' for i in range(300)]
  vectors = make_vectors(words, rng.normal(size=(300, 10)))
  gensim_vectors = models.KeyedVectors(10)
  gensim_vectors.add_vectors(words, vectors.matrix)
  for word in words[:5]:
    ours, expected = nearest_words(vectors, word), gensim_vectors.most_similar(word)
    assert [w for w, _ in ours] == [w for w, _ in expected]
    assert [s for _, s in ours] == pytest.approx([s for _, s in expected], abs=1e-6)
  for a, b, c in (('w1', 'w2', 'w3'), ('w7', 'w250', 'w9')):
    ours = analogy(vectors, a, b, c)
    expected = gensim_vectors.most_similar(positive=[b, c], negative=[a])
    assert [w for w, _ in ours] == [w for w, _ in expected]
    # Its constant in the denominator is a millionth, ours the thousandth of the paper.
    ((best, _),) = analogy(vectors, a, b, c, 1, three_cos_mul)
    assert best == gensim_vectors.most_similar_cosmul(positive=[b, c], negative=[a])[0][0]
