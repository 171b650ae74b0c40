import time

import numpy as np
import pytest

from lm.data.packing import best_fit, concatenate, pack_examples

PACKERS = [concatenate, best_fit]


def lengths_of(seed, seq_len, documents=200):
  rng = np.random.default_rng(seed)
  return rng.integers(1, 3 * seq_len, documents)


@pytest.mark.parametrize('pack', PACKERS)
@pytest.mark.parametrize('seq_len', [1, 2, 7, 64])
@pytest.mark.parametrize('seed', range(3))
def test_every_target_of_every_document_appears_once(pack, seq_len, seed):
  lengths = lengths_of(seed, seq_len)
  ends = np.cumsum(lengths)
  plan = pack(ends, seq_len, seed)
  seen = np.zeros(ends[-1], int)
  for start, length, document in zip(plan.starts, plan.lengths, plan.documents, strict=True):
    assert ends[document] - lengths[document] <= start
    assert start + length <= ends[document]
    seen[start : start + length] += 1
  assert (seen == 1).all()


@pytest.mark.parametrize('pack', PACKERS)
def test_rows_have_at_most_seq_len_tokens(pack):
  plan = pack(np.cumsum(lengths_of(0, 32)), 32, 0)
  rows = np.split(plan.lengths, plan.row_ends)
  assert len(rows.pop()) == 0
  assert all(0 < row.sum() <= 32 for row in rows)
  assert plan.row_ends.dtype == plan.starts.dtype == plan.documents.dtype == np.int64
  assert plan.lengths.dtype == np.int32


def test_concatenation_fills_all_rows_but_the_last():
  lengths = lengths_of(1, 16)
  plan = concatenate(np.cumsum(lengths), 16, 0)
  rows = np.add.reduceat(plan.lengths, np.r_[0, plan.row_ends[:-1]])
  assert (rows[:-1] == 16).all() and rows.sum() == lengths.sum()


def test_concatenation_keeps_each_document_together():
  plan = concatenate(np.cumsum(lengths_of(1, 16)), 16, 0)
  changes = np.count_nonzero(np.diff(plan.documents)) + 1
  assert changes == len(np.unique(plan.documents)) == 200
  within = np.diff(plan.documents) == 0
  assert (np.diff(plan.starts)[within] == plan.lengths[:-1][within]).all()


def test_one_document_is_cut_in_order():
  plan = concatenate(np.array([10]), 4, seed=3)
  assert plan.starts.tolist() == [0, 4, 8] and plan.lengths.tolist() == [4, 4, 2]
  assert plan.row_ends.tolist() == [1, 2, 3]


def test_best_fit_cuts_only_documents_longer_than_a_row():
  lengths = lengths_of(2, 16)
  plan = best_fit(np.cumsum(lengths), 16, 0)
  pieces = np.bincount(plan.documents)
  assert (pieces == -(-lengths // 16)).all()


def reference_best_fit_decreasing(sizes, capacity):
  """Packs one item at a time, the longest first, into the fullest bin with enough space."""
  spaces = []
  for size in sorted(sizes, reverse=True):
    fitting = [i for i, space in enumerate(spaces) if space >= size]
    if fitting:
      spaces[min(fitting, key=lambda i: spaces[i])] -= size
    else:
      spaces.append(capacity - size)
  return sorted(capacity - space for space in spaces)


@pytest.mark.parametrize('seed', range(20))
def test_best_fit_decreasing_equals_a_loop_over_items(seed):
  rng = np.random.default_rng(seed)
  capacity = int(rng.integers(3, 40))
  lengths = rng.integers(1, capacity, int(rng.integers(1, 300)))
  plan = best_fit(np.cumsum(lengths), capacity, seed)
  rows = np.add.reduceat(plan.lengths, np.r_[0, plan.row_ends[:-1]])
  assert sorted(rows.tolist()) == reference_best_fit_decreasing(lengths.tolist(), capacity)


@pytest.mark.parametrize('pack', PACKERS)
def test_the_order_depends_only_on_the_seed(pack):
  ends = np.cumsum(lengths_of(0, 8))
  first, again, other = pack(ends, 8, 1), pack(ends, 8, 1), pack(ends, 8, 2)
  assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
  assert not np.array_equal(first.documents, other.documents)


@pytest.mark.parametrize('pack', PACKERS)
def test_a_million_documents_pack_quickly(pack):
  lengths = np.random.default_rng(0).geometric(1 / 300, 1_000_000)
  start = time.process_time()
  plan = pack(np.cumsum(lengths), 1024, 0)
  assert time.process_time() - start < 60  # a second or two on an idle core; quadratic is hours
  assert plan.lengths.sum() == lengths.sum()


def sizes_of(seed, examples=2000):
  """Returns lengths of sentences and of their translations: skewed and correlated."""
  rng = np.random.default_rng(seed)
  source = np.clip(rng.lognormal(2.7, 0.5, examples), 2, 128)
  target = np.clip(source * rng.lognormal(0.05, 0.2, examples), 2, 128)
  return np.stack([target, source], axis=1).astype(int)


def rows_of(plan):
  ends, order = plan
  *rows, rest = np.split(order, ends)
  assert len(rest) == 0
  return rows


@pytest.mark.parametrize('seed', range(3))
def test_each_example_is_in_one_row_with_enough_space(seed):
  sizes, capacity = sizes_of(seed), np.array([128, 128])
  ends, order = plan = pack_examples(sizes, capacity, seed)
  assert ends.dtype == order.dtype == np.int64
  assert sorted(order.tolist()) == list(range(2000))
  for row in rows_of(plan):
    assert len(row) and (sizes[row].sum(0) <= capacity).all()


def test_rows_of_examples_are_more_than_nine_tenths_full():
  sizes, capacity = sizes_of(0), np.array([128, 128])
  rows = rows_of(pack_examples(sizes, capacity, 0))
  assert sizes.sum() / (len(rows) * capacity.sum()) > 0.9


def test_an_axis_of_zero_sizes_changes_no_row():
  sizes = sizes_of(0) * [1, 0]
  ends, order = pack_examples(sizes, np.array([128, 128]), 0)
  assert sizes.sum() / (len(ends) * 128) > 0.9
  # The capacity along this axis changes no row either.
  other_ends, other = pack_examples(sizes, np.array([128, 5]), 0)
  np.testing.assert_array_equal(ends, other_ends)
  np.testing.assert_array_equal(order, other)


def test_examples_as_large_as_a_row_and_empty_ones_are_packed():
  sizes = np.array([[8, 3], [0, 0], [8, 8], [1, 8], [0, 0]])
  rows = rows_of(pack_examples(sizes, np.array([8, 8]), 0))
  assert sorted(np.concatenate(rows).tolist()) == list(range(5))
  assert all((sizes[row].sum(0) <= 8).all() for row in rows)


def test_rows_of_examples_depend_only_on_the_seed():
  sizes, capacity = sizes_of(0), np.array([128, 128])
  first, again, other = (pack_examples(sizes, capacity, seed) for seed in (1, 1, 2))
  assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
  assert not np.array_equal(first[1], other[1])


def test_examples_of_a_row_are_not_neighbors_in_the_corpus():
  # Rows have long and short examples even if the corpus is sorted by length.
  sizes = np.sort(sizes_of(0), axis=0)
  rows = rows_of(pack_examples(sizes, np.array([128, 128]), 0))
  spans = [np.ptp(row) for row in rows if len(row) > 3]
  assert np.median(spans) > 500
