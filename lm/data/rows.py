"""Rows of tokens by index, assembled from a packing plan and memory-mapped tokens."""

import abc
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lm.data.packing import Plan

_PIECE = 2**24  # tokens counted at once


class ByIndex(abc.ABC):
  """Rows that are made many at once, and so one by one too."""

  @abc.abstractmethod
  def __len__(self) -> int: ...

  @abc.abstractmethod
  def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Returns rows at once; 0 <= index < len(self)."""

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    if not -len(self) <= index < len(self):
      raise IndexError(index)
    return {name: values[0] for name, values in self.batch(np.array([index % len(self)])).items()}


class Rows(ByIndex):
  """Random access to the rows of a split.

  A row is a dict of (T,) arrays, as lm.types describes a batch: inputs, targets, weights, segments,
  positions, bytes. A piece from the middle of a document begins with the document's token before
  it as input, at position 0; its segment sees nothing else of the document. The bytes of a
  document's text stand on its END, so that over all rows they sum to the size of the text.

  Attributes:
    tokens: number of targets in all rows.
    bytes: UTF-8 bytes of all documents.
    documents: how many there are.
    fingerprint: names the content and the packing on this machine.
    content: a digest of the tokens, the same wherever they were prepared.
    context: T.
    size: tokens that a row has room for, T.
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
    self.content: str = meta['content']
    self.context = context
    self.size = context
    # Plain arrays over the maps: indexing a np.memmap costs several times as much.
    self._tokens = np.asarray(np.memmap(tokens / 'tokens.bin', meta['dtype'], 'r'))
    self._ends = _load(tokens / 'ends.npy')
    self._doc_bytes = _load(tokens / 'doc_bytes.npy')
    self._plan = Plan(*(_load(plan / f'{field}.npy') for field in Plan._fields))

  def __len__(self) -> int:
    return len(self._plan.row_ends)

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

  def counts(self, vocab_size: int) -> np.ndarray:
    """Returns how often each token occurs, (V,) int64."""
    pieces = range(0, len(self._tokens), _PIECE)
    parts = (np.bincount(self._tokens[i : i + _PIECE], minlength=vocab_size) for i in pieces)
    return sum(parts, np.zeros(vocab_size, np.int64))

  def _places(self, count: np.ndarray, lengths: np.ndarray) -> np.ndarray | None:
    """Returns where in the (B * T,) batch each token goes; None if they fill it in order."""
    used = np.add.reduceat(lengths, np.cumsum(count) - count)
    if (used == self.context).all():
      return None
    return np.repeat(np.arange(len(count)) * self.context, used) + _within(used)


class FeatureRows(ByIndex):
  """Random access to the rows of a task's split: whole features, several to a row.

  A row has the arrays of lm.types' batches: those along the row by their names, those along an
  encoder's row with `source_segments` and `source_positions`, and (P,) arrays of what the features
  have as a whole, in the order of their segments. Weights along the row that a converter does not
  give are 1.

  Attributes:
    tokens: number of tokens in all rows, those of sources included.
    documents: how many examples there are.
    example: (features,) int64, the example that each was made of.
    note: how many examples data.too_long left out or cut; '' for none.
    fingerprint: names the content and the packing on this machine.
    content: a digest of the tokens, the same wherever they were prepared.
    context: T.
    size: tokens that a row has room for, T and, where there is an encoder beside, S.
  """

  def __init__(
    self,
    place: pathlib.Path,
    plan: pathlib.Path,
    contexts: tuple[int, int],
    meta: Mapping[str, Any],
  ):
    """Maps prepared files.

    Args:
      place: directory that lm.data.features has written.
      plan: directory of row_ends.npy and order.npy.
      contexts: T and S, tokens in a row, and in a row of an encoder beside.
      meta: counts, and the names of the fields.
    """
    self.tokens: int = meta['tokens']
    self.documents: int = meta['documents']
    self.fingerprint = plan.name
    self.content: str = meta['content']
    self.context = contexts[0]
    self.example = _load(place / 'example.npy')
    self.note: str = meta.get('note', '')
    self._row_ends, self._order = _load(plan / 'row_ends.npy'), _load(plan / 'order.npy')
    self._most = int(np.diff(self._row_ends, prepend=0).max())
    self._streams = []
    fields = [name.partition('/') for name in meta['fields']]
    for stream, size in zip(('tokens', 'source'), contexts, strict=True):
      arrays = {
        field: np.asarray(
          np.memmap(place / f'{stream}.{field}.bin', meta['dtypes'][f'{stream}/{field}'], 'r')
        )
        for kind, _, field in fields
        if kind == stream
      }
      if arrays:
        lengths = _load(place / f'{stream}.npy')
        prefix = '' if stream == 'tokens' else 'source_'
        self._streams.append((prefix, arrays, lengths, np.cumsum(lengths) - lengths, size))
    self.size = sum(size for *_, size in self._streams)
    self._values = {
      field: _load(place / f'values.{field}.npy') for kind, _, field in fields if kind == 'values'
    }

  def __len__(self) -> int:
    return len(self._row_ends)

  def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Returns rows as a dict of (B, T), (B, S) and (B, P) arrays, at once.

    Args:
      indices: (B,) integers, 0 <= index < len(self).
    """
    last = self._row_ends[indices]
    first = np.where(indices > 0, self._row_ends[indices - 1], 0)
    count = last - first
    nth = _within(count)
    pieces = self._order[np.repeat(first, count) + nth]
    slots = np.repeat(np.arange(len(indices)) * self._most, count) + nth
    batch = {'examples': _put(pieces + 1, slots, len(indices), self._most, np.int32)}
    for field, values in self._values.items():
      batch[field] = _put(values[pieces], slots, len(indices), self._most, values.dtype)
    for prefix, arrays, all_lengths, starts, size in self._streams:
      lengths = all_lengths[pieces]
      used = np.add.reduceat(lengths, np.cumsum(count) - count)
      place = np.repeat(np.arange(len(indices)) * size, used) + _within(used)
      position = _within(lengths)
      source = np.repeat(starts[pieces], lengths) + position
      along = {'segments': np.repeat(nth + 1, lengths), 'positions': position}
      for name, values in along.items():
        batch[prefix + name] = _put(values, place, len(indices), size, np.int32)
      for name, flat in arrays.items():
        batch[name] = _put(flat[source], place, len(indices), size, flat.dtype)
    if 'weights' not in batch and 'targets' in batch:
      batch['weights'] = (batch['segments'] > 0).astype(np.float32)
    return batch


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
