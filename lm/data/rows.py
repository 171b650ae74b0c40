"""Rows of tokens by index, assembled from a packing plan and memory-mapped tokens."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lm.data.packing import Plan


class Rows:
  """Random access to the rows of a split.

  A row is a dict of (T,) arrays, as lm.types describes a batch: inputs, targets, weights, segments,
  positions, bytes. A piece from the middle of a document begins with the document's token before
  it as input, at position 0; its segment sees nothing else of the document. The bytes of a
  document's text stand on its END, so that over all rows they sum to the size of the text.

  Attributes:
    tokens: number of targets in all rows.
    bytes: UTF-8 bytes of all documents.
    documents: how many there are.
    fingerprint: names the content and the packing.
    context: T.
  """

  def __init__(
    self, tokens: pathlib.Path, plan: pathlib.Path, context: int, meta: Mapping[str, Any]
  ):
    """Maps prepared files.

    Args:
      tokens: directory of tokens.bin, ends.npy and doc_bytes.npy.
      plan: directory of the arrays of a Plan.
      context: T, tokens in a row.
      meta: counts of the tokens, and their type.
    """
    self.tokens: int = meta['tokens']
    self.bytes: int = meta['bytes']
    self.documents: int = meta['documents']
    self.fingerprint = plan.name
    self.context = context
    # Plain arrays over the maps: indexing a np.memmap costs several times as much.
    self._tokens = np.asarray(np.memmap(tokens / 'tokens.bin', meta['dtype'], 'r'))
    self._ends = _load(tokens / 'ends.npy')
    self._doc_bytes = _load(tokens / 'doc_bytes.npy')
    self._plan = Plan(*(_load(plan / f'{field}.npy') for field in Plan._fields))

  def __len__(self) -> int:
    return len(self._plan.row_ends)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    if not -len(self) <= index < len(self):
      raise IndexError(index)
    return {name: values[0] for name, values in self.batch(np.array([index % len(self)])).items()}

  def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Returns rows as a dict of (B, T) arrays, at once.

    Args:
      indices: (B,) integers, 0 <= index < len(self).
    """
    plan = self._plan
    last = plan.row_ends[indices]
    first = np.where(indices > 0, plan.row_ends[indices - 1], 0)
    count = last - first  # pieces of each row
    nth = _within(count)  # of each piece in its row
    pieces = np.repeat(first, count) + nth
    starts, documents = plan.starts[pieces], plan.documents[pieces]
    lengths = plan.lengths[pieces].astype(np.int64)
    position = _within(lengths)
    source = np.repeat(starts, lengths) + position
    place = self._places(count, lengths)
    batch = {
      # The token before the first of a document is the END of another, and before the very first
      # it is, by wrapping around, the END of the last.
      'inputs': _put(self._tokens[source - 1], place, len(indices), self.context, np.int32),
      'targets': _put(self._tokens[source], place, len(indices), self.context, np.int32),
      'weights': _put(1, place, len(indices), self.context, np.float32),
      'segments': _put(np.repeat(nth + 1, lengths), place, len(indices), self.context, np.int32),
      'positions': _put(position, place, len(indices), self.context, np.int32),
    }
    piece_ends = np.cumsum(lengths) - 1
    complete = starts + lengths == self._ends[documents]
    at_end = piece_ends[complete] if place is None else place[piece_ends[complete]]
    batch['bytes'] = _put(
      self._doc_bytes[documents[complete]], at_end, len(indices), self.context, np.int32
    )
    return batch

  def _places(self, count: np.ndarray, lengths: np.ndarray) -> np.ndarray | None:
    """Returns where in the (B * T,) batch each token goes; None if they fill it in order."""
    used = np.add.reduceat(lengths, np.cumsum(count) - count)
    if (used == self.context).all():
      return None
    return np.repeat(np.arange(len(count)) * self.context, used) + _within(used)


def _within(counts: np.ndarray) -> np.ndarray:
  """Returns 0, 1, ..., count - 1 for each of the counts, one after another."""
  ends = np.cumsum(counts)
  return np.arange(ends[-1]) - np.repeat(ends - counts, counts)


def _put(values, place: np.ndarray | None, batch: int, context: int, dtype: Any) -> np.ndarray:
  """Returns a (batch, context) array with values at flat places and 0 elsewhere."""
  array = np.zeros(batch * context, dtype)
  array[slice(None) if place is None else place] = values
  return array.reshape(batch, context)


def _load(path: pathlib.Path) -> np.ndarray:
  return np.asarray(np.load(path, mmap_mode='r'))
