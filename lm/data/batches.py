"""Batches as a pure function of (seed, step).

There is no iterator state. Position p of the endless sequence of rows belongs to epoch p // n, and
is the (p mod n)-th row of that epoch's permutation (`Rows.order`). A process computes only the rows
that it needs, and all processes agree.
"""

import collections
import concurrent.futures
import inspect
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import tokenizers

from lm.config import resolve
from lm.data.packed_rows import Rows
from lm.errors import UserError

Transform = Callable[[dict[str, np.ndarray], np.random.Generator], dict[str, np.ndarray]]
NumpyBatch = dict[str, np.ndarray]
A = TypeVar('A')
B = TypeVar('B')
Select = slice | np.ndarray
_ALL = slice(None)

_DOMAIN = (1,)  # separates the random streams of transforms from those of shuffles
_THREADS = 2
AHEAD = 8  # spans of steps whose batches are made in advance


def open_transforms(
  paths: Sequence[str],
  tokenizer: tokenizers.Tokenizer,
  rows: Rows | Sequence[Mapping[str, np.ndarray]],
  section: str = 'data.transforms',
) -> tuple[Transform, ...]:
  """Returns the transforms of a section of a config, after applying each to a row.

  A function that takes `tokenizer` builds a transform; any other is a transform itself.

  Raises:
    UserError: a path is wrong, or a transform does not suit the rows.
  """
  # The second row shows whether shapes depend on the row.
  some, transforms = [rows[0], rows[-1]], []
  for i, path in enumerate(paths):
    key = f'{section}[{i}]'
    transform = resolve.resolve(path, key)
    if 'tokenizer' in inspect.signature(transform).parameters:
      transform = resolve.call(transform, key, tokenizer=tokenizer)
    changed = [
      resolve.call(transform, key, dict(row), np.random.default_rng(n))
      for n, row in enumerate(some)
    ]
    _check_rows(changed, some[0], f'{key}={path!r}')
    some = changed
    transforms.append(transform)
  return tuple(transforms)


# The fields of tokens that have one length in a row.
_ALIGNED = (
  ('inputs', 'segments', 'positions'),
  ('source', 'source_segments', 'source_positions'),
  ('targets', 'weights', 'masked'),
)


def _check_rows(changed: Sequence[Any], row: Mapping[str, np.ndarray], key: str) -> None:
  """Raises UserError if the results of a transform for two rows are no rows.

  They have the fields of the first of these, `row`, with dtypes of its kinds. Shapes may be others,
  the same in all rows.
  """
  for result in changed:
    if not isinstance(result, Mapping):
      raise UserError(f'{key} returns a {type(result).__name__}, not the changed row')
    for name, values in result.items():
      if not isinstance(values, np.ndarray | np.generic):
        raise UserError(f'{key} makes {name!r} a {type(values).__name__}, not a NumPy array')
  # These describe the text itself, and a transform that corrupts it removes them.
  lost = [name for name in row if name not in changed[0] and name not in ('bytes', 'words')]
  if lost:
    raise UserError(
      f'{key} drops {", ".join(map(repr, lost))} of a row; return all fields, as in row | {{...}}'
    )
  first, last = ({name: _kind(values) for name, values in one.items()} for one in changed)
  for name in first.keys() | last.keys():
    if first.get(name) != last.get(name):
      given = ' and '.join(one.get(name, 'nothing') for one in (first, last))
      raise UserError(f'{key} makes {name!r} {given}, by row; it must be the same in all rows')
  for name, before in row.items():
    if name in first and changed[0][name].dtype.kind != before.dtype.kind:
      raise UserError(f'{key} makes {name!r} {first[name]}; it was {_kind(before)}')
  for names in _ALIGNED:
    present = [name for name in names if name in first]
    for name in present[1:]:
      if changed[0][name].shape[:1] != changed[0][present[0]].shape[:1]:
        raise UserError(
          f'{key} makes {present[0]!r} {first[present[0]]} and {name!r} {first[name]}, which must '
          'have one length'
        )


def _kind(values: np.ndarray) -> str:
  return f'{values.dtype}{values.shape}'


def batch_at(
  rows: Rows,
  transforms: Sequence[Transform],
  batch_size: int,
  seed: int,
  step: int,
  select: Select = _ALL,
) -> NumpyBatch:
  """Returns the training batch of a step.

  Args:
    rows: the training rows.
    transforms: functions from a row to a row; each has a random generator of (seed, epoch, row).
    batch_size: rows of the global batch; rows repeat if it exceeds len(rows).
    seed: seed of the shuffling and the transforms.
    step: index of the step, from 0.
    select: the rows of the global batch to return.
  """
  batch = batches_at(rows, transforms, batch_size, seed, range(step, step + 1), select)
  return {name: values[0] for name, values in batch.items()}


def batches_at(
  rows: Rows,
  transforms: Sequence[Transform],
  batch_size: int,
  seed: int,
  steps: range,
  select: Select = _ALL,
) -> NumpyBatch:
  """Returns the batches of `batch_at` of several steps, stacked on a first axis."""
  positions = np.array(steps)[:, None] * batch_size + np.arange(batch_size)[select]
  epochs, indices = rows.order(positions.ravel(), seed)
  keys = [(seed, *key) for key in zip(epochs.tolist(), indices.tolist(), strict=True)]
  flat = transformed(rows.drawn(indices, keys), transforms, keys)
  return {name: x.reshape(*positions.shape, *x.shape[1:]) for name, x in flat.items()}


def transformed(
  batch: NumpyBatch, transforms: Sequence[Transform], keys: Iterable[tuple[int, ...]]
) -> NumpyBatch:
  """Returns a batch after transforming each row; the key of a row seeds its random generators."""
  if not transforms:
    return batch
  rows = []
  for b, key in enumerate(keys):
    row = {name: values[b] for name, values in batch.items()}
    for i, transform in enumerate(transforms):
      # NumPy pads keys with zeros: without the spawn key, the first transform of row 0 would have
      # the random stream of the epoch's shuffle, which is seeded by (seed, epoch).
      stream = np.random.SeedSequence((*key, i), spawn_key=_DOMAIN)
      row = transform(row, np.random.default_rng(stream))
    rows.append(row)
  return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def train_batches(
  rows: Rows,
  transforms: Sequence[Transform],
  batch_size: int,
  seed: int,
  spans: Iterable[range],
  select: Select = _ALL,
) -> Iterator[tuple[range, NumpyBatch]]:
  """Yields each span of steps with its batches, stacked on a first axis.

  Threads prepare the batches in advance. Errors in a thread are raised here. Closing the iterator
  ends the threads.
  """

  def make(span: range) -> tuple[range, NumpyBatch]:
    return span, batches_at(rows, transforms, batch_size, seed, span, select)

  with concurrent.futures.ThreadPoolExecutor(_THREADS, 'batches') as threads:
    try:
      yield from map_ahead(threads, make, spans, AHEAD)
    finally:
      threads.shutdown(wait=False, cancel_futures=True)


def map_ahead(
  executor: concurrent.futures.Executor, fn: Callable[[A], B], items: Iterable[A], ahead: int
) -> Iterator[B]:
  """Returns an iterator over the results of `fn` for each item, in order.

  At most `ahead` results are computed in advance; the first ones start with the call itself.
  """
  waiting = iter(items)
  pending = collections.deque(
    executor.submit(fn, item) for item in itertools.islice(waiting, ahead)
  )

  def results() -> Iterator[B]:
    while pending:
      yield pending.popleft().result()
      pending.extend(executor.submit(fn, item) for item in itertools.islice(waiting, 1))

  return results()


def eval_batches(
  rows: Rows,
  batch_size: int,
  select: Select = _ALL,
  transforms: Sequence[Transform] = (),
  name: str = '',
) -> Iterator[NumpyBatch]:
  """Yields every row once, in order; the last batch is padded with rows of zeros.

  Random generators of transforms depend on the name of the set and the index of the row alone, so
  all evaluations of all runs transform it equally.
  """
  of_set = zlib.crc32(name.encode())
  for start in range(0, len(rows), batch_size):
    indices = np.arange(start, start + batch_size)[select]
    missing = indices >= len(rows)
    indices = np.minimum(indices, len(rows) - 1)
    keys = [(of_set, int(index)) for index in indices]
    batch = transformed(rows.batch(indices), transforms, keys)
    for values in batch.values():
      values[missing] = 0
    yield batch
