import itertools
import threading
import time
import zlib

import numpy as np
import pytest

from lm.data import batches, packed_rows, pipeline
from lm.text import tokenizers

SEED = 5


@pytest.fixture
def rows(section, corpus):
  source = corpus('\n'.join(f'line {n} ' + 'x' * (n % 17) for n in range(157)), documents='line')
  return pipeline.packed_rows(section(source), 'train', tokenizers.bytes([]), seed=0)


def noise(row, rng):
  return row | {'targets': row['targets'] + rng.integers(0, 100, row['targets'].shape)}


def same(a, b):
  return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def keys(batch):
  return [row.tobytes() for row in batch['targets']]


def test_an_epoch_has_every_row_once_in_its_own_order(rows):
  n = len(rows)
  epochs = [keys(batches.batch_at(rows, (), n, SEED, step)) for step in range(3)]
  everything = sorted(keys(rows.batch(np.arange(n))))
  assert all(sorted(epoch) == everything for epoch in epochs)
  assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
  assert epochs[0] != keys(batches.batch_at(rows, (), n, SEED + 1, 0))


def test_a_batch_may_cross_the_end_of_an_epoch(rows):
  n = len(rows)
  small = [batches.batch_at(rows, (), 7, SEED, step) for step in range(2 * n // 7)]
  stream = [key for batch in small for key in keys(batch)]
  two_epochs = [k for step in (0, 1) for k in keys(batches.batch_at(rows, (), n, SEED, step))]
  assert stream == two_epochs[: len(stream)]


def test_rows_repeat_in_a_batch_larger_than_the_set(rows):
  batch = batches.batch_at(rows, (), 3 * len(rows), SEED, 0)
  unique, counts = np.unique(keys(batch), return_counts=True)
  assert counts.sum() == 3 * len(rows) and (counts % 3 == 0).all()
  assert len(unique) == len(np.unique(keys(rows.batch(np.arange(len(rows))))))


@pytest.mark.parametrize('transforms', [(), (noise,)])
def test_selected_rows_equal_rows_of_the_global_batch(rows, transforms):
  entire = batches.batch_at(rows, transforms, 8, SEED, 31)
  for select in (slice(0, 4), slice(6, 8), np.array([5, 1])):
    part = batches.batch_at(rows, transforms, 8, SEED, 31, select)
    assert same(part, {name: values[select] for name, values in entire.items()})


def test_transforms_are_random_for_each_epoch_and_row(rows):
  def draw(row, rng):
    return {'random': rng.integers(0, 2**31, 1)}

  n = len(rows)
  sampled = [batches.batch_at(rows, (draw,), n, SEED, step)['random'] for step in range(2)]
  assert len(np.unique(sampled)) == 2 * n
  again = batches.batch_at(rows, (draw,), n, SEED, 1)['random']
  assert (again == sampled[1]).all()


def test_each_transform_has_its_own_random_numbers(rows):
  def wasteful(row, rng):
    rng.random(100)
    return row

  def idle(row, rng):
    return row

  first = batches.batch_at(rows, (wasteful, noise), 4, SEED, 0)
  assert same(first, batches.batch_at(rows, (idle, noise), 4, SEED, 0))


def one_by_one():
  return (range(step, step + 1) for step in itertools.count())


@pytest.mark.parametrize('transforms', [(), (noise,)])
def test_prefetched_batches_are_the_batches_of_the_steps(rows, transforms):
  spans = [range(3, 4), range(4, 9), range(9, 40)]
  stacked_batches = list(batches.train_batches(rows, transforms, 4, SEED, spans, slice(1, 3)))
  assert [steps for steps, _ in stacked_batches] == spans
  for steps, stacked in stacked_batches:
    for i, step in enumerate(steps):
      batch = {name: x[i] for name, x in stacked.items()}
      assert same(batch, batches.batch_at(rows, transforms, 4, SEED, step, slice(1, 3)))


def test_an_error_of_a_transform_reaches_the_consumer(rows):
  def broken(row, rng):
    raise ZeroDivisionError('broken')

  with pytest.raises(ZeroDivisionError, match='broken'):
    next(batches.train_batches(rows, (broken,), 4, SEED, one_by_one()))


def test_closing_ends_the_threads(rows):
  before = set(threading.enumerate())
  source = batches.train_batches(rows, (), 4, SEED, one_by_one())
  next(source)
  assert set(threading.enumerate()) > before
  source.close()
  assert set(threading.enumerate()) == before


def test_a_batch_made_ahead_is_returned_quickly(rows):
  source = batches.train_batches(rows, (), 12, SEED, one_by_one())
  seconds = []
  for _ in range(30):
    next(source)
    time.sleep(0.01)
    start = time.perf_counter()
    next(source)
    seconds.append(time.perf_counter() - start)
  source.close()
  assert np.median(seconds) < 1e-3


def test_evaluation_sees_every_row_once_in_order(rows):
  size = 7
  assert len(rows) % size
  evaluated = list(batches.eval_batches(rows, size))
  entire = rows.batch(np.arange(len(rows)))
  for name in entire:
    joined = np.concatenate([batch[name] for batch in evaluated])
    assert (joined[: len(rows)] == entire[name]).all()
    assert (joined[len(rows) :] == 0).all() and len(joined) % size == 0
  parts = [list(batches.eval_batches(rows, size, s)) for s in (slice(0, 3), slice(3, 7))]
  for batch, a, b in zip(evaluated, *parts, strict=True):
    assert same(batch, {name: np.concatenate([a[name], b[name]]) for name in batch})


def test_transforms_of_evaluation_are_drawn_per_set_and_row(rows):
  def draw(row, rng):
    return {'random': rng.integers(0, 2**31, 1)}

  def drawn(name, size, select=slice(None), transforms=(draw,)):
    seen = batches.eval_batches(rows, size, select, transforms, name)
    return np.concatenate([batch['random'] for batch in seen])[: len(rows)]

  first = drawn('a', 7)
  assert len(np.unique(first)) == len(rows)
  assert (drawn('a', 5) == first).all(), 'not of the batch'
  host = drawn('a', 7, slice(2, 3))
  assert (host[:-1] == first[2::7][: len(host) - 1]).all(), 'not of the company'
  assert not (drawn('b', 7) == first).any()
  assert not (drawn('a', 7, transforms=(lambda row, rng: row, draw)) == first).any()
  state = np.random.SeedSequence((zlib.crc32(b'a'), 3, 0), spawn_key=(1,))
  assert first[3] == np.random.default_rng(state).integers(0, 2**31, 1)


@pytest.mark.parametrize('size', [1, 2, 999, 2**16 + 3])
def test_shuffling_is_a_permutation(size):
  places = np.arange(size)
  shuffled = packed_rows._shuffled(places, size, SEED, epoch=2)
  assert (np.sort(shuffled) == places).all()
  assert size < 3 or (shuffled != places).any()
  assert (
    packed_rows._shuffled(places[::-1][:50], size, SEED, epoch=2) == shuffled[::-1][:50]
  ).all()


def test_large_sets_are_shuffled_in_each_epoch():
  orders = [packed_rows._shuffled(np.arange(100), 10**6, SEED, epoch) for epoch in range(2)]
  assert np.count_nonzero(orders[0] == orders[1]) < 3


def test_epochs_are_counted_in_rows(rows):
  assert rows.epochs(3 * len(rows)) == {'epoch': 3.0}
