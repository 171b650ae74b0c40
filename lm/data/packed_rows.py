"""Rows by index, assembled from a packing plan and memory-mapped tokens, and their random order."""

import abc
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.data.packing import PackingPlan

_COUNTED = 2**24  # tokens per call of bincount
# Up to this size NumPy's permutation of an epoch is cheap. Grain's permutation needs no memory, but
# is slow below this size. It permutes at least 2**16 indices, and a lookup applies it again until
# the result is in range.
_SMALL = 2**16


class Rows(abc.ABC):
  """Random access to the rows of a split.

  A row is a dict of arrays, as lm.types describes a batch without its first axis.

  Attributes:
    tokens: count over all rows: targets of text, tokens of features, or co-occurring pairs.
    documents: count of documents or examples.
    fingerprint: identifies the contents and the order of the rows on one machine.
    content: digest of the tokens, equal on every machine.
    seq_len: T.
    size: capacity of a row in tokens or pairs.
    note: what the source or data.too_long left out; '' for nothing.
    transforms: of a component of a mixture: read-time transforms of its rows alone.
  """

  transforms: Sequence[Callable] = ()

  def __init__(self, count: int, fingerprint: str, seq_len: int, meta: Mapping[str, Any]):
    self.tokens: int = meta['tokens']
    self.documents: int = meta['documents']
    self.content: str = meta['content']
    self.note: str = meta.get('note', '')
    self.fingerprint, self.seq_len, self.size = fingerprint, seq_len, seq_len
    self._count = count

  def __len__(self) -> int:
    return self._count

  @abc.abstractmethod
  def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Returns rows stacked on a first axis.

    Args:
      indices: (B,) integers, 0 <= index < len(self).
    """

  def drawn(self, indices: np.ndarray, keys: Sequence[tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Returns rows of training; those of a mixture have passed the transforms of their component.

    Args:
      indices: as of `batch`.
      keys: (seed, epoch, index) of each row, for random generators.
    """
    del keys
    return self.batch(indices)

  def order(self, positions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the epoch and the index of the rows at some positions of the endless sequence.

    Args:
      positions: (N,) int64, from 0.
      seed: of the permutation of each epoch.
    """
    epochs, places = np.divmod(positions, len(self))
    indices = np.empty_like(places)
    for epoch in np.unique(epochs):
      in_epoch = epochs == epoch
      indices[in_epoch] = _shuffled(places[in_epoch], len(self), seed, int(epoch))
    return epochs, indices

  def epochs(self, count: float) -> dict[str, float]:
    """Returns by metric name the passes over the rows after `count` rows were read."""
    return {'epoch': count / len(self)}

  def tokens_per_row(self) -> float:
    """Returns the mean number of tokens in a row of training."""
    return self.tokens / len(self)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    if not -len(self) <= index < len(self):
      raise IndexError(index)
    return {name: values[0] for name, values in self.batch(np.array([index % len(self)])).items()}


class PackedRows(Rows):
  """Rows of running text: parts of documents packed into T tokens.

  A row has (T,) arrays: inputs, targets, weights, segments, positions, bytes. With `data.words` it
  also has words, the marks of targets where words begin (lm.text.words). If a part
  starts inside a document, its first input is the preceding token of the document, at position 0.
  The part is a segment of its own and sees nothing else of the document before it. The bytes of a
  document are stored at its END, so that their sum over all rows is the size of the text.

  Attributes:
    bytes: UTF-8 bytes of all documents.
    stream: (tokens,) all tokens, one document after another; each ends with END.
    ends: (documents,) int64, cumulative number of tokens.
  """

  def __init__(
    self, tokens: pathlib.Path, plan: pathlib.Path, seq_len: int, meta: Mapping[str, Any]
  ):
    """Maps prepared files.

    Args:
      tokens: directory of tokens.bin, ends.npy and doc_bytes.npy.
      plan: directory of the arrays of a PackingPlan.
      seq_len: T, tokens in a row.
      meta: counts of the tokens, and their type.
    """
    self._plan = PackingPlan(*(_load(plan / f'{field}.npy') for field in PackingPlan._fields))
    super().__init__(len(self._plan.row_ends), plan.name, seq_len, meta)
    self.bytes: int = meta['bytes']
    # Views as plain arrays, as indexing an np.memmap takes several times as long.
    self.stream = np.asarray(np.memmap(tokens / 'tokens.bin', meta['dtype'], 'r'))
    self.ends = _load(tokens / 'ends.npy')
    self._doc_bytes = _load(tokens / 'doc_bytes.npy')
    words = tokens / 'words.npy'
    self._words = _load(words) if words.exists() else None

  def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    plan, shape = self._plan, (len(indices), self.seq_len)
    parts, count, nth = _parts_of_rows(plan.row_ends, indices)
    starts, documents = plan.starts[parts], plan.documents[parts]
    lengths = plan.lengths[parts].astype(np.int64)
    position, place = _places(count, lengths, self.seq_len)
    token_index = np.repeat(starts, lengths) + position
    part_ends = np.cumsum(lengths) - 1
    complete = starts + lengths == self.ends[documents]
    at_end = part_ends[complete] if place is None else place[part_ends[complete]]
    words = {}
    if self._words is not None:
      words['words'] = _put(self._words[token_index], place, shape, np.int32)
    return {
      # The token before the first one of a document is the END of another document. Before the
      # very first one, index -1 wraps around to the END of the last document.
      'inputs': _put(self.stream[token_index - 1], place, shape, np.int32),
      'targets': _put(self.stream[token_index], place, shape, np.int32),
      'weights': _put(1, place, shape, np.float32),
      'segments': _put(np.repeat(nth + 1, lengths), place, shape, np.int32),
      'positions': _put(position, place, shape, np.int32),
      'bytes': _put(self._doc_bytes[documents[complete]], at_end, shape, np.int32),
      **words,
    }

  def counts(self, vocab_size: int) -> np.ndarray:
    """Returns the frequency of each token, (V,) int64."""
    starts = range(0, len(self.stream), _COUNTED)
    parts = (np.bincount(self.stream[i : i + _COUNTED], minlength=vocab_size) for i in starts)
    return sum(parts, np.zeros(vocab_size, np.int64))


class FeatureRows(Rows):
  """Rows of a task; a row holds the uncut features of several examples.

  A row has the arrays of `Features.tokens` by their names. For an encoder-decoder it also has those
  of `Features.source`, with `source_segments` and `source_positions`. Values per example are (P,)
  arrays in the order of their segments. Features that are arrays themselves have their axes last,
  as in (T, C) or (P, H, W). Weights are 1 if a converter returns none.

  Attributes:
    example: (N,) int64, the index of the example that each of the N prepared Features comes from.
    size: T plus, for an encoder-decoder, S.
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
      place: directory of the files of lm.data.features.write_features.
      plan: directory of row_ends.npy and order.npy.
      contexts: T, the tokens in a row, and S, the tokens in a row of an encoder-decoder's encoder.
      meta: counts, and the names of the fields.
    """
    self._row_ends, self._order = _load(plan / 'row_ends.npy'), _load(plan / 'order.npy')
    super().__init__(len(self._row_ends), plan.name, contexts[0], meta)
    self.example = _load(place / 'example.npy')
    self._max_examples = int(np.diff(self._row_ends, prepend=0).max())
    found: dict[str, dict[str, np.ndarray]] = {'values': {}, 'tokens': {}, 'source': {}}
    for name, (dtype, *shape) in meta['fields'].items():
      stream, field = name.split('/', 1)
      flat = np.asarray(np.memmap(place / f'{stream}.{field}.bin', dtype, 'r'))
      found[stream][field] = flat.reshape(-1, *shape)
    self._values, self._streams = found['values'], []
    for stream, prefix, size in zip(('tokens', 'source'), ('', 'source_'), contexts, strict=True):
      if arrays := found[stream]:
        lengths = _load(place / f'{stream}.npy')
        self._streams.append(Stream(prefix, arrays, lengths, np.cumsum(lengths) - lengths, size))
    self.size = sum(stream.size for stream in self._streams)

  def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    parts, count, nth = _parts_of_rows(self._row_ends, indices)
    return feature_batch(
      self._streams, self._values, self._order[parts], count, nth, self._max_examples
    )


class Stream(NamedTuple):
  """The tokens of features, one after another: of the encoder's input, or of the others."""

  prefix: str  # of its segments and positions in a batch: '' or 'source_'
  arrays: Mapping[str, np.ndarray]  # by name
  lengths: np.ndarray  # (N,), tokens of each of the N features
  starts: np.ndarray  # (N,), the index of the first token of each
  size: int  # capacity of a row


def feature_batch(
  streams: Sequence[Stream],
  values: Mapping[str, np.ndarray],
  features: np.ndarray,
  count: np.ndarray,
  nth: np.ndarray,
  capacity: int,
) -> dict[str, np.ndarray]:
  """Returns a batch of rows with entire features; see `FeatureRows`.

  Args:
    streams: the tokens of all N features.
    values: (N,) or (N, C) arrays by name.
    features: the index of each feature in the batch, row by row.
    count: (B,) features of each row.
    nth: the index of each feature in its row.
    capacity: P, for the values of a row.
  """
  per_row = (len(count), capacity)
  slot = np.repeat(np.arange(len(count)) * capacity, count) + nth
  batch = {'examples': _put(features + 1, slot, per_row, np.int32)}
  for field, array in values.items():
    batch[field] = _put(array[features], slot, per_row, array.dtype)
  for stream in streams:
    lengths, shape = stream.lengths[features], (len(count), stream.size)
    position, place = _places(count, lengths, stream.size)
    token_index = np.repeat(stream.starts[features], lengths) + position
    batch[f'{stream.prefix}segments'] = _put(np.repeat(nth + 1, lengths), place, shape, np.int32)
    batch[f'{stream.prefix}positions'] = _put(position, place, shape, np.int32)
    for name, flat in stream.arrays.items():
      batch[name] = _put(flat[token_index], place, shape, flat.dtype)
  if 'weights' not in batch and 'targets' in batch:
    batch['weights'] = (batch['segments'] > 0).astype(np.float32)
  return batch


def _parts_of_rows(
  row_ends: np.ndarray, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the parts of some rows, their count in each row, and the index of each in its row."""
  first = np.where(indices > 0, row_ends[indices - 1], 0)
  count = row_ends[indices] - first
  nth = _within(count)
  return np.repeat(first, count) + nth, count, nth


def _places(
  count: np.ndarray, lengths: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray | None]:
  """Returns the position of each token in its part, and its index in the flat (B * size,) batch.

  Args:
    count: (B,) parts of each row.
    lengths: tokens of each part.
    size: capacity of a row. If all rows are full, None is returned instead of the indices.
  """
  position = _within(lengths)
  used = np.add.reduceat(lengths, np.cumsum(count) - count)
  if (used == size).all():
    return position, None
  return position, np.repeat(np.arange(len(count)) * size, used) + _within(used)


def _within(counts: np.ndarray) -> np.ndarray:
  """Returns 0, 1, ..., count - 1 for each of the counts, one after another."""
  ends = np.cumsum(counts)
  return np.arange(ends[-1]) - np.repeat(ends - counts, counts)


def _put(values, place: np.ndarray | None, shape: tuple[int, int], dtype: Any) -> np.ndarray:
  """Returns an array with values at flat places and 0 elsewhere."""
  vector = np.shape(values)[1:]
  array = np.zeros((shape[0] * shape[1], *vector), dtype)
  array[slice(None) if place is None else place] = values
  return array.reshape(*shape, *vector)


def _load(path: pathlib.Path) -> np.ndarray:
  return np.asarray(np.load(path, mmap_mode='r'))


def _shuffled(places: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
  """Returns the rows at some places of an epoch's permutation."""
  if size <= _SMALL:
    return _permutation(size, seed, epoch)[places]
  # Imported here, as the import takes a second and few corpora are that large.
  from grain.experimental import index_shuffle

  key = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
  return np.array([index_shuffle(int(p), size - 1, key, 4) for p in places])


@functools.lru_cache(maxsize=64)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng((seed, epoch)).permutation(size)
