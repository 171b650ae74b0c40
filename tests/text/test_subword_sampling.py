import collections
import itertools
import json
import math

import numpy as np
import pytest
import tokenizers as library

from lm.errors import UserError
from lm.text import subword_sampling, tokenizers

CORPUS = [
  'the lower lowest newest widest low new wide',
  'lowering the widest newest tower, showering flowers; an eel feels deeply',
  '今天天气很好 今天很好 naïve café 🎉',
] * 8
UNSEEN = 'The slowest, newly-widened tower!\n\n  今天下雨 🎉🎉 x' + 'low' * 20


@pytest.fixture(scope='module')
def bpe():
  return tokenizers.bpe(CORPUS, 300)


@pytest.fixture(scope='module')
def unigram():
  return tokenizers.unigram(CORPUS, 270)


def words_of(tokenizer, text):
  return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def spelled(tokenizer, pieces):
  return tuple(tokenizer.id_to_token(i) for i in pieces)


def assert_sampled_from(counts, probabilities):
  """Every outcome is as frequent as expected, within 4.5 standard deviations, and none is new."""
  assert counts.keys() <= probabilities.keys()
  assert sum(probabilities.values()) == pytest.approx(1)
  total = sum(counts.values())
  for outcome, p in probabilities.items():
    assert abs(counts[outcome] - total * p) < 4.5 * math.sqrt(total * p * (1 - p)) + 1, outcome


def dropout_probabilities(word, ranks, rate):
  """Every way to drop some of the possible merges at each step, by Provilkov et al.'s algorithm."""
  found = collections.Counter()
  possible = [i for i in range(len(word) - 1) if (word[i], word[i + 1]) in ranks]
  for kept in itertools.product((False, True), repeat=len(possible)):
    p = math.prod(1 - rate if keep else rate for keep in kept)
    left = [i for i, keep in zip(possible, kept, strict=True) if keep]
    if not left:
      found[word] += p
      continue
    at = min(left, key=lambda i: (ranks[word[i], word[i + 1]], i))
    merged = (*word[:at], word[at] + word[at + 1], *word[at + 2 :])
    for outcome, q in dropout_probabilities(merged, ranks, rate).items():
      found[outcome] += p * q
  return found


def ranks_of(tokenizer):
  merges = json.loads(tokenizer.to_str())['model']['merges']
  return {tuple(pair): rank for rank, pair in enumerate(merges)}


@pytest.mark.parametrize('text', [*CORPUS[:3], UNSEEN])
def test_bpe_dropout_of_0_and_1(bpe, text):
  words, rng = words_of(bpe, text), np.random.default_rng(0)
  same = subword_sampling.bpe_dropout(bpe, 0)(words, rng)
  assert [*itertools.chain(*same)] == bpe.encode(text, add_special_tokens=False).ids
  single = subword_sampling.bpe_dropout(bpe, 1)(words, rng)
  assert ''.join(spelled(bpe, itertools.chain(*single))) == ''.join(words)
  assert sum(map(len, single)) == len(text.encode())


@pytest.mark.parametrize('rate', [0.1, 0.5])
def test_bpe_dropout_probabilities(bpe, rate):
  # Sampled in one call: the rest of one word must not affect the next.
  words = ['Ġlowest', 'ee', 'Ġwide']
  samples = subword_sampling.bpe_dropout(bpe, rate)(words * 20000, np.random.default_rng(1))
  pieces = [spelled(bpe, p) for p in samples]
  ranks = ranks_of(bpe)
  exact = [dropout_probabilities(tuple(word), ranks, rate) for word in words]
  assert len(exact[0]) > 8
  for i in range(3):
    assert_sampled_from(collections.Counter(pieces[i::3]), exact[i])
  pairs = {
    (a, b): p * q for (a, p), (b, q) in itertools.product(exact[0].items(), exact[2].items())
  }
  assert_sampled_from(collections.Counter(zip(pieces[::3], pieces[2::3], strict=True)), pairs)


def test_equal_merges_are_dropped_independently(bpe):
  model = library.models.BPE(bpe.get_vocab() | {'ee': 300}, merges=[('e', 'e')])
  twins = library.Tokenizer(model)
  twins.pre_tokenizer = bpe.pre_tokenizer
  samples = subword_sampling.bpe_dropout(twins, 0.5)(
    ['eexee', 'eee'] * 20000, np.random.default_rng(2)
  )
  for i, word in enumerate(('eexee', 'eee')):
    counts = collections.Counter(spelled(twins, p) for p in samples[i::2])
    assert_sampled_from(counts, dropout_probabilities(tuple(word), {('e', 'e'): 0}, 0.5))


def unigram_probabilities(word, scores, alpha):
  """All segmentations of a word by the exponential of their score, by enumeration."""
  found = {}
  for cuts in itertools.product((False, True), repeat=len(word) - 1):
    bounds = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(word)]
    pieces = tuple(word[a:b] for a, b in itertools.pairwise(bounds))
    if all(piece in scores for piece in pieces):
      found[pieces] = math.exp(alpha * sum(scores[piece] for piece in pieces))
  total = sum(found.values())
  return {pieces: value / total for pieces, value in found.items()}


def scores_of(tokenizer):
  return dict(json.loads(tokenizer.to_str())['model']['vocab'])


def unigram_of(scores):
  """A unigram model of END with a score of 0, single bytes and pieces of one's own."""
  alphabet = {character: -9.0 for character in library.pre_tokenizers.ByteLevel.alphabet()}
  pieces = {'<|end|>': 0.0} | alphabet | scores
  tokenizer = library.Tokenizer(library.models.Unigram([*pieces.items()]))
  tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(False, use_regex=False)
  tokenizer.add_special_tokens(['<|end|>'])
  return tokenizer


@pytest.mark.parametrize('alpha', [0, 0.2, 1])
def test_unigram_sampling_probabilities(alpha):
  scores = {'lo': -4.0, 'low': -5.0, 'w': -5.5, 'owe': -6.0, 'es': -4.5, 'est': -7.0, 't': -4.0}
  tokenizer = unigram_of(scores)
  words = ['lowest', 'lolo']
  samples = subword_sampling.unigram_sampling(tokenizer, alpha)(
    words * 20000, np.random.default_rng(3)
  )
  for i, word in enumerate(words):
    exact = unigram_probabilities(word, scores_of(tokenizer), alpha)
    assert len(exact) >= 4
    assert_sampled_from(collections.Counter(spelled(tokenizer, p) for p in samples[i::2]), exact)


@pytest.mark.parametrize('text', [*CORPUS[:3], UNSEEN])
def test_unigram_sampling_with_large_alpha_is_the_tokenizer(unigram, text):
  words, scores = words_of(unigram, text), scores_of(unigram)
  sampled = subword_sampling.unigram_sampling(unigram, 1e6)(words, np.random.default_rng(0))
  ids = unigram.encode(text, add_special_tokens=False).ids
  # Of two that are equally likely the library may take the other.
  score = lambda pieces: sum(scores[unigram.id_to_token(i)] for i in pieces)  # noqa: E731
  assert score(itertools.chain(*sampled)) == pytest.approx(score(ids))


def test_long_words_do_not_underflow(unigram):
  word = 'flowers' * 200
  (pieces,) = subword_sampling.unigram_sampling(unigram, 1.0)([word], np.random.default_rng(0))
  assert ''.join(spelled(unigram, pieces)) == word and 200 < len(pieces) < 1400


def test_end_inside_a_word_is_text():
  sample = subword_sampling.unigram_sampling(unigram_of({}), 1.0)
  (sampled,) = sample(['<|end|>'], np.random.default_rng(0))
  assert len(sampled) == 7 and 0 not in sampled


def test_samples_depend_on_the_generator_alone(bpe, unigram):
  words = words_of(bpe, UNSEEN)
  for sample in (
    subword_sampling.bpe_dropout(bpe, 0.3),
    subword_sampling.unigram_sampling(unigram, 0.3),
  ):
    first = sample(words, np.random.default_rng(7))
    sample(words, np.random.default_rng(8))
    assert (
      first == sample(words, np.random.default_rng(7)) != sample(words, np.random.default_rng(8))
    )


@pytest.mark.parametrize('pattern', [None, r'\p{N}{1,3}|\p{L}+|.'])
def test_tokens_are_split_into_their_words(bpe, pattern):
  tokenizer = tokenizers.with_special_tokens(bpe, ('<|sep|>',))
  if pattern:
    steps = library.pre_tokenizers
    split = steps.Split(library.Regex(pattern), 'isolated')
    tokenizer.pre_tokenizer = steps.Sequence([split, steps.ByteLevel(False, use_regex=False)])
  end, separator = 0, tokenizer.token_to_id('<|sep|>')
  ids = tokenizer.encode(UNSEEN, add_special_tokens=False).ids
  found = subword_sampling.word_splitter(tokenizer)([end, *ids, separator, *ids, end])
  words = words_of(tokenizer, UNSEEN)
  assert found == [(end,), *words, (separator,), *words, (end,)]
  usual = subword_sampling.default_pieces(tokenizer)
  assert [*itertools.chain(*map(usual, words))] == ids


def test_truncated_characters_stay_tokens(bpe):
  ids = tuple(bpe.encode('low 🎉', add_special_tokens=False).ids)
  split = subword_sampling.word_splitter(bpe)
  assert split(ids) == ['low', *words_of(bpe, ' 🎉')]
  single = subword_sampling.bpe_dropout(bpe, 1)(
    ['low', *words_of(bpe, ' 🎉')], np.random.default_rng(0)
  )
  cut = tuple(itertools.chain(*single))[:-1]
  assert split((*cut, 0)) == [cut, (0,)]


@pytest.mark.parametrize('kind', ['bytes', 'characters', 'words', 'wordpiece', 'unigram'])
def test_bpe_dropout_of_other_tokenizers_is_refused(kind):
  arguments = {'wordpiece': {'vocab_size': 90}, 'unigram': {'vocab_size': 270}}.get(kind, {})
  tokenizer = getattr(tokenizers, kind)(CORPUS, **arguments)
  with pytest.raises(UserError, match=r'byte-level BPE tokenizer such as lm\.text\.tokenizers:bpe'):
    subword_sampling.bpe_dropout(tokenizer, 0.1)


def test_add_prefix_space_is_refused(bpe):
  tokenizer = tokenizers.with_special_tokens(bpe, ())
  tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
  with pytest.raises(UserError, match='add_prefix_space'):
    subword_sampling.bpe_dropout(tokenizer, 0.1)


def test_unigram_sampling_of_other_tokenizers_is_refused(bpe):
  with pytest.raises(UserError, match=r'byte-level Unigram tokenizer such as lm\.text\.tok'):
    subword_sampling.unigram_sampling(bpe, 0.1)
