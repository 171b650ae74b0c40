"""Rows of uncut features, compared with the features themselves."""

import numpy as np
import pytest

from lm.data import batches, features, packing
from lm.data.packed_rows import FeatureRows
from lm.decode.loop import pad_prompts
from lm.errors import UserError
from lm.task import Features

T, S = 12, 20


def random_features(count, seed=0, source=True, weights=False, values=True):
  """Returns random features; every element identifies its feature."""
  rng = np.random.default_rng(seed)
  stored = []
  for n in range(count):
    t, s = rng.integers(1, T), rng.integers(1, S)
    tokens = {'inputs': 100 * n + np.arange(t), 'targets': 100 * n + 1 + np.arange(t)}
    tokens |= {'weights': np.arange(t) % 2} if weights else {}
    stored.append(
      Features(
        tokens,
        {'source': 1000 * n + np.arange(s)} if source else {},
        {'targets': n, 'weights': 1} if values else {},
      )
    )
  return stored


@pytest.fixture
def rows_of(tmp_path):
  """Returns a function that writes features to the disk and opens them as rows."""

  def open_rows(stored, seed=0):
    place, plan = tmp_path / 'features', tmp_path / 'plan'
    for folder in (place, plan):
      folder.mkdir()
    half = len(stored) // 2
    chunks = [
      features._stacked(list(enumerate(part)))
      | {features.COUNT: np.array([len(part)]), features.LONG: np.zeros(3, int)}
      for part in (stored[:half], stored[half:])
    ]
    meta = features.write_features(place, chunks)
    sizes = np.stack([np.load(place / f'{stream}.npy') for stream in features.STREAMS], axis=1)
    ends, order = packing.pack_examples(sizes, np.array([T, S]), seed)
    np.save(plan / 'row_ends.npy', ends)
    np.save(plan / 'order.npy', order)
    return FeatureRows(place, plan, (T, S), meta)

  return open_rows


def pieces(rows):
  """Yields the index of each feature, its slot in its row, and the row."""
  for i in range(len(rows)):
    row = rows[i]
    filled = row['examples'] > 0
    assert (np.diff(filled.astype(int)) <= 0).all()  # padding comes last
    for slot in np.flatnonzero(filled):
      yield int(row['examples'][slot]) - 1, slot, row


def test_every_feature_is_one_segment_of_one_row(rows_of):
  stored = random_features(50, values=False)
  rows = rows_of(stored)
  assert len(rows) < 50
  seen = []
  for feature, slot, row in pieces(rows):
    seen.append(feature)
    inside, in_source = row['segments'] == slot + 1, row['source_segments'] == slot + 1
    for name, expected in stored[feature].tokens.items():
      assert row[name][inside].tolist() == expected.tolist()
    assert row['positions'][inside].tolist() == list(range(inside.sum()))
    assert row['source'][in_source].tolist() == stored[feature].source['source'].tolist()
    assert row['source_positions'][in_source].tolist() == list(range(in_source.sum()))
  assert sorted(seen) == list(range(50))


def test_padding_is_zero_and_comes_last(rows_of):
  rows = rows_of(random_features(50, values=False))
  for i in range(len(rows)):
    for prefix in ('', 'source_'):
      padding = rows[i][f'{prefix}segments'] == 0
      assert (np.diff(padding.astype(int)) >= 0).all()
      along = [x for n, x in rows[i].items() if n.startswith('source') == bool(prefix)]
      assert all((x[padding] == 0).all() for x in along if x.shape == padding.shape)


def test_weights_are_1_if_a_converter_returns_none(rows_of):
  rows = rows_of(random_features(10, values=False))
  assert all((row['weights'] == (row['segments'] > 0)).all() for row in (rows[0], rows[1]))
  assert rows[0]['weights'].dtype == np.float32


def test_weights_of_a_converter_follow_the_row(rows_of):
  stored = random_features(20, source=False, weights=True, values=False)
  rows = rows_of(stored)
  for feature, slot, row in pieces(rows):
    inside = row['segments'] == slot + 1
    assert row['weights'][inside].tolist() == stored[feature].tokens['weights'].tolist()
    assert row['weights'].dtype == np.float32
  assert 'source' not in rows[0] and rows.size == T


def test_values_of_examples_are_in_the_order_of_the_segments(rows_of):
  stored = [
    f._replace(tokens={'inputs': f.tokens['inputs']}) for f in random_features(30, source=False)
  ]
  rows = rows_of(stored)
  most = max(rows[i]['segments'].max() for i in range(len(rows)))
  for feature, slot, row in pieces(rows):
    assert (row['targets'][slot], row['weights'][slot]) == (feature, 1)
    assert row['targets'].shape == row['weights'].shape == row['examples'].shape == (most,)
    assert (row['weights'][row['examples'] == 0] == 0).all()
  assert rows[0]['targets'].dtype == np.int32 and rows[0]['weights'].dtype == np.float32


def test_numbers_that_are_no_classes_are_floats(rows_of):
  stored = [
    Features({'inputs': np.arange(3)}, {}, {'targets': target, 'weights': 1})
    for target in (1.0, 2.0, 0.5)
  ]
  rows = rows_of(stored)
  (row,) = (rows[i] for i in range(len(rows)))
  assert row['targets'].dtype == np.float32
  assert sorted(row['targets'].tolist()) == [0.5, 1.0, 2.0]


def test_a_batch_stacks_rows(rows_of):
  rows = rows_of(random_features(50, values=False))
  indices = np.array([len(rows) - 1, 0, 3, 3, 1])
  batch = rows.batch(indices)
  for name, values in batch.items():
    assert (values == np.stack([rows[int(i)][name] for i in indices])).all()
    assert values.dtype == (np.float32 if name == 'weights' else np.int32)
  assert batch['inputs'].shape == (5, T) and batch['source'].shape == (5, S)


def test_counts_and_indices(rows_of):
  stored = random_features(20, values=False)
  rows = rows_of(stored)
  sizes = [len(f.tokens['inputs']) + len(f.source['source']) for f in stored]
  assert (rows.tokens, rows.documents, rows.size) == (sum(sizes), 20, T + S)
  assert rows.example.tolist() == list(range(20))
  assert all((rows[-1][name] == rows[len(rows) - 1][name]).all() for name in rows[0])
  with pytest.raises(IndexError):
    rows[len(rows)]


def test_evaluation_reads_each_example_once_and_padded_rows_have_no_weight(rows_of):
  rows = rows_of(random_features(50, values=False))
  size = len(rows) - 1  # the second batch has one row
  seen = list(batches.eval_batches(rows, size))
  assert [batch['inputs'].shape[0] for batch in seen] == [size, size]
  examples = np.concatenate([batch['examples'].ravel() for batch in seen])
  assert sorted(examples[examples > 0].tolist()) == list(range(1, 51))
  assert all((values[1:] == 0).all() for values in seen[1].values())


def test_floats_stay_floats_in_every_stream(rows_of):
  weights = [np.array([0.25, 0.5, 0.0]), np.array([1, 0, 1]), np.array([0.75])]
  stored = [
    Features(
      {'inputs': np.arange(len(w)), 'weights': w, 'score': np.arange(len(w)) / 8},
      {'source': np.arange(2), 'reliability': np.array([0.5, 0.125])},
      {'targets': 0.5 * i, 'weights': 0.5},
    )
    for i, w in enumerate(weights)
  ]
  batch = rows_of(stored).batch(np.arange(1))
  types = {name: x.dtype.name for name, x in batch.items()}
  floats = {name for name, x in types.items() if x == 'float32'}
  assert floats == {'weights', 'score', 'reliability', 'targets'}
  assert set(types.values()) == {'int32', 'float32'}
  row = batch['segments'][0] > 0
  # Weights along the row follow weights per example and replace them.
  in_order = sorted(batch['weights'][0, row].tolist())
  assert in_order == sorted(np.concatenate(weights).tolist())
  assert set(batch['reliability'][0][batch['source_segments'][0] > 0]) == {0.5, 0.125}


def test_features_may_be_arrays_of_any_type(rows_of):
  rng = np.random.default_rng(0)
  stored = [
    Features(
      {'inputs': np.arange(n), 'patch': rng.integers(0, 256, (n, 2, 3)).astype(np.uint8)},
      {'source': np.arange(n + 1), 'audio': rng.random((n + 1, 4)).astype(np.float16)},
      {'image': rng.random((5, 2)), 'flag': np.array([True, n > 3])},
    )
    for n in rng.integers(1, 6, 30)
  ]
  rows = rows_of(stored)
  batch = rows.batch(np.arange(len(rows)))
  P = batch['examples'].shape[1]
  assert {k: (x.dtype.name, *x.shape[1:]) for k, x in batch.items() if x.ndim > 2} == {
    'patch': ('uint8', T, 2, 3),
    'audio': ('float16', S, 4),
    'image': ('float32', P, 5, 2),
    'flag': ('bool', P, 2),
  }
  for feature, slot, row in pieces(rows):
    one = stored[feature]
    np.testing.assert_array_equal(row['patch'][row['segments'] == slot + 1], one.tokens['patch'])
    inside = row['source_segments'] == slot + 1
    np.testing.assert_array_equal(row['audio'][inside], one.source['audio'])
    np.testing.assert_array_equal(row['image'][slot], one.values['image'].astype(np.float32))
    assert (row['flag'][slot] == one.values['flag']).all()
    assert not row['patch'][row['segments'] == 0].any()
  moved = batches.batch_at(rows, (lambda row, rng: row | {'image': row['image'] + 1},), 3, 0, 0)
  assert moved['image'].shape == (3, P, 5, 2) and moved['image'].min() >= 1
  prompts = pad_prompts(stored[:2], lambda size: 8)
  assert prompts['patch'].shape == (2, 8, 2, 3) and prompts['image'].shape == (2, 1, 5, 2)
  n = len(stored[1].tokens['inputs'])
  np.testing.assert_array_equal(prompts['patch'][1, :n], stored[1].tokens['patch'])


def test_examples_without_tokens_do_not_make_others_floats(rows_of):
  tokens = [{'inputs': np.array([])}, {'inputs': np.array([3, 4])}]
  rows = rows_of([Features(each, {}, {}) for each in tokens])
  inputs = rows.batch(np.arange(len(rows)))['inputs']
  assert inputs.dtype == np.int32
  assert inputs[inputs > 0].tolist() == [3, 4]


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ([np.array([1, 2]), np.array([0.5])], 'int32 in some examples and float32 in others'),
    ([np.array([1, 2]), np.array([2**31])], '2147483648'),
    ([np.zeros((2, 3)), np.zeros((1, 4))], r'float32\[3\] in some examples and float32\[4\]'),
    ([np.zeros((1, 3)), np.zeros((1, 3)), np.zeros((1, 4))], r'shapes \(3,\) and \(4,\)'),
    ([np.array(['a']), np.array(['b'])], 'not a numeric one'),
  ],
)
def test_values_outside_int32_are_rejected(values, message, rows_of):
  with pytest.raises(UserError, match=message):
    rows_of([Features({'inputs': np.arange(len(v)), 'mine': v}, {}, {}) for v in values])


def test_a_prompt_keeps_its_floats():
  prompts = [Features({'inputs': np.arange(2), 'score': np.array([0.5, 0.25])}, {}, {})]
  batch = pad_prompts(prompts, lambda size: size + 1)
  np.testing.assert_array_equal(batch['score'], np.float32([[0.5, 0.25, 0]]))
