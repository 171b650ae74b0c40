"""Rows of pairs: words, neighbours and how often they met, in an order shuffled once."""

import contextlib
import inspect
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tokenizers

from lm.config import resolve
from lm.data import cache, identity, module_code
from lm.data.cooccurrence import Corpus, Pairs
from lm.data.progress import Progress
from lm.data.rows import ByIndex
from lm.errors import UserError
from lm.text.tokenizers import vocabulary_size, word_ids

_DOMAIN = (2,)
_FIELDS = {'inputs': np.int32, 'neighbours': np.int32, 'counts': np.float32}
_RECORD = np.dtype(list(_FIELDS.items()))
_PARTS = 128  # files the pairs are dealt to; each is shuffled in memory


class PairRows(ByIndex):
  """Random access to the pairs of a split, `context` of them to a row.

  A row is a dict of (T,) arrays: `inputs` and `neighbours`, int32 tokens; `counts`, float32;
  `weights`, float32, and `segments`, int32, which are 1, and 0 on padding at the end of the last
  row. As the pairs are shuffled, a row is a random sample of them.

  Attributes:
    tokens: number of pairs in all rows.
    documents: how many they were counted in.
    fingerprint: names the content and its order on this machine.
    content: a digest of the tokens counted, the same wherever they were prepared.
    context: T.
    size: pairs that a row has room for, T.
  """

  def __init__(self, place: pathlib.Path, context: int, meta: Mapping[str, Any]):
    """Maps prepared files.

    Args:
      place: directory that `write` has filled.
      context: T, pairs in a row.
      meta: counts and a digest of the tokens, and how many pairs they make.
    """
    self.tokens: int = meta['pairs']
    self.documents: int = meta['documents']
    self.fingerprint = f'{place.name}-{context}'
    self.content: str = meta['content']
    self.context = context
    self.size = context
    self._flat = {
      name: np.asarray(np.memmap(place / f'{name}.bin', dtype, 'r'))
      for name, dtype in _FIELDS.items()
    }

  def __len__(self) -> int:
    return -(-self.tokens // self.context)

  def counts(self, vocab_size: int) -> np.ndarray:
    """Returns in how many pairs each token is the first word, (V,) int64."""
    return np.bincount(self._flat['inputs'], minlength=vocab_size)

  def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Returns rows as a dict of (B, T) arrays, at once.

    Args:
      indices: (B,) integers, 0 <= index < len(self).
    """
    places = indices[:, None] * self.context + np.arange(self.context)
    real = places < self.tokens
    places = np.minimum(places, self.tokens - 1)
    batch = {
      name: np.where(real, flat[places], flat.dtype.type(0)) for name, flat in self._flat.items()
    }
    return batch | {'weights': real.astype(np.float32), 'segments': real.astype(np.int32)}


def prepared(
  data: Mapping[str, Any],
  split: str,
  tokenizer: tokenizers.Tokenizer,
  seed: int,
  tokens: pathlib.Path,
  meta: Mapping[str, Any],
  progress: Progress,
) -> PairRows:
  """Returns the pairs that `data.count` finds in a split's tokens, counted now or in the cache.

  Args:
    data: the config's data section.
    split: which split it is, for the errors.
    tokenizer: says which tokens are words.
    seed: orders the pairs.
    tokens: directory of tokens.bin and ends.npy.
    meta: what the meta.json of that says.
    progress: told how far the counting is, where the counter takes an argument `progress`.

  Raises:
    UserError: `data.count` is wrong, or there is nothing to count.
  """
  count = resolve.resolve(data['count'], 'data.count')
  code = module_code.of_values(data['count'])
  shaped_by = {'format': identity.FORMAT, 'tokens': tokens.name, 'seed': seed}
  shaped_by |= {'count': data['count'], 'code': code}

  def build(place: pathlib.Path) -> dict[str, Any]:
    words = np.zeros(vocabulary_size(tokenizer), bool)
    words[list(word_ids(tokenizer).values())] = True
    if not words.any():
      raise UserError(
        f'data.tokenizer={data["tokenizer"]["fn"]!r}: its vocabulary has special tokens alone and '
        'no word; lower its min_count, or take more text'
      )
    mapped = np.asarray(np.memmap(tokens / 'tokens.bin', meta['dtype'], 'r'))
    corpus = Corpus(mapped, np.asarray(np.load(tokens / 'ends.npy', mmap_mode='r')), words)
    told = {'progress': progress} if 'progress' in inspect.signature(count).parameters else {}
    pairs = write(place, resolve.call(count, 'data.count', corpus, place, **told), seed)
    if not pairs:
      raise UserError(
        f'data.count={data["count"]!r}: in split {split!r} no two words of the vocabulary stand '
        'near each other in a document'
      )
    return {'pairs': pairs, 'shaped_by': shaped_by}

  name = f'pairs-{cache.digest(shaped_by)}'
  place, counted = cache.artefact(cache.directory(data['cache']), name, build)
  return PairRows(place, data['context'], {**meta, 'pairs': counted['pairs']})


def write(place: pathlib.Path, blocks: Iterable[Pairs], seed: int) -> int:
  """Writes pairs into a directory in a random order, and returns how many there are.

  Each is dealt to one of many files at random, and each file is shuffled: together that is a
  uniformly random order, and no more than a file is in memory.
  """
  # A domain of its own, for the rows of epoch 0 are shuffled by the seed alone.
  rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=_DOMAIN))
  parts = [place / f'part-{number}.bin' for number in range(_PARTS)]
  total = 0
  with contextlib.ExitStack() as stack:
    files = [stack.enter_context(part.open('wb')) for part in parts]
    for pairs in blocks:
      dealt = rng.integers(_PARTS, size=len(pairs.inputs), dtype=np.uint8)
      order = np.argsort(dealt, kind='stable')
      records = np.empty(len(order), _RECORD)
      for name in _FIELDS:
        records[name] = getattr(pairs, name)[order]
      ends = np.cumsum(np.bincount(dealt, minlength=_PARTS))
      for file, dealt_to in zip(files, np.split(records, ends[:-1]), strict=True):
        file.write(dealt_to.data)
      total += len(records)
  with contextlib.ExitStack() as stack:
    flat = {name: stack.enter_context((place / f'{name}.bin').open('wb')) for name in _FIELDS}
    for part in parts:
      records = np.fromfile(part, _RECORD)
      records = records[rng.permutation(len(records))]
      for name, file in flat.items():
        file.write(np.ascontiguousarray(records[name]).data)
      part.unlink()
  return total
