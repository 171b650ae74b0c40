"""Co-occurrence counts, compared with a double loop over the words of each document."""

import collections
import gzip
import os
import pathlib

import numpy as np
import pytest

from lm.data import cooccurrence
from lm.data.cooccurrence import TokenStream, count_cooccurrences
from lm.errors import UserError

V = 40


def corpus_of(*documents, size=V, words=None):
  """Returns a stream of documents; tokens from 2 on are words."""
  tokens = np.concatenate([np.array(document, np.uint16) for document in documents])
  words = np.arange(size) >= 2 if words is None else words
  return TokenStream(tokens, np.cumsum([len(document) for document in documents]), words)


def random_documents(count, size=V, seed=0, longest=60):
  """Returns documents of random words with a skewed distribution."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(0, longest, count)
  return [np.minimum(rng.geometric(0.02, n) - 1, size - 1) for n in lengths]


def counted(corpus, **arguments):
  """Returns the count of each pair, summed over all blocks."""
  totals = collections.Counter()
  for inputs, others, counts in count_cooccurrences(corpus, **arguments):
    assert inputs.dtype == others.dtype == np.int32 and counts.dtype == np.float64
    for pair, count in zip(zip(inputs.tolist(), others.tolist(), strict=True), counts, strict=True):
      totals[pair] += float(count)
  return totals


def by_hand(documents, window):
  totals = collections.Counter()
  for document in documents:
    known = [int(token) for token in document if token >= 2]
    for place, word in enumerate(known):
      for other_place, other in enumerate(known):
        if 0 < abs(place - other_place) <= window:
          totals[word, other] += 1 / abs(place - other_place)
  return totals


def test_a_neighbor_counts_one_over_its_distance():
  a, b, c = 2, 3, 4
  totals = counted(corpus_of([a, b, c, a]), window=2)
  ordered = {(a, b): 1 + 1 / 2, (b, c): 1, (a, c): 1 / 2 + 1}
  assert totals == ordered | {(j, i): count for (i, j), count in ordered.items()}


def test_equal_words_count_twice_in_one_pair():
  assert counted(corpus_of([5, 5, 5]), window=2) == {(5, 5): 2 * (1 + 1 + 1 / 2)}


def test_tokens_that_are_no_words_add_no_distance():
  unknown, end = 1, 0
  totals = counted(corpus_of([7, unknown, unknown, 8, end]), window=1)
  assert totals == {(7, 8): 1, (8, 7): 1}


def test_no_window_crosses_a_document():
  apart = corpus_of([7, 8], [9], [], [7, 9])
  assert set(counted(apart, window=5)) == {(7, 8), (8, 7), (7, 9), (9, 7)}


@pytest.mark.parametrize('window', [1, 3, 10, 80])
@pytest.mark.parametrize('block', [7, 64, 2**18])
@pytest.mark.parametrize(
  'memory', [2**15, 2**20, 2**28]
)  # with blocks, without blocks, all pairs in the table
def test_counts_equal_those_of_a_double_loop(monkeypatch, window, block, memory):
  monkeypatch.setattr(cooccurrence, '_BLOCK', block)
  monkeypatch.setattr(cooccurrence, '_MIN_MEMORY', 1)
  documents = random_documents(30, size=200)
  corpus = corpus_of(*documents, size=200)
  totals = counted(corpus, window=window, memory=memory)
  assert totals == pytest.approx(by_hand(documents, window), rel=1e-12)


@pytest.mark.parametrize('memory', [2**12, 2**14])
def test_memory_bounds_the_blocks_and_changes_no_count(monkeypatch, memory):
  monkeypatch.setattr(cooccurrence, '_MIN_MEMORY', 1)
  monkeypatch.setattr(cooccurrence, '_BLOCK', 16)
  corpus = corpus_of(*random_documents(60))
  sizes = [len(pairs.counts) for pairs in count_cooccurrences(corpus, memory=memory)]
  # A block ends when it fills half the memory; it then has both directions of each pair.
  assert len(sizes) > 2 and max(sizes) <= 2 * (memory // 2 // cooccurrence._BYTES + 16)
  assert counted(corpus, memory=memory) == pytest.approx(counted(corpus), rel=1e-12)


def test_a_large_window_covers_the_document():
  documents = [[5, 6, 7, 5], [6, 7]]
  totals = counted(corpus_of(*documents), window=2**50)
  assert totals == pytest.approx(by_hand(documents, 99), rel=1e-12)


def test_absent_tokens_need_no_memory():
  size = 2**16
  words = np.ones(size, bool)
  totals = counted(corpus_of([7, size - 1], size=size, words=words))
  assert totals == {(7, size - 1): 1, (size - 1, 7): 1}


@pytest.mark.parametrize('documents', [[[]], [[5]], [[5, 1, 0], [6, 0]]])
def test_single_words_have_no_pairs(documents):
  assert counted(corpus_of(*documents)) == {}


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'window': 0}, r'data\.pair_counter: window=0 .*at least 1'),
    ({'window': 2.5}, r'data\.pair_counter: window=2\.5 is not'),
    ({'window': 2**62}, r'data\.pair_counter: window=4611686018427387904 is too large for 2 words'),
    ({'memory': 1000}, r'data\.pair_counter: memory=1000 .*16777216'),
  ],
)
def test_user_errors_are_reported(arguments, message):
  with pytest.raises(UserError, match=message):
    next(count_cooccurrences(corpus_of([5, 6]), **arguments))


@pytest.mark.skipif('LM_DATA' not in os.environ, reason='LM_DATA is not set')
def test_counts_equal_those_of_the_glove_program():
  file = pathlib.Path(os.environ['LM_DATA'], 'english_text/text8like.txt.gz')
  text = gzip.decompress(file.read_bytes()).decode().split()
  frequent = [word for word, n in collections.Counter(text).items() if n >= 5]
  token = {word: i for i, word in enumerate(['<unk>', *frequent])}
  tokens = np.array([token.get(word, 0) for word in text], np.uint16)
  corpus = TokenStream(tokens, np.array([len(tokens)]), np.arange(len(token)) > 0)
  blocks = list(count_cooccurrences(corpus, window=10, memory=2**26))
  # Output of `vocab_count -min-count 5` and `cooccur -symmetric 1 -window-size 10`, GloVe 52f7dbc.
  assert len(frequent) == 21172
  keys = np.concatenate([p.inputs.astype(np.int64) * len(token) + p.neighbours for p in blocks])
  assert len(np.unique(keys)) == 9780295
  assert sum(pairs.counts.sum() for pairs in blocks) == pytest.approx(13150473.382539611, rel=1e-12)
  expected = {
    ('the', 'the'): 41221.32460313,
    ('of', 'the'): 50141.2833333,
    ('the', 'may'): 690.28214286,
  }
  for (word, other), count in expected.items():
    both = ((p.counts, p.inputs == token[word], p.neighbours == token[other]) for p in blocks)
    total = sum(counts[i & j].sum() for counts, i, j in both)
    assert total == pytest.approx(count, rel=1e-9)
