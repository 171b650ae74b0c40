"""Packing documents into rows of equal length.

The targets of a document are its tokens and END; its inputs are the targets shifted right, with END
in front. A plan assigns parts of documents to rows, without moving tokens. Every plan has each
target of each document exactly once. Segments separate the documents of a row.
"""

from typing import NamedTuple

import numpy as np

_OPEN = 64  # rows considered for the next example


class PackingPlan(NamedTuple):
  """Rows as parts of documents, in order.

  Attributes:
    row_ends: (R,) int64, cumulative count of parts at the end of each row.
    starts: (P,) int64, index of the first target of a part in the tokens.
    lengths: (P,) int32, in targets.
    documents: (P,) int64, the document of a part.
  """

  row_ends: np.ndarray
  starts: np.ndarray
  lengths: np.ndarray
  documents: np.ndarray


def concatenate(ends: np.ndarray, seq_len: int, seed: int | None) -> PackingPlan:
  """Returns all documents in one stream, in a random order, cut every `seq_len` tokens.

  Documents are cut at the ends of rows. Only the last row has padding.

  Args:
    ends: (documents,) int64, cumulative number of tokens.
    seq_len: T, tokens in a row.
    seed: determines the order; None keeps the order of the source.
  """
  order = _order(len(ends), seed)
  begins = np.concatenate([[0], ends[:-1]])
  stream_ends = np.cumsum((ends - begins)[order])
  total = int(stream_ends[-1])
  cuts = np.union1d(stream_ends, np.arange(seq_len, total, seq_len))
  part_begins = np.concatenate([[0], cuts[:-1]])
  nth = np.searchsorted(stream_ends, part_begins, side='right')
  documents = order[nth]
  # From an index in the stream to the index in the tokens.
  shift = ends[documents] - stream_ends[nth]
  rows = -(-total // seq_len)
  return PackingPlan(
    row_ends=np.searchsorted(part_begins, np.arange(1, rows + 1) * seq_len),
    starts=part_begins + shift,
    lengths=(cuts - part_begins).astype(np.int32),
    documents=documents,
  )


def best_fit(ends: np.ndarray, seq_len: int, seed: int) -> PackingPlan:
  """Returns rows filled by best fit decreasing (Ding et al. 2024, "Fewer Truncations ...").

  Only documents longer than a row are cut, into full rows and a remainder. Remainders and shorter
  documents are packed uncut, longest first, each into the fullest row with enough space.

  Args:
    ends: (documents,) int64, cumulative number of tokens.
    seq_len: T, tokens in a row.
    seed: determines the order of documents of equal length.
  """
  order = np.random.default_rng(seed).permutation(len(ends))
  begins = np.concatenate([[0], ends[:-1]])[order]
  sizes = ends[order] - begins
  full = sizes // seq_len
  # Parts that fill a row: the k-th part of a document starts k rows after its beginning.
  cut = np.repeat(np.arange(len(order)), full)
  kth = np.arange(len(cut)) - np.repeat(np.cumsum(full) - full, full)
  rest = np.flatnonzero(sizes % seq_len)
  rows = _best_fit_decreasing((sizes % seq_len)[rest], seq_len)
  starts = np.concatenate([begins[cut] + kth * seq_len, (begins + full * seq_len)[rest]])
  lengths = np.concatenate([np.full(len(cut), seq_len), (sizes % seq_len)[rest]])
  documents = order[np.concatenate([cut, rest])]
  row_of_part = np.concatenate([np.arange(len(cut)), len(cut) + rows])
  by_row = np.argsort(row_of_part, kind='stable')
  return PackingPlan(
    row_ends=np.cumsum(np.bincount(row_of_part)),
    starts=starts[by_row],
    lengths=lengths[by_row].astype(np.int32),
    documents=documents[by_row],
  )


def pack_examples(
  sizes: np.ndarray, capacity: np.ndarray, seed: int | None
) -> tuple[np.ndarray, np.ndarray]:
  """Returns rows of entire examples. On each axis, their sizes add up to the capacity at most.

  An axis is a stream of tokens, such as the encoder's. Examples are packed in a random order, so
  that the examples of a row are unrelated. Each example joins the fullest open row with enough
  space. Without such a row, the fullest row is closed and another row is opened.

  Args:
    sizes: (examples, axes), each within the capacity.
    capacity: (axes,).
    seed: determines the order; None keeps the order of the source.

  Returns:
    (R,) int64, cumulative number of examples at the end of each row; and the examples in order.
  """
  order = _order(len(sizes), seed)
  free = np.zeros((_OPEN, len(capacity)), np.int64)
  open_rows: list[list[int]] = [[] for _ in range(_OPEN)]
  rows = []
  for example in order:
    left = free - sizes[example]
    slack = np.where((left >= 0).all(1), left.sum(1), np.iinfo(np.int64).max)
    best = int(slack.argmin())
    if slack[best] == np.iinfo(np.int64).max:
      best = int((free / capacity).sum(1).argmin())
      rows.append(open_rows[best])
      free[best], open_rows[best] = capacity, []
    free[best] -= sizes[example]
    open_rows[best].append(int(example))
  rows = [row for row in [*rows, *open_rows] if row]
  return np.cumsum([len(row) for row in rows]), np.concatenate(rows).astype(np.int64)


def _order(count: int, seed: int | None) -> np.ndarray:
  return np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)


def _best_fit_decreasing(sizes: np.ndarray, capacity: int) -> np.ndarray:
  """Returns the bin of each item, numbered from 0.

  Items of equal size are packed together: best fit fills a bin with as many of them as possible,
  then continues with the next fullest bin with enough space. The time grows with the number of
  distinct sizes.
  """
  bins = np.empty(len(sizes), np.int64)
  by_size = np.argsort(sizes, kind='stable')
  bounds = np.searchsorted(sizes[by_size], np.arange(capacity + 2))
  open_bins: dict[int, list[np.ndarray]] = {}  # free space -> bins
  count = 0
  for size in range(capacity, 0, -1):
    items = by_size[bounds[size] : bounds[size + 1]]
    spaces = sorted(free for free in open_bins if free >= size) if len(items) else []
    for free in [*spaces, capacity]:
      if not len(items):
        break
      each = free // size
      needed = -(-len(items) // each)
      if free in open_bins:
        candidates = np.concatenate(open_bins.pop(free))
      else:
        candidates = np.arange(count, count + needed)
        count += needed
      used, unused = candidates[:needed], candidates[needed:]
      placed = min(len(items), each * len(used))
      bins[items[:placed]] = np.repeat(used, each)[:placed]
      items = items[placed:]
      last = placed - each * (len(used) - 1)  # the last bin may receive fewer items
      for taken, changed in ((each, used[:-1]), (last, used[-1:]), (0, unused)):
        if free > taken * size and len(changed):
          open_bins.setdefault(free - taken * size, []).append(changed)
  return bins
