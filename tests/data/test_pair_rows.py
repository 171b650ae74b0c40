"""Rows of pairs: their contents and order, and the keys of a config."""

import collections
import pathlib

import numpy as np
import pytest

from lm.data import batches, cooccurrence, pipeline
from lm.data.cooccurrence import PairRows, Pairs
from lm.errors import UserError
from lm.text import tokenizers

T = 8
COUNT = 'lm.data.cooccurrence:count_cooccurrences(window=2)'
WORDS = {'fn': 'lm.text.tokenizers:words', 'min_count': 1}


def numbered(count):
  """Returns pairs; every element identifies its pair."""
  n = np.arange(count)
  return Pairs(n.astype(np.int32), (n + 1000).astype(np.int32), n + 0.5)


@pytest.fixture
def rows_of(tmp_path):
  """Returns a function that writes blocks of pairs to the disk and opens them as rows."""

  def open_rows(*blocks, seed=0, seq_len=T):
    place = tmp_path / f'pairs-{len(list(tmp_path.iterdir()))}'
    place.mkdir()
    pairs = cooccurrence.write(place, blocks, seed)
    return PairRows(place, seq_len, {'pairs': pairs, 'documents': 3, 'content': 'some'})

  return open_rows


def flat(rows):
  """Returns the arrays of all rows, one after another, without padding."""
  batch = rows.batch(np.arange(len(rows)))
  return {name: values[batch['segments'] > 0] for name, values in batch.items()}


def test_every_pair_occurs_once_with_its_count(rows_of):
  pairs = numbered(100)
  arrays = flat(rows_of(Pairs(*(a[:30] for a in pairs)), Pairs(*(a[30:] for a in pairs))))
  assert sorted(arrays['inputs'].tolist()) == list(range(100))
  assert (arrays['neighbours'] == arrays['inputs'] + 1000).all()
  assert (arrays['counts'] == arrays['inputs'] + 0.5).all()


def test_recurring_pairs_are_summed_across_blocks(rows_of):
  pairs, twice = numbered(100), numbered(40)
  blocks = Pairs(*(a[:70] for a in pairs)), twice, Pairs(*(a[70:] for a in pairs))
  together = Pairs(*(np.concatenate(arrays) for arrays in zip(pairs, twice, strict=True)))
  arrays, one = flat(rows_of(*blocks)), flat(rows_of(together))
  assert all((arrays[name] == one[name]).all() for name in arrays)
  assert (
    arrays['counts'] == (arrays['inputs'] + 0.5) * np.where(arrays['inputs'] < 40, 2, 1)
  ).all()


def test_the_seed_determines_a_random_order(rows_of):
  orders = [flat(rows_of(numbered(5000), seed=seed))['inputs'] for seed in (0, 0, 1)]
  assert (orders[0] == orders[1]).all() and (orders[0] != orders[2]).any()
  # The place of a pair in the rows is unrelated to its place in the input.
  assert abs(np.corrcoef(orders[0], np.arange(5000))[0, 1]) < 0.05
  assert 0.45 < (np.diff(orders[0]) > 0).mean() < 0.55


def test_only_the_end_of_the_last_row_is_padding(rows_of):
  rows = rows_of(numbered(20))
  assert (len(rows), rows.tokens, rows.seq_len, rows.size) == (3, 20, T, T)
  assert (rows[0]['weights'] == 1).all() and (rows[1]['segments'] == 1).all()
  last = rows[2]
  assert last['weights'].tolist() == last['segments'].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
  assert all((values[4:] == 0).all() for values in last.values())


def test_a_batch_stacks_rows(rows_of):
  rows = rows_of(numbered(20))
  indices = np.array([2, 0, 0])
  batch = rows.batch(indices)
  types = {name: values.dtype.type for name, values in batch.items()}
  integers, numbers = np.int32, np.float32
  assert types == {
    'inputs': integers,
    'neighbours': integers,
    'counts': numbers,
    'weights': numbers,
    'segments': integers,
  }
  for name, values in batch.items():
    assert values.tolist() == [rows[int(i)][name].tolist() for i in indices]
  assert all((rows[-1][name] == rows[2][name]).all() for name in rows[0])
  with pytest.raises(IndexError):
    rows[3]


def test_training_and_evaluation_read_each_pair_once(rows_of):
  rows = rows_of(numbered(60))
  steps = batches.train_batches(rows, (), 4, 1, [range(0, 2)])
  for seen in ([batch for _, batch in steps], list(batches.eval_batches(rows, 5))):
    inputs = np.concatenate([batch['inputs'][batch['segments'] > 0] for batch in seen])
    assert sorted(inputs.tolist()) == list(range(60))


def test_a_config_names_the_counter(section, corpus):
  source = corpus('a b c\nb a a d\nx', documents='line')
  data = section(source, tokenizer=WORDS, pair_counter=COUNT, seq_len=4)
  tokenizer = pipeline.tokenizer(data)
  rows = pipeline.packed_rows(data, 'train', tokenizer, 0)
  arrays = flat(rows)
  names = [[tokenizer.id_to_token(int(i)) for i in arrays[k]] for k in ('inputs', 'neighbours')]
  expected = collections.Counter()
  ordered = {'ab': 2.5, 'bc': 1, 'ac': 0.5, 'ad': 1.5}  # b a a: 1 + 1/2; a b c: 1
  for (i, j), count in ordered.items():
    expected[i, j] = expected[j, i] = count
  expected['a', 'a'] = 2
  assert dict(zip(zip(*names, strict=True), arrays['counts'].tolist(), strict=True)) == expected
  assert isinstance(rows, PairRows) and (rows.documents, rows.tokens) == (3, len(expected))


def test_counted_pairs_are_cached(section, corpus, monkeypatch):
  data = section(corpus('a b c a b d'), tokenizer=WORDS, pair_counter=COUNT)
  tokenizer = pipeline.tokenizer(data)

  def fingerprint(seed=0, **changes):
    return pipeline.packed_rows(data | changes, 'train', tokenizer, seed).fingerprint

  first = fingerprint()
  others = [
    fingerprint(1),
    fingerprint(pair_counter='lm.data.cooccurrence:count_cooccurrences(window=3)'),
  ]

  def broken(stream, window):
    yield 1 / 0  # a generator, as the function is

  monkeypatch.setattr(cooccurrence.count_cooccurrences, '__code__', broken.__code__)
  assert fingerprint() == first
  others.append(fingerprint(seq_len=3))
  assert len({first, *others}) == 4
  with pytest.raises(ZeroDivisionError):
    fingerprint(2)


def test_an_interrupted_count_leaves_no_files(section, corpus, monkeypatch):
  data = section(corpus('a b c a b d'), tokenizer=WORDS, pair_counter=COUNT)
  tokenizer = pipeline.tokenizer(data)

  def broken(stream, window):
    yield numbered(3)
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(cooccurrence, 'count_cooccurrences', broken)
    with pytest.raises(UserError, match=r'data\.cache=.*the disk is full'):
      pipeline.packed_rows(data, 'train', tokenizer, 0)
  assert not list(pathlib.Path(data['cache']).glob('pairs-*'))
  rows = pipeline.packed_rows(data, 'train', tokenizer, 0)
  files = {f.name for f in next(pathlib.Path(data['cache']).glob('pairs-*')).iterdir()}
  assert files == {'meta.json', 'inputs.bin', 'neighbours.bin', 'counts.bin'}
  assert (flat(rows)['counts'] > 0).all()


@pytest.mark.parametrize('takes_progress', [True, False])
def test_counting_reports_progress(takes_progress, section, corpus, monkeypatch):
  data = section(corpus('a b c\nb c\na', documents='line'), tokenizer=WORDS, pair_counter=COUNT)
  data['cache'] += f'-{takes_progress}'
  count = cooccurrence.count_cooccurrences
  monkeypatch.setattr(cooccurrence, '_BLOCK', 3)
  if not takes_progress:  # a counter without this argument works too

    def silent(stream, window):
      return count(stream, window)

    monkeypatch.setattr(cooccurrence, 'count_cooccurrences', silent)
  lines = []
  pipeline.packed_rows(data, 'train', pipeline.tokenizer(data), 0, lambda *line: lines.append(line))
  counting = [(done, total) for done, total, what in lines if what == 'counting co-occurrences']
  # Of nine tokens, with END, the documents have four, three and two.
  assert counting == ([(0, 3), (1, 3), (3, 3)] if takes_progress else [])


@pytest.mark.parametrize(
  ('text', 'changes', 'message'),
  [
    ('', {}, r'data\.source: .*no text'),
    (
      'a',
      {},
      r"data\.pair_counter=.*in split 'train' no two words of the vocabulary occur near each other",
    ),
    ('a\nb\nc', {}, r'no two words'),
    (
      'a b c',
      {'tokenizer': WORDS | {'min_count': 2}},
      r'data\.tokenizer=.* its vocabulary has special tokens alone',
    ),
    (
      'a b',
      {'pair_counter': COUNT.replace('2', '0')},
      r'data\.pair_counter: window=0',
    ),
    (
      'a b',
      {'pair_counter': 'lm.data.cooccurrence:count_cooccurrence'},
      r"data\.pair_counter=.*did you mean 'count_cooccurrences'",
    ),
    (
      'a b',
      {'pair_counter': COUNT.replace('window', 'size')},
      r"takes no argument 'size'",
    ),
    (
      'a b',
      {'task': 'lm.tasks.text:classification'},
      r'data\.task=.* and data\.pair_counter=.*: pairs are',
    ),
    ('a b', {'seq_len': 0}, r'data\.seq_len=0'),
  ],
)
def test_user_errors_are_reported_in_one_line(section, corpus, text, changes, message):
  data = section(corpus(text, documents='line'), tokenizer=WORDS, pair_counter=COUNT) | changes
  tokenizer = tokenizers.words([text], data['tokenizer']['min_count'])
  with pytest.raises(UserError, match=message) as e:
    pipeline.packed_rows(data, 'train', tokenizer, 0)
  assert '\n' not in str(e.value)
