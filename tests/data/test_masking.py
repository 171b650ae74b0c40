"""Masking: units, rates, and what each objective sees of a row."""

import itertools

import numpy as np
import pytest

from lm.data import masking
from lm.data.encoding import text_encoder
from lm.data.masking import masked, masked_next_tokens, replaced
from lm.errors import UserError
from lm.text import tokenizers
from lm.text.segment import word_spans
from lm.text.tokenizers import with_special_tokens
from lm.text.words import SENTENCE, WORD, marks, word_marks

MASK = '<|mask|>'
TEXTS = [
  'unbelievable weather today, said the forecaster to nobody in particular. nobody replied.',
  'the committee reconvened; its unanswerable questions remained unanswered, regrettably so.',
  "it can't be 3,000.5 kilometres, naively speaking! the cartographer was flabbergasted.",
]
CHINESE = [
  '我们在北京大学学习自然语言处理. 老师讲得非常清楚。他说明天还有课。',
  '中华人民共和国成立于一九四九年。',
]


@pytest.fixture(scope='module', params=['bpe', 'wordpiece', 'unigram', 'characters'])
def tokenizer(request):
  """Returns a tokenizer whose words mostly have several tokens."""
  build, texts = getattr(tokenizers, request.param), TEXTS * 3
  if request.param == 'characters':
    pytest.importorskip('rjieba')
    return with_special_tokens(build(CHINESE), (MASK,)), CHINESE
  sizes = {'bpe': 300, 'wordpiece': 120, 'unigram': 300}
  return with_special_tokens(build(texts, vocab_size=sizes[request.param]), (MASK,)), TEXTS


def row_of(tokenizer, texts, words=word_marks):
  """Returns the row of text that holds some documents, and their tokens one after another."""
  arrays = text_encoder(tokenizer, words)(texts)
  counts, tokens = arrays['counts'], arrays['tokens'].astype(np.int32)
  segments = np.repeat(np.arange(1, len(counts) + 1), counts).astype(np.int32)
  positions = np.concatenate([np.arange(n) for n in counts]).astype(np.int32)
  return {
    'inputs': np.where(positions > 0, np.roll(tokens, 1), 0).astype(np.int32),
    'targets': tokens,
    'weights': np.ones(len(tokens), np.float32),
    'segments': segments,
    'positions': positions,
    'bytes': np.zeros(len(tokens), np.int32),
    'words': arrays['words'].astype(np.int32),
  }


def words_of(tokenizer, text):
  """Returns for each token of a text the set of the words that it covers, in characters."""
  spans = [*word_spans(text)]
  offsets = tokenizer.encode(text, add_special_tokens=False).offsets
  return [{w for w, (a, b) in enumerate(spans) if a < end and start < b} for start, end in offsets]


def test_masked_tokens_are_a_union_of_whole_words(tokenizer):
  tokenizer, texts = tokenizer
  transform = masked(tokenizer, rate=0.4)
  for seed, text in itertools.product(range(20), texts):
    row = row_of(tokenizer, [text])
    out = transform(row, np.random.default_rng(seed))
    chosen = {int(i) - 1 for i in out['masked'][out['weights'] > 0]}  # input i is target i - 1
    of_tokens = words_of(tokenizer, text)
    touched = set().union(*(of_tokens[i] for i in chosen))
    assert chosen
    for i, words in enumerate(of_tokens):
      if words & touched:
        assert i in chosen, (text, i)


def test_marks_of_words_and_sentences():
  text = 'Unreadable signs. He left'
  spans = [
    (0, 2),
    (2, 10),
    (10, 16),
    (16, 17),
    (17, 20),
    (20, 25),
  ]  # Un|readable| signs|.| He| left
  np.testing.assert_array_equal(word_marks(text, spans), [SENTENCE, 0, WORD, WORD, SENTENCE, WORD])
  # The three bytes of a character are one word, also where no word is.
  np.testing.assert_array_equal(marks([(0, 1)] * 3, []), [WORD, 0, 0])


@pytest.fixture(scope='module')
def letters():
  """Returns a tokenizer of single letters with a mask, and a long text in it."""
  tokenizer = with_special_tokens(tokenizers.characters(['abcdefghij']), (MASK,))
  rng = np.random.default_rng(0)
  return tokenizer, ''.join(rng.choice([*'abcdefghij'], 400))


def test_kept_random_and_masked_shares(letters):
  tokenizer, text = letters
  row, mask = row_of(tokenizer, [text]), tokenizer.token_to_id(MASK)
  counts = np.zeros(3)
  for seed in range(200):
    out = masked(tokenizer, unit='token')(row, np.random.default_rng(seed))
    assert len(out['masked']) == out['weights'].sum() == round(0.15 * 401)
    np.testing.assert_array_equal(out['targets'], row['inputs'][out['masked']])
    seen = out['inputs'][out['masked']]
    # A random token equals the original in 1 of 10 cases.
    counts += (seen == mask).sum(), (seen == out['targets']).sum(), len(seen)
    others = np.delete(out['inputs'], out['masked'])
    np.testing.assert_array_equal(others, np.delete(row['inputs'], out['masked']))
  np.testing.assert_allclose(counts[:2] / counts[2], [0.8, 0.11], atol=0.012)


def test_end_and_padding_are_never_masked(letters):
  tokenizer, text = letters
  row = row_of(tokenizer, [text[:5], text[5:9], text[9:12]])
  row = {name: np.append(values, np.zeros(4, values.dtype)) for name, values in row.items()}
  for seed in range(50):
    out = masked(tokenizer, unit='token', rate=0.9)(row, np.random.default_rng(seed))
    used = out['masked'][out['weights'] > 0]
    assert len(used) == round(0.9 * 12)
    assert (row['inputs'][used] > 0).all()
    assert (row['segments'][used] > 0).all()


def test_masked_next_tokens_hide_each_masked_token_and_nothing_else(letters):
  tokenizer, text = letters
  row, mask = row_of(tokenizer, [text[:50], text[50:90]]), tokenizer.token_to_id(MASK)
  out = masked_next_tokens(tokenizer, causal=0.0, unit='token')(row, np.random.default_rng(0))
  chosen = np.flatnonzero(out['weights'])
  assert len(chosen) == round(0.15 * 90)
  np.testing.assert_allclose(out['weights'][chosen], 1 / 0.15)
  np.testing.assert_array_equal(np.flatnonzero(out['inputs'] == mask), chosen + 1)
  np.testing.assert_array_equal(out['targets'], row['targets'])
  assert out['prefix'].all()
  causal = masked_next_tokens(tokenizer, causal=1.0, unit='token')(row, np.random.default_rng(0))
  assert not causal['prefix'].any()
  np.testing.assert_array_equal(causal['inputs'], row['inputs'])


def test_replaced_tokens_are_the_targets(letters):
  tokenizer, text = letters
  row = row_of(tokenizer, [text])
  out = replaced(tokenizer, rate=0.3, unit='token')(row, np.random.default_rng(0))
  np.testing.assert_array_equal(out['targets'], out['inputs'] != row['inputs'])
  assert 0.2 < out['targets'].mean() < 0.3


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda t, row: masked(t, rate=0.0), r'masked\(rate=0.0\) must be above 0 and below 1'),
    (lambda t, row: masked(t, rate=1.0), r'masked\(rate=1.0\) must be above 0 and below 1'),
    (lambda t, row: masked(t, kept=0.6, random=0.6), 'have a sum above 1'),
    (lambda t, row: masked(t, rate='0.15'), r"masked\(rate='0\.15'\) must be above 0 and below 1"),
    (lambda t, row: masked(t, kept='a'), "masked: kept='a' is not a number"),
    (lambda t, row: masked(t, random=-0.1), 'random=-0.1 is not between 0 and 1'),
    (lambda t, row: masked(t, unit='wrod'), "unit='wrod'.*'word'"),
    (lambda t, row: masked_next_tokens(t, causal=2.0), r'causal=2\.0 is not between 0 and 1'),
    (lambda t, row: masked(tokenizers.characters(['ab'])), 'data.tokenizer has no mask'),
    (lambda t, row: masked(t)(row - {'words'}, None), "data.words='lm.text.words:word_marks'"),
    (lambda t, row: masked(t)(row - {'bytes'}, None), 'rows of running text, unchanged'),
    (lambda t, row: masked(t)(row | {'inputs': row['targets'] * 0}, None), 'nothing to mask'),
  ],
)
def test_refusals(letters, call, message):
  class Row(dict):
    def __sub__(self, names):
      return {name: values for name, values in self.items() if name not in names}

  tokenizer, text = letters
  with pytest.raises(UserError, match=message) as e:
    call(tokenizer, Row(row_of(tokenizer, [text[:20]])))
  assert '\n' not in str(e.value)


def test_units_fill_the_rate_without_exceeding_it():
  sizes = np.array([1, 5, 2, 2, 1, 9, 3])
  units = masking.Units(np.repeat(np.arange(7), sizes), np.ones(7, bool), sizes)
  for seed in range(100):
    chosen = masking.choose(units, 0.35, 23, np.random.default_rng(seed))
    words = {int(u) for u in units.ids[chosen]}
    assert chosen.sum() == sizes[[*words]].sum() <= round(0.35 * 23)
    left = round(0.35 * 23) - chosen.sum()
    assert all(sizes[u] > left for u in set(range(7)) - words)
