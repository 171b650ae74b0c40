import collections
import math

import numpy as np
import pytest

from lm.data import batches, pipeline, transforms
from lm.errors import UserError
from lm.text import tokenizers

MASK = '<|mask|>'


@pytest.fixture(scope='module')
def letters():
  """Returns the tokenizer of the words a to j, each of them one token."""
  trained = tokenizers.words(['a b c d e f g h i j'], min_count=1)
  return tokenizers.with_special_tokens(trained, ('<|sep|>', MASK))


def row_of(tokenizer, *texts, T=40, examples=4, stream='inputs'):
  """Returns a row of a classifier with one segment for each text."""
  parts = [[tokenizer.token_to_id(name) for name in text.split()] for text in texts]
  filled = np.zeros((3, T), np.int32)
  at = 0
  for i, part in enumerate(parts):
    filled[:, at : at + len(part)] = part, np.full(len(part), i + 1), np.arange(len(part))
    at += len(part)
  present = np.arange(examples) < len(parts)
  prefix = '' if stream == 'inputs' else 'source_'
  names = (stream, f'{prefix}segments', f'{prefix}positions')
  row = dict(zip(names, filled, strict=True))
  if stream == 'source':
    return row | row_of(tokenizer, *texts)
  return row | {
    'targets': np.arange(examples, dtype=np.int32) * present,
    'weights': present.astype(np.float32),
    'examples': np.arange(1, examples + 1, dtype=np.int32) * present,
  }


def names_of(tokenizer, row, stream='inputs'):
  return [tokenizer.id_to_token(i) for i in row[stream].tolist()]


def same_but(row, changed, *streams):
  return row.keys() == changed.keys() and all(
    name in streams or (row[name] is changed[name]) for name in row
  )


def draws(transform, row, count, seed=0):
  rng = np.random.default_rng(seed)
  return [transform(row, rng) for _ in range(count)]


TEXTS = ('<|end|> a b c d e <|sep|> f g h', '<|end|> i j a b', '<|end|> c')


@pytest.mark.parametrize('stream', ['inputs', 'source'])
@pytest.mark.parametrize(
  'build',
  [
    lambda t, stream: transforms.word_dropout(t, stream, rate=0.99),
    lambda t, stream: transforms.span_masking(t, stream, rate=0.9, mean_length=20),
    lambda t, stream: transforms.swaps(t, stream, distance=9),
  ],
)
def test_noise_changes_only_text_of_its_stream(letters, build, stream):
  row = row_of(letters, *TEXTS, stream=stream)
  before = {name: values.copy() for name, values in row.items()}
  changed = draws(build(letters, stream), row, 200)
  fixed = np.isin(row[stream], [0, letters.token_to_id('<|sep|>')])
  assert fixed.sum() == 4 + 23 and row[stream].shape == (40,)
  for one in changed:
    assert same_but(row, one, stream) and one[stream].dtype == np.int32
    assert (one[stream][fixed] == row[stream][fixed]).all()
  assert all(any(one[stream][i] != row[stream][i] for one in changed) for i in (1, 5, 7))
  assert all((row[name] == before[name]).all() for name in row)


def test_word_dropout_masks_each_word_with_its_probability(letters):
  row = row_of(letters, *TEXTS)
  hidden = np.stack(
    [
      one['inputs'] == letters.token_to_id(MASK)
      for one in draws(transforms.word_dropout(letters, 'inputs', rate=0.3), row, 4000)
    ]
  )
  words = row['inputs'] > 1
  words &= row['inputs'] != letters.token_to_id('<|sep|>')
  assert words.sum() == 13 and not hidden[:, ~words].any()
  assert abs(hidden[:, words].mean(0) - 0.3).max() < 5 * math.sqrt(0.21 / 4000)
  both = (hidden[:, 1] & hidden[:, 2]).mean()
  assert abs(both - 0.09) < 5 * math.sqrt(0.09 * 0.91 / 4000)


@pytest.mark.parametrize('name', ['word_dropout', 'span_masking', 'swaps'])
def test_a_rate_of_zero_changes_nothing(letters, name):
  row = row_of(letters, *TEXTS)
  (same,) = draws(getattr(transforms, name)(letters, 'inputs', rate=0.0), row, 1)
  assert (same['inputs'] == row['inputs']).all()


def test_words_of_several_tokens_are_masked_together():
  tokenizer = tokenizers.with_special_tokens(tokenizers.bytes([]), ('[M]',))
  ids = tokenizer.encode('the old dog\nruns').ids
  row = row_of(tokenizer, T=20) | {'inputs': np.array([0, *ids] + [0] * 3, np.int32)}
  row['segments'] = (np.arange(20) < 17).astype(np.int32)

  def hidden(unit):
    transform = transforms.word_dropout(tokenizer, 'inputs', rate=0.5, unit=unit, token='[M]')
    sampled = draws(transform, row, 400)
    return {tokenizer.decode(one['inputs'][1:17].tolist(), False) for one in sampled}

  m = '[M]'
  words = ('the', ' old', ' dog', '\nruns')
  expected = {''}
  for word in words:
    expected = {text + shown for text in expected for shown in (word, m * len(word))}
  assert hidden('word') == expected
  assert len(hidden('token')) > 300


def test_wordpiece_continuations_belong_to_the_word_before():
  trained = tokenizers.wordpiece(['dogs dog cats cat'] * 5, 15)
  tokenizer = tokenizers.with_special_tokens(trained, (MASK,))
  pieces = tokenizer.encode('dogs cats').tokens
  inside = [piece.startswith('##') for piece in pieces]
  second = inside.index(False, 1)
  assert 1 < second < len(pieces) - 1
  row = row_of(tokenizer, ' '.join(pieces), T=len(pieces))
  transform = transforms.word_dropout(tokenizer, 'inputs', rate=0.5)
  hidden = {tuple(np.array(names_of(tokenizer, one)) == MASK) for one in draws(transform, row, 99)}
  both = [(a, b) for a in (False, True) for b in (False, True)]
  assert hidden == {(a,) * second + (b,) * (len(pieces) - second) for a, b in both}


def test_spans_have_geometric_lengths_and_mask_their_fraction(letters):
  text = ' '.join(['a'] * 5000)
  row = row_of(letters, text, T=5000)
  rate, mean = 0.2, 3.0
  sampled = draws(transforms.span_masking(letters, 'inputs', rate, mean), row, 40)
  hidden = np.stack([one['inputs'] == letters.token_to_id(MASK) for one in sampled])
  assert abs(hidden.mean() - rate) < 0.01
  lengths = collections.Counter()
  for line in hidden:
    edges = np.flatnonzero(np.diff(line.astype(int), prepend=0, append=0))
    lengths.update((edges[1::2] - edges[::2]).tolist())
  total = sum(lengths.values())
  for length in range(1, 8):  # P(length) = (1 - 1/mean)^(length - 1) / mean
    p = (1 - 1 / mean) ** (length - 1) / mean
    assert abs(lengths[length] / total - p) < 5 * math.sqrt(p * (1 - p) / total)


def test_the_first_word_of_a_row_is_masked_as_often_as_others(letters):
  row = row_of(letters, '<|end|> a b c d')
  sampled = draws(transforms.span_masking(letters, 'inputs', 0.3, 4.0), row, 4000)
  hidden = np.stack([one['inputs'][1:5] == letters.token_to_id(MASK) for one in sampled])
  assert abs(hidden.mean(0) - 0.3).max() < 5 * math.sqrt(0.21 / 4000)


def test_swapped_words_stay_near_and_in_their_text(letters):
  row = row_of(letters, 'a b c d e f g h i j', '<|end|> j i <|sep|> h g f')
  for distance in (1, 2, 4):
    far = 0
    for one in draws(transforms.swaps(letters, 'inputs', distance=distance), row, 300):
      names = names_of(letters, one)
      moved = [abs(i - 'abcdefghij'.index(name)) for i, name in enumerate(names[:10])]
      assert max(moved) <= distance and sorted(names[:10]) == [*'abcdefghij']
      assert names[10] == '<|end|>' and sorted(names[11:13]) == ['i', 'j']
      assert names[13] == '<|sep|>' and sorted(names[14:17]) == ['f', 'g', 'h']
      far = max(far, *moved)
    assert far == distance


def test_adjacent_texts_do_not_mix(letters):
  row = row_of(letters, 'a b c', 'd e f')
  for one in draws(transforms.swaps(letters, 'inputs'), row, 200):
    assert sorted(names_of(letters, one)[:3]) == ['a', 'b', 'c']


@pytest.mark.parametrize(('rate', 'swapped'), [(1.0, 1 / 8), (0.5, 1 / 8 * 1 / 4 + 1 / 2 * 1 / 4)])
def test_neighbors_swap_with_the_exact_probability(letters, rate, swapped):
  # For k = 1, a and b swap when u_a > 1 + u_b with both in [0, 2): an eighth of the square. If
  # only u_a is random, u_b = 0 and half of [0, 2) swaps; otherwise they never swap.
  sampled = draws(transforms.swaps(letters, 'inputs', rate, 1), row_of(letters, 'a b'), 8000)
  share = np.mean([names_of(letters, one)[0] == 'b' for one in sampled])
  assert abs(share - swapped) < 5 * math.sqrt(swapped * (1 - swapped) / 8000)


def test_words_of_several_tokens_move_together_and_the_first_stays():
  tokenizer = tokenizers.bytes([])
  ids = [0, *tokenizer.encode('one two three four').ids, 0]
  row = row_of(tokenizer, T=20) | {'inputs': np.array(ids, np.int32)}
  row['segments'] = np.ones(20, np.int32)
  sampled = draws(transforms.swaps(tokenizer, 'inputs', distance=3), row, 300)
  texts = {tokenizer.decode(one['inputs'][1:-1].tolist()) for one in sampled}
  orders = (
    'two three four',
    'three two four',
    'two four three',
    'four two three',
    'three four two',
  )
  assert texts == {f'one {order}' for order in (*orders, 'four three two')}


def test_rows_with_positional_fields_are_rejected(letters):
  swaps = transforms.swaps(letters, 'inputs')
  row, rng = row_of(letters, *TEXTS), np.random.default_rng(0)
  along = {'targets': row['inputs'], 'weights': np.ones(40, np.float32)}
  with pytest.raises(UserError, match=r"swaps\(stream='inputs'\) moves tokens.*'targets'"):
    swaps(row | along, rng)
  for name in ('words', 'bytes', 'prefix'):
    with pytest.raises(UserError, match=f"'{name}' of the row"):
      swaps(row | {name: row['inputs']}, rng)
  # Masking moves no token.
  hide = transforms.word_dropout(letters, 'inputs', 0.5)
  hide(row | along | {'words': row['inputs'], 'bytes': row['inputs']}, rng)


@pytest.mark.parametrize(
  ('build', 'message'),
  [
    (
      lambda t: transforms.word_dropout(t, 'sources'),
      r"stream='sources' \(did you mean 'source'\?\)",
    ),
    (
      lambda t: transforms.swaps(t, 'inputs', unit='words'),
      r"unit='words' \(did you mean 'word'\?\)",
    ),
    (
      lambda t: transforms.word_dropout(t, 'inputs', 1.5),
      r'word_dropout\(rate=1\.5\) is not between',
    ),
    (
      lambda t: transforms.swaps(t, 'inputs', distance=0),
      r'swaps\(distance=0\): must be at least 1',
    ),
    (
      lambda t: transforms.word_dropout(t, 'inputs', token='<|masks|>'),
      r"no token '<\|masks\|>'; add it by data\.special_tokens=\('<\|masks\|>',\), or use one of '",
    ),
    (
      lambda t: transforms.span_masking(t, 'inputs', 0.8, 3.0),
      r'rate=0\.8, mean_length=3\.0\): a span',
    ),
    (
      lambda t: transforms.span_masking(t, 'inputs', 0.1, 0.5),
      r'mean_length=0\.5\): a span and',
    ),
  ],
)
def test_user_errors_are_reported_in_one_line(letters, build, message):
  with pytest.raises(UserError, match=message) as e:
    build(letters)
  assert '\n' not in str(e.value) and str(e.value).startswith('data.transforms: ')


def test_the_maximum_rate_of_spans_is_allowed(letters):
  row = row_of(letters, ' '.join(['a'] * 40))
  sampled = draws(transforms.span_masking(letters, 'inputs', 0.75, 3.0), row, 200)
  shown = np.stack([one['inputs'] != letters.token_to_id(MASK) for one in sampled])
  assert abs(shown.mean() - 0.25) < 0.02 and not (shown[:, 1:] & shown[:, :-1]).any()


LINES = '\n'.join(f'line {n} of the text' for n in range(60))


def opened(section, corpus, *paths, **changes):
  data = section(corpus(LINES, documents='line'), special_tokens=(MASK,), **changes)
  tokenizer = pipeline.tokenizer(data)
  rows = pipeline.packed_rows(data, 'train', tokenizer, seed=0)
  return rows, batches.open_transforms(paths, tokenizer, rows), tokenizer


def plain(row, rng, amount=3):
  return row | {'inputs': row['inputs'] + rng.integers(0, amount, row['inputs'].shape)}


def test_builders_receive_the_tokenizer_and_differ_in_each_epoch(section, corpus):
  rows, transforms, tokenizer = opened(
    section,
    corpus,
    'lm.data.transforms:word_dropout(stream="inputs", rate=0.5)',
    f'{__name__}:plain(amount=1)',
  )
  n = len(rows)
  epochs = [batches.batch_at(rows, transforms, n, 3, step) for step in (0, 1)]
  again = batches.batch_at(rows, transforms, n, 3, 1)
  assert all((again[name] == epochs[1][name]).all() for name in again)
  part = batches.batch_at(rows, transforms, n, 3, 1, np.array([4, 2]))
  assert all((part[name] == again[name][[4, 2]]).all() for name in again)
  hidden = [
    {
      bytes(t): i == tokenizer.token_to_id(MASK)
      for t, i in zip(e['targets'], e['inputs'], strict=True)
    }
    for e in epochs
  ]
  assert hidden[0].keys() == hidden[1].keys() and len(hidden[0]) > n / 2
  differs = [(hidden[0][key] != hidden[1][key]).any() for key in hidden[0]]
  assert np.mean(differs) > 0.9


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    (
      'lm.data.transforms:swaps',
      r"data\.transforms\[0\]: lm\.data\.transforms:swaps: missing.*'stream'",
    ),
    ('lm.data.transforms:swap(stream="inputs")', r"no function 'swap' \(did you mean 'swaps'"),
    ('lm.data.transforms:swaps(stream="inputs", far=2)', r"takes no argument 'far'"),
    ('lm.data.transforms:swaps(stream="inputs")', r"moves tokens.*'bytes'"),
    (
      'lm.data.transforms:word_dropout(stream="source")',
      r"stream='source': the rows have 'inputs' only",
    ),
  ],
)
def test_an_unsuitable_transform_is_reported_before_training(section, corpus, path, message):
  with pytest.raises(UserError, match=message):
    opened(section, corpus, path)
