import itertools
import os
import pathlib

import numpy as np
import pytest

from lm.errors import UserError
from lm.metrics.word_vectors import (
  accuracy,
  groups,
  pairs,
  questions,
  read_pairs,
  read_questions,
  similarity,
)
from lm.text.vectors import make_vectors, three_cos_mul

needs_data = pytest.mark.skipif('LM_DATA' not in os.environ, reason='needs the folder LM_DATA')


def _fan(*words):
  """Returns words at rising angles from the first, so that later ones are less like it."""
  angles = np.linspace(0, 1.5, len(words))
  return make_vectors(words, np.stack([np.cos(angles), np.sin(angles)], axis=1))


def test_rank_correlation_by_hand():
  vectors = _fan('a', 'b', 'c', 'd')
  pairs = [('a', 'b', 9.0), ('a', 'c', 5.0), ('a', 'd', 7.0)]
  # Ranks 3 2 1 against 3 1 2: 1 - 6 * 2 / (3 * 8).
  assert similarity(vectors, pairs).values == {'spearman': pytest.approx(0.5), 'coverage': 1}


def test_rank_correlation_is_that_of_scipy():
  stats = pytest.importorskip('scipy.stats')
  rng = np.random.default_rng(0)
  matrix = rng.normal(size=(10, 3))
  # Many scores are equal, and, as pairs come again, so are many cosines.
  pairs = [(str(a), str(b), float(s)) for a, b, s in rng.integers(0, 10, (300, 3)) if a < b]
  left, right = (matrix[[int(pair[i]) for pair in pairs]] for i in range(2))
  cos = np.sum(left * right, 1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
  expected = stats.spearmanr(cos, [s for *_, s in pairs]).statistic
  found = similarity(make_vectors(map(str, range(10)), matrix), pairs).values['spearman']
  assert found == pytest.approx(expected, abs=1e-9)


def test_words_are_looked_up_as_spelled_or_in_lower_case():
  vectors = _fan('one', 'Two', 'two', 'three')
  pairs = [('ONE', 'Two', 9.0), ('one', 'three', 1.0), ('one', 'four', 5.0), ('one', 'oNe', 10.0)]
  # 'Two' is nearer to 'one' than 'two' is; the pair with 'four' is left out.
  assert similarity(vectors, pairs).values == {'spearman': pytest.approx(1), 'coverage': 0.75}
  swapped = [('one', 'two', 2.0), ('one', 'Two', 1.0)]
  assert similarity(vectors, swapped).values['spearman'] == pytest.approx(-1)


def test_one_pair_has_no_correlation():
  assert np.isnan(similarity(_fan('a', 'b'), [('a', 'b', 1.0)]).values['spearman'])


@pytest.fixture
def royals():
  words = {'man': (0, 1, 0), 'woman': (0, 0, 1), 'king': (1, 1, 0), 'queen': (1, 0, 1)}
  return make_vectors([*words, 'crown'], [*words.values(), (1, 0, 0)])


@pytest.mark.parametrize('score', [(), (three_cos_mul,)])
def test_accuracy_by_section(royals, score):
  sections = {
    'family': [('man', 'king', 'woman', 'queen'), ('Man', 'king', 'WOMAN', 'crown')],
    'mixed': [('woman', 'queen', 'man', 'king'), ('man', 'king', 'boy', 'prince')],
    'unknown': [('a', 'b', 'c', 'd')],
    'empty': [],
  }
  assert accuracy(royals, sections, *score).values == {
    'accuracy': pytest.approx(2 / 3),
    'coverage': 3 / 5,
    'family/accuracy': 0.5,
    'family/coverage': 1,
    'mixed/accuracy': 1,
    'mixed/coverage': 0.5,
    'unknown/coverage': 0,
  }


def test_an_answer_among_the_words_of_its_question_is_never_right(royals):
  assert accuracy(royals, {'x': [('man', 'man', 'king', 'king')]}).values['accuracy'] == 0


def test_a_metric_without_covered_items_is_an_error(royals):
  with pytest.raises(
    UserError, match='similarity: metric on an empty set; none of the 1 pairs has both'
  ):
    similarity(royals, [('man', 'boy', 1.0)])
  with pytest.raises(
    UserError, match='accuracy: metric on an empty set; none of the 1 questions has'
  ):
    accuracy(royals, {'x': [('man', 'king', 'woman', 'princess')]})


@pytest.fixture
def write(tmp_path):
  """Returns a function that writes a file and returns its path."""

  def write(content):
    (tmp_path / 'a.txt').write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path / 'a.txt'

  return write


def test_files_are_read(write):
  assert read_pairs(write('# a comment\nold\tnew\t1.58\r\n\nTV\t电视\t10')) == [
    ('old', 'new', 1.58),
    ('TV', '电视', 10.0),
  ]
  assert read_questions(write('\ufeff: A B\r\n避 避一避 补 补一补\r\n:C\na b c d\n')) == {
    'A B': [('避', '避一避', '补', '补一补')],
    'C': [('a', 'b', 'c', 'd')],
  }


@pytest.mark.parametrize(
  ('read', 'content', 'message'),
  [
    (read_pairs, 'a\tb\t1\na b 2\n', r"line 2: 'a b 2' is not 3 fields with '\\t' between them"),
    (read_pairs, 'a\t\t1\n', 'line 1: .* is not 3 fields'),
    (read_pairs, 'a\tb\tmuch\n', "line 1: 'much' is not a score"),
    (read_pairs, 'a\tb\tnan\n', "line 1: 'nan' is not a score"),
    (read_pairs, '# only this\n', 'has no pairs of words'),
    (read_pairs, b'a\tb\t1\n\xff\tb\t1\n', 'is not UTF-8 at byte 6'),
    (read_questions, ': a\na b c\n', r"line 2: 'a b c' is not 4 fields with ' ' between them"),
    (read_questions, 'a b c d\n', "line 1: 'a b c d' precedes the first section"),
    (read_questions, ': a\na b c d\n: a\n', "line 3: the section 'a' is repeated"),
    (read_questions, ': a\n', 'has no questions'),
    (read_questions, b': a\0\n', 'has a NUL at byte 3'),
  ],
)
def test_broken_files_are_refused(write, read, content, message):
  with pytest.raises(UserError, match=rf'a\.txt.*{message}'):
    read(write(content))


def test_missing_files_are_refused(tmp_path):
  with pytest.raises(UserError, match='none cannot be read: No such file'):
    read_pairs(tmp_path / 'none')
  with pytest.raises(UserError, match='cannot be read: Is a directory'):
    read_questions(tmp_path)


def test_metrics_have_the_name_of_their_file_or_their_own(write, monkeypatch):
  file = write('a\tb\t9\na\tc\t5\na\td\t7\n')
  monkeypatch.setenv('FOLDER', str(file.parent))
  metric = pairs(file='$FOLDER/a.txt')
  assert metric.name == 'a'
  values = metric.score(_fan('a', 'b', 'c', 'd')).values
  assert values == {'spearman': pytest.approx(0.5), 'coverage': 1}
  assert pairs(file=str(file), name='likeness').name == 'likeness'
  with pytest.raises(UserError, match='the environment variable NOWHERE is not set'):
    pairs(file='$NOWHERE/a.txt')


def test_both_scores_of_questions(write):
  rng = np.random.default_rng(0)
  vectors = make_vectors(map(str, range(30)), rng.normal(size=(30, 3)))
  asked = [tuple(map(str, rng.choice(30, 4, replace=False))) for _ in range(200)]
  lines = '\n'.join(' '.join(question) for question in asked)
  matrix = vectors.matrix / np.linalg.norm(vectors.matrix, axis=1, keepdims=True)
  right = {'add': 0, 'mul': 0}
  for words in asked:
    a, b, c, d = map(int, words)
    others = [i for i in range(30) if i not in (a, b, c)]
    cos_a, cos_b, cos_c = (matrix[others] @ matrix[i] for i in (a, b, c))
    shifted = [(1 + cos) / 2 for cos in (cos_a, cos_b, cos_c)]
    right['add'] += others[np.argmax(cos_b - cos_a + cos_c)] == d
    right['mul'] += others[np.argmax(shifted[1] * shifted[2] / (shifted[0] + 0.001))] == d
  assert right['add'] != right['mul'] and min(right.values()) > 0
  file = write(f': one\n{lines}\n: two\nx y z w\n')
  expected = {'add_accuracy': right['add'] / 200, 'mul_accuracy': right['mul'] / 200}
  expected['coverage'] = 200 / 201
  assert questions(str(file)).score(vectors).values == pytest.approx(expected)
  by_section = questions(str(file), sections=True).score(vectors).values
  assert by_section == pytest.approx(
    expected
    | {'one/add_accuracy': right['add'] / 200, 'one/mul_accuracy': right['mul'] / 200}
    | {'one/coverage': 1, 'two/coverage': 0}
  )


def test_groups_by_hand():
  # At angles 0, 0.1 and 0.5 the first group; at 0.55, 1.5 and 1.4 the second: 0.5 and 0.55 are
  # nearest to each other, the others to one of their own.
  angles = {'a': 0, 'b': 0.1, 'c': 0.5, 'd': 0.55, 'e': 1.5, 'f': 1.4, 'other': 0.05}
  vectors = make_vectors(angles, [(np.cos(x), np.sin(x)) for x in angles.values()])
  metric = groups(groups={'first': ['A', 'b', 'c', 'absent'], 'second': ['d', 'e', 'f']})
  assert metric.name == 'groups'
  assert metric.score(vectors).values == {'accuracy': pytest.approx(4 / 6), 'coverage': 6 / 7}
  # 'e', alone of its group, is left out: 'f' has 'd' nearest, and 'd' has 'b'.
  metric = groups(groups={'1': ['a', 'b'], '2': ['e', 'absent'], '3': ['f', 'd']}, name='kinds')
  assert metric.name == 'kinds'
  assert metric.score(vectors).values == {'accuracy': 0.75, 'coverage': 4 / 6}


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'days': ['monday', 'friday']}, 'at least two groups of two words'),
    ({'days': ['monday', 'friday'], 'months': ['may']}, 'at least two groups of two words'),
    ({'days': ['monday', 'may'], 'months': ['may', 'june']}, "groups: 'may' is repeated"),
  ],
)
def test_wrong_groups_are_refused(given, message):
  with pytest.raises(UserError, match=message):
    groups(groups=given)


def test_groups_without_words_are_an_error():
  metric = groups(groups={'1': ['a', 'b'], '2': ['x', 'y']})
  with pytest.raises(UserError, match='groups: metric on an empty set; of 2 groups fewer than two'):
    metric.score(_fan('a', 'b'))


@needs_data
def test_real_files():
  folder = pathlib.Path(os.environ['LM_DATA'], 'word_eval')
  pairs = read_pairs(folder / 'wordsim353.tsv')
  assert len(pairs) == 353 and pairs[2] == ('tiger', 'tiger', 10.0)
  assert len(read_pairs(folder / 'simlex999.txt')) == 999
  sizes = {'questions-words': (14, 19_544), 'CA8_semantic': (4, 7_636)}
  sizes |= {'CA8_morphological': (4, 10_177), 'ca_translated': (3, 953)}
  for name, (sections, count) in sizes.items():
    found = read_questions(folder / f'{name}.txt')
    assert (len(found), sum(map(len, found.values()))) == (sections, count)
  assert read_questions(folder / 'questions-words.txt')['family'][0] == (
    'boy',
    'girl',
    'brother',
    'sister',
  )


@needs_data
def test_vectors_made_of_the_relations_answer_all_questions_of_a_section():
  file = pathlib.Path(os.environ['LM_DATA'], 'word_eval', 'questions-words.txt')
  section = read_questions(file)['capital-common-countries']
  rng = np.random.default_rng(0)
  capital = rng.normal(size=200)
  vectors = {}
  for a, b, c, d in section:
    for city, country in ((a, b), (c, d)):
      if country not in vectors:
        vectors[country] = rng.normal(size=200)
        vectors[city] = vectors[country] + capital
  values = accuracy(make_vectors(vectors, list(vectors.values())), {'x': section}).values
  assert values['accuracy'] == values['coverage'] == 1


@needs_data
@pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)  # it leaves files open
def test_scores_equal_those_of_gensim():
  models = pytest.importorskip('gensim.models')
  folder = pathlib.Path(os.environ['LM_DATA'], 'word_eval')
  pairs, file = read_pairs(folder / 'wordsim353.tsv'), folder / 'questions-words.txt'
  sections = {
    'family': read_questions(file)['family'],
    'currency': read_questions(file)['currency'],
  }
  rng = np.random.default_rng(0)
  sampled = {w.lower(): rng.normal(size=10) for pair in pairs for w in pair[:2]}
  for a, b, c, d in itertools.chain.from_iterable(sections.values()):
    for one, other in ((a.lower(), b.lower()), (c.lower(), d.lower())):
      sampled.setdefault(one, rng.normal(size=10))
      # A relation with noise, so that some answers are right and some wrong.
      sampled.setdefault(other, sampled[one] + 1 + rng.normal(0, 0.7, 10))
  words = [word for word in sampled if rng.random() < 0.9]
  vectors = make_vectors(words, [sampled[word] for word in words])
  gensim_vectors = models.KeyedVectors(10)
  gensim_vectors.add_vectors(words, vectors.matrix)
  _, spearman, unknown = gensim_vectors.evaluate_word_pairs(str(folder / 'wordsim353.tsv'))
  assert similarity(vectors, pairs).values == {
    'spearman': pytest.approx(spearman.statistic, abs=1e-4),
    'coverage': pytest.approx(1 - unknown / 100),
  }
  assert 0.7 < 1 - unknown / 100 < 0.95
  _, found = gensim_vectors.evaluate_word_analogies(str(file))
  ours = accuracy(vectors, sections).values
  theirs_by_section = {s['section']: (len(s['correct']), len(s['incorrect'])) for s in found}
  for name in sections:
    right, wrong = theirs_by_section[name]
    assert right and wrong
    assert ours[f'{name}/accuracy'] == pytest.approx(right / (right + wrong))
