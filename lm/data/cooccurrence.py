"""How often words stand near each other in a corpus (Pennington et al. 2014, "GloVe").

A counter is `fn(corpus, scratch) -> iterator of Pairs`; a config names one in `data.count`. With an
argument `progress` it is given what to tell of documents done (lm.data.progress). The one here adds
up pairs of frequent words in a table, of which each is met many times. The others become numbers,
which are sorted so that equal ones can be added up; where they do not fit in memory they go to
files as sorted runs, and these are merged in the end.
"""

import math
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lm.data.progress import Progress, quiet
from lm.errors import UserError

_RECORD = np.dtype([('key', np.int64), ('count', np.float64)])
_BLOCK = 2**18  # tokens, or sorted numbers, that are worked on at once
_LEAST = 2**24  # bytes; less would make a great many files


class Corpus(NamedTuple):
  """The tokens of documents.

  Attributes:
    tokens: (tokens,) integers below V, the documents one after another.
    ends: (documents,) int64, cumulative numbers of tokens.
    words: (V,) bool, which tokens are words: neither special nor unknown.
  """

  tokens: np.ndarray
  ends: np.ndarray
  words: np.ndarray


class Pairs(NamedTuple):
  """Words and neighbours of theirs.

  Attributes:
    inputs: (n,) int32, the words, as tokens.
    neighbours: (n,) int32.
    counts: (n,) float64, above 0.
  """

  inputs: np.ndarray
  neighbours: np.ndarray
  counts: np.ndarray


def neighbours(
  corpus: Corpus,
  scratch: pathlib.Path,
  window: int = 10,
  memory: int = 2**28,
  progress: Progress = quiet,
) -> Iterator[Pairs]:
  """Yields every pair of words that stand near each other in a document, some at a time.

  Two words at a distance d of at most `window` add 1 / d to the pair (i, j) and to (j, i), so that
  two equal words add 2 / d. What is not a word is taken out before distances are measured, and no
  window goes beyond a document: GloVe's `cooccur -symmetric 1` does the same with words that are
  not in its vocabulary, and with lines.

  Args:
    corpus: what is counted.
    scratch: a directory for the runs, which are removed after the last pairs.
    window: the largest distance.
    memory: bytes that tables and runs take up, beside some 40 MB for the work on them. It changes
      the order of the pairs, and their counts by no more than rounding.
    progress: told how many documents of how many are counted.

  Yields:
    Pairs, in no order that means anything; none comes twice.

  Raises:
    UserError: `window` or `memory` is too small, or `window` too large for so many words.
  """
  if not isinstance(window, int) or window < 1:
    raise UserError(f'data.count: window={window!r} is not a whole number of 1 or more')
  if not isinstance(memory, int) or memory < _LEAST:
    raise UserError(f'data.count: memory={memory!r} is not a number of bytes, {_LEAST} or more')
  by_rank = _by_frequency(corpus)
  size = len(by_rank)
  if size**2 * window >= 2**63:
    raise UserError(f'data.count: window={window} is too large for {size} words')
  for records in _counted(corpus, by_rank, scratch, window, memory, progress):
    i = records['key'] // size
    j = records['key'] - i * size
    word, neighbour = by_rank[i], by_rank[j]
    unequal = i != j
    counts = np.where(unequal, records['count'], 2 * records['count'])
    yield Pairs(word, neighbour, counts)
    yield Pairs(neighbour[unequal], word[unequal], counts[unequal])


def _by_frequency(corpus: Corpus) -> np.ndarray:
  """Returns the words that occur, (n,) int32, the most frequent first."""
  counts = np.zeros(len(corpus.words), np.int64)
  for start in range(0, len(corpus.tokens), _BLOCK):
    counts += np.bincount(corpus.tokens[start : start + _BLOCK], minlength=len(counts))
  counts[~corpus.words] = 0
  return np.argsort(-counts, kind='stable')[: np.count_nonzero(counts)].astype(np.int32)


def _counted(
  corpus: Corpus,
  by_rank: np.ndarray,
  scratch: pathlib.Path,
  window: int,
  memory: int,
  progress: Progress,
) -> Iterator[np.ndarray]:
  """Yields records of pairs of ranks i <= j, each once; the key is i * len(by_rank) + j."""
  size = len(by_rank)
  frequent = min(size, math.isqrt(memory // 4 // 8))
  table = np.zeros(frequent**2)
  held = np.empty(memory // 2 // 8, np.int64)
  used = 0
  runs: list[pathlib.Path] = []
  for low, high, d in _pairs(corpus, by_rank, window, min(_BLOCK, len(held)), progress):
    in_table = high < frequent
    np.add.at(table, low[in_table] * frequent + high[in_table], 1 / d)
    keys = ((low * size + high) * window + (d - 1))[~in_table]
    if used + len(keys) > len(held):
      runs.append(_write_run(_added(held[:used], window), scratch, len(runs)))
      used = 0
    held[used : used + len(keys)] = keys
    used += len(keys)
  (found,) = np.nonzero(table)
  for start in range(0, len(found), _BLOCK):
    cells = found[start : start + _BLOCK]
    yield _records(cells // frequent * size + cells % frequent, table[cells])
  del table, found
  if not runs:
    yield from _added(held[:used], window)
    return
  runs.append(_write_run(_added(held[:used], window), scratch, len(runs)))
  del held
  yield from _merged(runs, memory // 128)
  for run in runs:
    run.unlink()


def _pairs(
  corpus: Corpus, by_rank: np.ndarray, window: int, block: int, progress: Progress
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
  """Yields the lower and the higher ranks, int64, of pairs of words at a distance, and that.

  They are at most `block` at once.
  """
  rank_of = np.full(len(corpus.words), -1, np.int64)
  rank_of[by_rank] = np.arange(len(by_rank))
  ranks = documents = np.zeros(0, np.int64)
  for start in range(0, len(corpus.tokens), block):
    new = rank_of[corpus.tokens[start : start + block]]
    (places,) = np.nonzero(new >= 0)
    # The last words of the block before are still neighbours of the first ones of this.
    seen = min(len(ranks), window)
    ranks = np.concatenate([ranks[len(ranks) - seen :], new[places]])
    of_new = np.searchsorted(corpus.ends, places + start, side='right')
    documents = np.concatenate([documents[len(documents) - seen :], of_new])
    for d in range(1, min(window, len(ranks) - 1) + 1):
      first = max(seen, d)  # of the words whose left neighbour is looked at
      left, right = slice(first - d, len(ranks) - d), slice(first, None)
      one, other = ranks[left], ranks[right]
      if documents[0] != documents[-1]:
        together = documents[left] == documents[right]
        one, other = one[together], other[together]
      yield np.minimum(one, other), np.maximum(one, other), d
    done = np.searchsorted(corpus.ends, start + len(new), side='right')
    progress(int(done), len(corpus.ends), 'counting neighbours')


def _added(keys: np.ndarray, window: int) -> Iterator[np.ndarray]:
  """Sorts keys with distances in place and yields records of what they add up to, in order."""
  keys.sort()
  weights = 1 / np.arange(1, window + 1)
  start = 0
  while start < len(keys):
    stop = min(start + _BLOCK, len(keys))
    # Up to where the last pair ends, which may be far beyond.
    stop = int(np.searchsorted(keys, (keys[stop - 1] // window + 1) * window))
    pairs = keys[start:stop] // window
    yield _sums(pairs, weights[keys[start:stop] - pairs * window])
    start = stop


def _sums(keys: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """Returns records of sorted keys, those of equal keys added up."""
  (first,) = np.nonzero(np.diff(keys, prepend=-1))
  return _records(keys[first], np.add.reduceat(counts, first))


def _records(keys: np.ndarray, counts: np.ndarray) -> np.ndarray:
  records = np.empty(len(keys), _RECORD)
  records['key'], records['count'] = keys, counts
  return records


def _write_run(blocks: Iterable[np.ndarray], scratch: pathlib.Path, number: int) -> pathlib.Path:
  file = scratch / f'run-{number}.bin'
  with file.open('wb') as f:
    for records in blocks:
      f.write(records.data)
  return file


def _merged(runs: Sequence[pathlib.Path], held: int) -> Iterator[np.ndarray]:
  """Yields the records of sorted runs in order, those of equal keys added up.

  Args:
    runs: files of records.
    held: how many are in memory at once.
  """
  each = max(1, held // len(runs))
  left = [run.stat().st_size // _RECORD.itemsize for run in runs]
  blocks = [np.empty(0, _RECORD) for _ in runs]
  while any(left) or any(map(len, blocks)):
    for i, run in enumerate(runs):
      if left[i] and not len(blocks[i]):
        offset = run.stat().st_size - left[i] * _RECORD.itemsize
        blocks[i] = np.fromfile(run, _RECORD, each, offset=offset)
        left[i] -= len(blocks[i])
    # Up to the last key of a block, nothing can come from what its run has left.
    ends = [block['key'][-1] for block, more in zip(blocks, left, strict=True) if more]
    limit = min(ends, default=np.iinfo(np.int64).max)
    cuts = [int(np.searchsorted(block['key'], limit, side='right')) for block in blocks]
    now = np.concatenate([block[:cut] for block, cut in zip(blocks, cuts, strict=True)])
    blocks = [block[cut:] for block, cut in zip(blocks, cuts, strict=True)]
    order = np.argsort(now['key'], kind='stable')
    yield _sums(now['key'][order], now['count'][order])
