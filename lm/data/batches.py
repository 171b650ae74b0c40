"""Batches as a pure function of (seed, step).

There is no iterator state: position p of the endless sequence of examples belongs to epoch p // n
and is the (p mod n)-th row of that epoch's own permutation. A process computes only the rows that
it needs, and all agree. A mixture of several row sets would be one more index arithmetic here: from
a position to (set, position within the set).
"""

import collections
import concurrent.futures
import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from lm.config import resolve
from lm.data.pair_rows import PairRows
from lm.data.rows import FeatureRows, Rows
from lm.errors import UserError

Transform = Callable[[dict[str, np.ndarray], np.random.Generator], dict[str, np.ndarray]]
AnyRows = Rows | FeatureRows | PairRows
NumpyBatch = dict[str, np.ndarray]
Select = slice | np.ndarray
_ALL = slice(None)

_DOMAIN = (1,)  # of the random numbers of transforms
_THREADS = 2
AHEAD = 8  # batches made before they are asked for
# Up to here numpy's permutation of a whole epoch is cheap; Grain's, which needs no memory, slows
# down below this size, because it walks through 2**16 indices to stay among fewer.
_SMALL = 2**16


def open_transforms(
  paths: Sequence[str],
  tokenizer: tokenizers.Tokenizer,
  rows: AnyRows,
  section: str = 'data.transforms',
) -> tuple[Transform, ...]:
  """Returns the transforms of a section of a config, each of them tried on a row.

  A function that takes `tokenizer` builds a transform; any other is a transform itself.

  Raises:
    UserError: a path is wrong, or the transform does not suit the rows.
  """
  row, transforms = rows[0], []
  for i, path in enumerate(paths):
    key = f'{section}[{i}]'
    transform = resolve.resolve(path, key)
    if 'tokenizer' in inspect.signature(transform).parameters:
      transform = resolve.call(transform, key, tokenizer=tokenizer)
    changed = resolve.call(transform, key, dict(row), np.random.default_rng(0))
    _check_row(changed, row, f'{key}={path!r}')
    row = changed
    transforms.append(transform)
  return tuple(transforms)


def _check_row(changed: Any, row: Mapping[str, np.ndarray], key: str) -> None:
  """Raises UserError where a transform gives no row, or one that a train step cannot take."""
  if not isinstance(changed, Mapping):
    raise UserError(f'{key} gives a {type(changed).__name__}, not the changed row')
  lost = [name for name in row if name not in changed]
  if lost:
    raise UserError(
      f'{key} drops {", ".join(map(repr, lost))} of a row; return all fields, as in row | {{...}}'
    )
  for name, values in changed.items():
    if not isinstance(values, np.ndarray | np.generic):
      raise UserError(f'{key} makes {name!r} a {type(values).__name__}, not an array of NumPy')
    before = row.get(name, values)
    if (values.shape, values.dtype.kind) != (before.shape, before.dtype.kind):
      raise UserError(
        f'{key} makes {name!r} {values.dtype}{values.shape}; it is {before.dtype}{before.shape}, '
        'and stays so'
      )


def batch_at(
  rows: AnyRows,
  transforms: Sequence[Transform],
  batch_size: int,
  seed: int,
  step: int,
  select: Select = _ALL,
) -> NumpyBatch:
  """Returns the training batch of a step.

  Args:
    rows: the training rows.
    transforms: one-to-one changes of a row; each draws from a generator of (seed, epoch, row).
    batch_size: rows of the global batch; it may exceed len(rows), which then repeat.
    seed: of the shuffling and the transforms.
    step: from 0.
    select: which rows of the global batch to return.
  """
  return _rows_at(rows, transforms, seed, step * batch_size + np.arange(batch_size)[select])


def batches_at(
  rows: AnyRows,
  transforms: Sequence[Transform],
  batch_size: int,
  seed: int,
  steps: range,
  select: Select = _ALL,
) -> NumpyBatch:
  """Returns the batches of `batch_at` of several steps, stacked on a first axis."""
  positions = np.array(steps)[:, None] * batch_size + np.arange(batch_size)[select]
  flat = _rows_at(rows, transforms, seed, positions.ravel())
  return {name: x.reshape(*positions.shape, *x.shape[1:]) for name, x in flat.items()}


def _rows_at(
  rows: AnyRows, transforms: Sequence[Transform], seed: int, positions: np.ndarray
) -> NumpyBatch:
  """Returns the rows at some positions of the endless sequence of rows."""
  epochs, places = np.divmod(positions, len(rows))
  indices = np.empty_like(places)
  for epoch in np.unique(epochs):
    now = epochs == epoch
    indices[now] = _shuffled(places[now], len(rows), seed, int(epoch))
  keys = zip(itertools.repeat(seed), epochs.tolist(), indices.tolist())
  return _changed(rows.batch(indices), transforms, keys)


def _changed(
  batch: NumpyBatch, transforms: Sequence[Transform], keys: Iterable[tuple[int, ...]]
) -> NumpyBatch:
  """Returns a batch whose rows are transformed, each by a generator of its key."""
  if not transforms:
    return batch
  changed = [
    _transformed({name: values[b] for name, values in batch.items()}, transforms, key)
    for b, key in enumerate(keys)
  ]
  return {name: np.stack([row[name] for row in changed]) for name in changed[0]}


def train_batches(
  rows: AnyRows,
  transforms: Sequence[Transform],
  batch_size: int,
  seed: int,
  spans: Iterable[range],
  select: Select = _ALL,
) -> Iterator[tuple[range, NumpyBatch]]:
  """Yields (steps, their batches stacked on a first axis) for each span, made ahead by threads.

  What fails in a thread is raised here. Closing the iterator ends the threads.
  """
  make = functools.partial(batches_at, rows, transforms, batch_size, seed, select=select)
  waiting = iter(spans)
  with concurrent.futures.ThreadPoolExecutor(_THREADS, 'batches') as threads:
    pending: collections.deque[tuple[range, concurrent.futures.Future[NumpyBatch]]] = (
      collections.deque()
    )
    try:
      while True:
        for span in itertools.islice(waiting, AHEAD - len(pending)):
          pending.append((span, threads.submit(make, span)))
        if not pending:
          return
        steps, future = pending.popleft()
        yield steps, future.result()
    finally:
      threads.shutdown(wait=False, cancel_futures=True)


def eval_batches(
  rows: AnyRows, batch_size: int, select: Select = _ALL, transforms: Sequence[Transform] = ()
) -> Iterator[NumpyBatch]:
  """Yields every row once, in order; the last batch is filled up with rows of zeros.

  Transforms draw from a generator of the row alone: they change it alike in every evaluation.
  """
  for start in range(0, len(rows), batch_size):
    indices = np.arange(start, start + batch_size)[select]
    missing = indices >= len(rows)
    indices = np.minimum(indices, len(rows) - 1)
    batch = _changed(rows.batch(indices), transforms, [(int(index),) for index in indices])
    for values in batch.values():
      values[missing] = 0
    yield batch


def epoch(rows: AnyRows, batch_size: int, step: int) -> float:
  """Returns how many times the rows have been seen after `step` steps."""
  return step * batch_size / len(rows)


def _shuffled(places: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
  """Returns the rows at some places of an epoch's permutation."""
  if size <= _SMALL:
    return _permutation(size, seed, epoch)[places]
  # Imported here, because it takes a second and few corpora are that large.
  from grain.experimental import index_shuffle

  key = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
  return np.array([index_shuffle(int(p), size - 1, key, 4) for p in places])


@functools.lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng((seed, epoch)).permutation(size)


def _transformed(
  row: NumpyBatch, transforms: Sequence[Transform], key: tuple[int, ...]
) -> NumpyBatch:
  for i, transform in enumerate(transforms):
    # In a domain: NumPy fills keys up with zeros, so that row 0 would have the stream of shuffles.
    stream = np.random.SeedSequence((*key, i), spawn_key=_DOMAIN)
    row = transform(row, np.random.default_rng(stream))
  return row
