"""Packing documents into rows of equal length.

A document's targets are its tokens and END; its inputs are the same shifted right, END in front. A
*plan* says which stretch of which document goes where; it moves no token. In every plan each target
of each document appears exactly once, and documents in one row are kept apart by segments.
"""

from typing import NamedTuple

import numpy as np

_OPEN = 64  # rows that whole examples may still go into


class Plan(NamedTuple):
  """Rows as pieces of documents, in order.

  Attributes:
    row_ends: (R,) int64, how many pieces there are up to the end of each row.
    starts: (P,) int64, where in the tokens a piece's targets begin.
    lengths: (P,) int32, how many targets it has.
    documents: (P,) int64, the document it belongs to.
  """

  row_ends: np.ndarray
  starts: np.ndarray
  lengths: np.ndarray
  documents: np.ndarray


def concatenate(ends: np.ndarray, context: int, seed: int | None) -> Plan:
  """Returns all documents in one stream, in a random order, cut every `context` tokens.

  Only the last row has padding; documents are cut wherever a row ends.

  Args:
    ends: (documents,) int64, cumulative numbers of tokens.
    context: T, tokens in a row.
    seed: of the order; None for that of the documents as they are.
  """
  order = _order(len(ends), seed)
  begins = np.concatenate([[0], ends[:-1]])
  stream_ends = np.cumsum((ends - begins)[order])
  total = int(stream_ends[-1])
  cuts = np.union1d(stream_ends, np.arange(context, total, context))
  piece_begins = np.concatenate([[0], cuts[:-1]])
  nth = np.searchsorted(stream_ends, piece_begins, side='right')
  documents = order[nth]
  # From a place in the stream to the same place in the tokens.
  shift = ends[documents] - stream_ends[nth]
  rows = -(-total // context)
  return Plan(
    row_ends=np.searchsorted(piece_begins, np.arange(1, rows + 1) * context),
    starts=piece_begins + shift,
    lengths=(cuts - piece_begins).astype(np.int32),
    documents=documents,
  )


def best_fit(ends: np.ndarray, context: int, seed: int) -> Plan:
  """Returns rows filled by best fit decreasing (Ding et al. 2024, "Fewer Truncations ...").

  Only documents longer than a row are cut, into full rows and a rest; the rests and the shorter
  documents are packed whole, the longest first, each into the fullest row that has room.

  Args:
    ends: (documents,) int64, cumulative numbers of tokens.
    context: T, tokens in a row.
    seed: of the order of documents of equal length.
  """
  order = np.random.default_rng(seed).permutation(len(ends))
  begins = np.concatenate([[0], ends[:-1]])[order]
  sizes = ends[order] - begins
  full = sizes // context
  # Pieces of full rows: the k-th of a document starts k rows into it.
  whole = np.repeat(np.arange(len(order)), full)
  kth = np.arange(len(whole)) - np.repeat(np.cumsum(full) - full, full)
  rest = np.flatnonzero(sizes % context)
  rows = _best_fit_decreasing((sizes % context)[rest], context)
  starts = np.concatenate([begins[whole] + kth * context, (begins + full * context)[rest]])
  lengths = np.concatenate([np.full(len(whole), context), (sizes % context)[rest]])
  documents = order[np.concatenate([whole, rest])]
  row_of_piece = np.concatenate([np.arange(len(whole)), len(whole) + rows])
  by_row = np.argsort(row_of_piece, kind='stable')
  return Plan(
    row_ends=np.cumsum(np.bincount(row_of_piece)),
    starts=starts[by_row],
    lengths=lengths[by_row].astype(np.int32),
    documents=documents[by_row],
  )


def whole(
  sizes: np.ndarray, capacity: np.ndarray, seed: int | None
) -> tuple[np.ndarray, np.ndarray]:
  """Returns rows of whole examples that have a size along each of several axes.

  Examples come in a random order, so that those of a row have nothing in common; each goes into the
  fullest of the rows that are open and have room, and the fullest row is closed to open another.

  Args:
    sizes: (examples, axes), each within the capacity.
    capacity: (axes,).
    seed: of the order; None for that of the examples as they are.

  Returns:
    (R,) int64, how many examples there are up to the end of each row; and the examples in order.
  """
  order = _order(len(sizes), seed)
  rooms = np.zeros((_OPEN, len(capacity)), np.int64)
  held: list[list[int]] = [[] for _ in range(_OPEN)]
  rows = []
  for example in order:
    left = rooms - sizes[example]
    slack = np.where((left >= 0).all(1), left.sum(1), np.iinfo(np.int64).max)
    best = int(slack.argmin())
    if slack[best] == np.iinfo(np.int64).max:
      best = int((rooms / capacity).sum(1).argmin())
      rows.append(held[best])
      rooms[best], held[best] = capacity, []
    rooms[best] -= sizes[example]
    held[best].append(int(example))
  rows = [row for row in [*rows, *held] if row]
  return np.cumsum([len(row) for row in rows]), np.concatenate(rows).astype(np.int64)


def _order(count: int, seed: int | None) -> np.ndarray:
  return np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)


def _best_fit_decreasing(sizes: np.ndarray, capacity: int) -> np.ndarray:
  """Returns the bin of each item; the bins are numbered from 0.

  Items of equal size are placed together: best fit puts as many of them into a bin as it holds,
  then goes to the next fullest bin with room. That takes time in the number of sizes, not of items.
  """
  bins = np.empty(len(sizes), np.int64)
  by_size = np.argsort(sizes, kind='stable')
  bounds = np.searchsorted(sizes[by_size], np.arange(capacity + 2))
  open_bins: dict[int, list[np.ndarray]] = {}  # room left -> bins
  count = 0
  for size in range(capacity, 0, -1):
    items = by_size[bounds[size] : bounds[size + 1]]
    rooms = sorted(room for room in open_bins if room >= size) if len(items) else []
    for room in [*rooms, capacity]:
      if not len(items):
        break
      each = room // size
      needed = -(-len(items) // each)
      if room in open_bins:
        there = np.concatenate(open_bins.pop(room))
      else:
        there = np.arange(count, count + needed)
        count += needed
      used, unused = there[:needed], there[needed:]
      placed = min(len(items), each * len(used))
      bins[items[:placed]] = np.repeat(used, each)[:placed]
      items = items[placed:]
      last = placed - each * (len(used) - 1)  # the last bin may hold fewer
      _add(open_bins, room - each * size, used[:-1])
      _add(open_bins, room - last * size, used[-1:])
      _add(open_bins, room, unused)
  return bins


def _add(open_bins: dict[int, list[np.ndarray]], room: int, bins: np.ndarray) -> None:
  if room and len(bins):
    open_bins.setdefault(room, []).append(bins)
