"""Co-occurrence counts of words (Pennington et al. 2014, "GloVe"), and rows of counted pairs.

`data.pair_counter` names a counter, `fn(stream) -> iterator of Pairs`. Its argument `progress`, if
any, receives the count of counted documents. Pairs may recur: `write` sums their counts. It
distributes pairs to files by a hash, so that only one file at a time is summed in memory.
"""

import contextlib
import functools
import inspect
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from lm.config import resolve
from lm.data import cache, fingerprints
from lm.data.packed_rows import Rows
from lm.errors import UserError
from lm.progress import Report, silent
from lm.text.tokenizers import vocabulary_size, word_ids

_BLOCK = 2**18  # tokens processed per NumPy call
_MIN_MEMORY = 2**24  # bytes
_BYTES = 160  # of memory for each pair of a block
_DOMAIN = (2,)  # separates the random stream from that of the rows of epoch 0
_FIELDS = {'inputs': np.int32, 'neighbours': np.int32, 'counts': np.float32}
_RECORD = np.dtype([('key', np.int64), ('count', np.float64)])
_FILES = 2**7  # temporary files of pairs


class TokenStream(NamedTuple):
  """The tokens of documents.

  Attributes:
    tokens: (tokens,) integers below V, one document after another.
    ends: (documents,) int64, cumulative number of tokens.
    is_word: (V,) bool, False for special and unknown tokens.
  """

  tokens: np.ndarray
  ends: np.ndarray
  is_word: np.ndarray


class Pairs(NamedTuple):
  """Words and their neighbors.

  Attributes:
    inputs: (n,) int32, the words, as tokens.
    neighbours: (n,) int32.
    counts: (n,) float64, above 0.
  """

  inputs: np.ndarray
  neighbours: np.ndarray
  counts: np.ndarray


def count_cooccurrences(
  stream: TokenStream, window: int = 10, memory: int = 2**28, progress: Report = silent
) -> Iterator[Pairs]:
  """Yields pairs of words that occur near each other in a document, in blocks.

  Words i and j at a distance d of at most `window` add 1 / d to the pairs (i, j) and (j, i). Two
  equal words thus add 2 / d. Tokens that are no words are removed before distances are measured,
  and no window crosses the end of a document. GloVe's `cooccur -symmetric 1` equally removes words
  outside its vocabulary, and treats lines as documents.

  Args:
    stream: the corpus.
    window: the largest distance.
    memory: bytes for the table of frequent pairs and for the block of other pairs. It affects only
      the rounding of counts.
    progress: receives the count of counted documents.

  Raises:
    UserError: `window` or `memory` is too small, or `window` too large for the vocabulary.
  """
  if not isinstance(window, int) or window < 1:
    raise UserError(f'data.pair_counter: window={window!r} is not an integer of at least 1')
  if not isinstance(memory, int) or memory < _MIN_MEMORY:
    raise UserError(
      f'data.pair_counter: memory={memory!r} is not an integer of at least {_MIN_MEMORY} bytes'
    )
  by_rank = _by_frequency(stream)
  size = len(by_rank)
  if size**2 * window >= 2**63:
    raise UserError(f'data.pair_counter: window={window} is too large for {size} words')
  frequent = min(size, math.isqrt(memory // 4 // 8))
  table = np.zeros(frequent**2)

  def pairs_of(keys: np.ndarray, counts: np.ndarray) -> Pairs:
    one, other = by_rank[keys // size], by_rank[keys % size]
    inputs, neighbours = np.concatenate([one, other]), np.concatenate([other, one])
    return Pairs(inputs, neighbours, np.concatenate([counts, counts]))

  def block_of(keys: list[np.ndarray]) -> Pairs:
    pairs, distances = np.divmod(np.sort(np.concatenate(keys)), window)
    return pairs_of(*_sums(pairs, 1 / (distances + 1)))

  keys: list[np.ndarray] = []
  for low, high, d in _pairs(stream, by_rank, window, progress):
    in_table = high < frequent
    np.add.at(table, low[in_table] * frequent + high[in_table], 1 / d)
    keys.append(((low * size + high) * window + d - 1)[~in_table])
    if sum(map(len, keys)) * _BYTES >= memory // 2:
      yield block_of(keys)
      keys = []
  if keys:
    yield block_of(keys)
  in_use = np.flatnonzero(table)
  for cells in np.split(in_use, range(_BLOCK, len(in_use), _BLOCK)):
    yield pairs_of(cells // frequent * size + cells % frequent, table[cells])


def _by_frequency(stream: TokenStream) -> np.ndarray:
  """Returns the words of the corpus, (n,) int32, most frequent first."""
  counts = np.zeros(len(stream.is_word), np.int64)
  for start in range(0, len(stream.tokens), _BLOCK):
    counts += np.bincount(stream.tokens[start : start + _BLOCK], minlength=len(counts))
  counts[~stream.is_word] = 0
  return np.argsort(-counts, kind='stable')[: np.count_nonzero(counts)].astype(np.int32)


def _pairs(
  stream: TokenStream, by_rank: np.ndarray, window: int, progress: Report
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
  """Yields (low, high, d): lower and higher ranks, int64, of the pairs of words at distance d."""
  rank_of = np.full(len(stream.is_word), -1, np.int64)
  rank_of[by_rank] = np.arange(len(by_rank))
  ranks = documents = np.zeros(0, np.int64)
  for start in range(0, len(stream.tokens), _BLOCK):
    new = rank_of[stream.tokens[start : start + _BLOCK]]
    places = np.flatnonzero(new >= 0)
    new_documents = np.searchsorted(stream.ends, places + start, side='right')
    # The last words of the previous block are neighbors of the first words of this block.
    seen = min(len(ranks), window)
    ranks = np.concatenate([ranks[len(ranks) - seen :], new[places]])
    documents = np.concatenate([documents[len(documents) - seen :], new_documents])
    for d in range(1, min(window, len(ranks) - 1) + 1):
      first = max(seen, d)  # index of the first word with a new pair at this distance
      left, right = slice(first - d, len(ranks) - d), slice(first, None)
      pairs = np.stack([ranks[left], ranks[right]])[:, documents[left] == documents[right]]
      yield pairs.min(axis=0), pairs.max(axis=0), d
    done = np.searchsorted(stream.ends, start + len(new), side='right')
    progress(int(done), len(stream.ends), 'counting co-occurrences')


def _sums(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the distinct values of sorted keys, and the sum of the counts of each."""
  first = np.flatnonzero(np.diff(keys, prepend=-1))
  return keys[first], np.add.reduceat(counts, first)


def write(place: pathlib.Path, blocks: Iterable[Pairs], seed: int) -> int:
  """Writes distinct pairs into a directory in a random order, and returns their number.

  A hash of the pair and the seed selects one of many files; the pairs of each file are shuffled.
  The order is thus random, and does not depend on the division into blocks.
  """
  rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=_DOMAIN))
  multiplier = np.uint64(2 * int(rng.integers(2**63)) + 1)
  files = [place / f'part-{i}.bin' for i in range(_FILES)]
  total = 0
  with contextlib.ExitStack() as stack:
    parts = [stack.enter_context(file.open('wb')) for file in files]
    for pairs in blocks:
      records = np.empty(len(pairs.counts), _RECORD)
      records['key'] = pairs.inputs.astype(np.int64) << 32 | pairs.neighbours
      records['count'] = pairs.counts
      # Multiplicative hashing: the upper bits of a product (Dietzfelbinger et al. 1997).
      nth = (records['key'].astype(np.uint64) * multiplier >> np.uint64(57)).astype(np.uint8)
      records = records[np.argsort(nth, kind='stable')]
      ends = np.cumsum(np.bincount(nth, minlength=_FILES))
      for part, some in zip(parts, np.split(records, ends[:-1]), strict=True):
        part.write(some.data)
  with contextlib.ExitStack() as stack:
    outputs = {name: stack.enter_context((place / f'{name}.bin').open('wb')) for name in _FIELDS}
    for file in files:
      records = np.fromfile(file, _RECORD)
      records = records[np.argsort(records['key'], kind='stable')]
      keys, counts = _sums(records['key'], records['count'])
      order = rng.permutation(len(keys))
      pairs = Pairs(keys[order] >> 32, keys[order] & 0xFFFFFFFF, counts[order])
      for name, dtype in _FIELDS.items():
        outputs[name].write(getattr(pairs, name).astype(dtype).data)
      total += len(keys)
      file.unlink()
  return total


class PairRows(Rows):
  """Rows of pairs, `seq_len` of them to a row.

  A row has (T,) arrays: `inputs` and `neighbours`, int32 tokens; `counts`, float32; `weights`,
  float32, and `segments`, int32. The last two are 1, and 0 on the padding of the last row. Pairs
  are shuffled, so a row is a random sample of them.
  """

  def __init__(self, place: pathlib.Path, seq_len: int, meta: Mapping[str, Any]):
    """Maps prepared files.

    Args:
      place: directory of the files of `write`.
      seq_len: T, pairs in a row.
      meta: count of documents, digest of the tokens, and number of pairs.
    """
    count = -(-meta['pairs'] // seq_len)
    super().__init__(count, f'{place.name}-{seq_len}', seq_len, {**meta, 'tokens': meta['pairs']})
    self._flat = {
      name: np.asarray(np.memmap(place / f'{name}.bin', dtype, 'r'))
      for name, dtype in _FIELDS.items()
    }

  def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    places = indices[:, None] * self.seq_len + np.arange(self.seq_len)
    real = places < self.tokens
    places = np.minimum(places, self.tokens - 1)
    batch = {
      name: np.where(real, flat[places], flat.dtype.type(0)) for name, flat in self._flat.items()
    }
    return batch | {'weights': real.astype(np.float32), 'segments': real.astype(np.int32)}

  def counts(self, vocab_size: int) -> np.ndarray:
    """Returns the count of pairs with each word as their input, (V,) int64."""
    return np.bincount(self._flat['inputs'], minlength=vocab_size)


def pair_rows(
  data: Mapping[str, Any],
  split: str,
  tokenizer: tokenizers.Tokenizer,
  seed: int,
  tokens: pathlib.Path,
  meta: Mapping[str, Any],
  progress: Report,
) -> PairRows:
  """Returns the pairs that `data.pair_counter` counts in the tokens of a split, cached.

  Args:
    data: the config's data section.
    split: name of the split, for errors.
    tokenizer: determines which tokens are words.
    seed: determines the order of the pairs.
    tokens: directory of tokens.bin and ends.npy.
    meta: the contents of meta.json in the directory `tokens`.
    progress: passed to a counter with an argument `progress`.

  Raises:
    UserError: `data.pair_counter` is wrong, or the split has no pairs.
  """
  path = data['pair_counter']
  count = resolve.resolve(path, 'data.pair_counter')
  if 'progress' in inspect.signature(count).parameters:
    count = functools.partial(count, progress=progress)
  shaped_by = {'format': fingerprints.FORMAT, 'tokens': tokens.name, 'seed': seed}
  shaped_by |= {'pair_counter': path, 'code': fingerprints.of_values(path)}

  def build(place: pathlib.Path) -> dict[str, Any]:
    is_word = np.zeros(vocabulary_size(tokenizer), bool)
    is_word[list(word_ids(tokenizer).values())] = True
    if not is_word.any():
      raise UserError(
        f'data.tokenizer={data["tokenizer"]["fn"]!r}: its vocabulary has special tokens alone and '
        'no word; lower its min_count, or take more text'
      )
    mapped = np.asarray(np.memmap(tokens / 'tokens.bin', meta['dtype'], 'r'))
    stream = TokenStream(mapped, np.asarray(np.load(tokens / 'ends.npy', mmap_mode='r')), is_word)
    pairs = write(place, resolve.call(count, 'data.pair_counter', stream), seed)
    if not pairs:
      raise UserError(
        f'data.pair_counter={path!r}: in split {split!r} no two words of the '
        'vocabulary occur near each other in a document'
      )
    return {'pairs': pairs}

  place, counted = cache.artifact(data['cache'], 'pairs', shaped_by, build)
  return PairRows(place, data['seq_len'], {**meta, 'pairs': counted['pairs']})
