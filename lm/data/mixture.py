"""Mixtures of sources by index arithmetic: position k of the mixture is row m of source i.

Each source is packed and shuffled on its own and repeats on its own epochs, so that none ends the
others. No state is saved, and a resumed run continues in every source.

Sources may have tasks and transforms of their own. Their rows then get the same fields and shapes
(`_common_fields`), by zeros at the end, which are padding.
"""

import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.data.batches import transformed
from lm.data.packed_rows import Rows
from lm.errors import UserError

_BITS = 30  # of the fraction of each source; counts of up to 2**33 rows are exact
_LEAST = 1e-6  # share
# Fields that a generating model does not read: without them in all sources, none has them.
_SPARED = ('bytes', 'words', 'examples')
_ZEROS = ('prefix',)  # text without a prefix has one of no tokens


def interleave(positions: np.ndarray, shares: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
  """Returns the source of each position of an endless mixture, and the index among its rows.

  Sources are split off one after another, the largest first. In the sequence of the remaining ones,
  a source with the fraction c has round(c k) of the first k rows. With two sources, each window
  thus has the exact count within 1. With n, the first k rows have it within (1 + 1/2 + ... + 1/n)
  / 2, and a window within twice that. No sequence of three or more is as even as that of two, for
  most shares (Fraenkel 1973).

  Args:
    positions: (N,) int64, from 0.
    shares: above 0, one for each source; their sum is 1.
  """
  source, nth = np.zeros_like(positions), positions.copy()
  left, rest = np.ones(len(positions), bool), 1.0
  for i in np.argsort(-np.asarray(shares), kind='stable'):
    fraction = round(shares[i] / rest * 2**_BITS)
    before, after = ((k * fraction + 2 ** (_BITS - 1) >> _BITS) for k in (nth, nth + 1))
    here = left & (after > before)
    source[here] = i
    nth = np.where(left, np.where(here, before, nth - before), nth)
    left &= ~here
    rest -= shares[i]
  return source, nth


def mix(rows: Mapping[str, Rows], weights: Mapping[str, float], alpha: float = 0.0) -> Rows:
  """Returns the rows of a mixture; the share of a source is proportional to weight * tokens**alpha.

  An alpha of 0 leaves the weights alone, 1 gives sources their size, and 0.3 is that of Conneau et
  al. 2020, section 3.1. It is 1 / T for a temperature T. A source of weight 0 is left out.

  Args:
    rows: of each source by name.
    weights: of each source, at least 0.
    alpha: exponent of the number of tokens.

  Raises:
    UserError: alpha is negative, a share is below 1e-6, or two sources have other fields in rows.
  """
  if not 0 <= alpha < math.inf:
    raise UserError(f'data.mix: alpha={alpha!r} must be 0 or more, and finite')
  sizes = {name: weights[name] * part.tokens**alpha for name, part in rows.items() if weights[name]}
  shares = {name: size / math.fsum(sizes.values()) for name, size in sizes.items()}
  for name, share in shares.items():
    if share < _LEAST:
      raise UserError(
        f'data.mixture.{name}.weight={weights[name]} gives a share of {share:.1e} of the rows; it '
        f'must be at least {_LEAST}, or 0 to leave the source out'
      )
  return MixedRows({name: rows[name] for name in shares}, shares)


class MixedRows(Rows):
  """Rows of several sources: as a sequence one source after another, in training by their shares.

  The random generators of a source's transforms do not depend on the other sources.

  Attributes:
    parts: the rows of each source by name.
    shares: of each source in training.
    note: the shares, and the notes of the sources.
  """

  def __init__(self, parts: Mapping[str, Rows], shares: Mapping[str, float]):
    self.parts, self.shares = dict(parts), dict(shares)
    entries = [*self.parts.values()]
    joined = [[name, part.content] for name, part in self.parts.items()]
    meta = {key: sum(getattr(x, key) for x in entries) for key in ('tokens', 'documents')}
    meta['content'] = hashlib.sha256(repr(joined).encode()).hexdigest()
    print_of_all = '-'.join(x.fingerprint for x in entries)
    super().__init__(sum(map(len, entries)), print_of_all, entries[0].seq_len, meta)
    self.size = entries[0].size
    self._ends = np.cumsum([len(x) for x in entries])
    self._begins = self._ends - [len(x) for x in entries]
    first = np.zeros(1, np.int64)
    rows = {n: transformed(x.batch(first), x.transforms, [(0,)]) for n, x in self.parts.items()}
    self._fields = _common_fields({n: {k: x[0] for k, x in row.items()} for n, row in rows.items()})
    notes = [f'{name} {share:.1%}' for name, share in self.shares.items()]
    of_parts = [f'{name}: {part.note}' for name, part in self.parts.items() if part.note]
    self.note = '; '.join([f'rows of {", ".join(notes)}', *of_parts])

  def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    return self.drawn(indices, [(0, 0)] * len(indices))

  def drawn(self, indices: np.ndarray, keys: Sequence[tuple[int, ...]]) -> dict[str, np.ndarray]:
    which = np.searchsorted(self._ends, indices, side='right')
    batch = {n: np.zeros((len(indices), *x.shape), x.dtype) for n, x in self._fields.items()}
    for i, (name, part) in enumerate(self.parts.items()):
      here = np.flatnonzero(which == i)
      if not len(here):
        continue
      inside = indices[here] - self._begins[i]
      own = (
        (_own_seed(keys[b][0], name), keys[b][1], n)
        for b, n in zip(here.tolist(), inside.tolist(), strict=True)
      )
      found = transformed(part.batch(inside), part.transforms, own)
      for field in found.keys() & batch.keys():
        batch[field][here, : found[field].shape[1]] = found[field]
    return batch

  def order(self, positions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    which, nth = interleave(positions, [*self.shares.values()])
    epochs, indices = np.empty_like(positions), np.empty_like(positions)
    for i, (name, part) in enumerate(self.parts.items()):
      here = which == i
      epochs[here], inside = part.order(nth[here], _own_seed(seed, name))
      indices[here] = self._begins[i] + inside
    return epochs, indices

  def epochs(self, count: float) -> dict[str, float]:
    return {f'{n}/epoch': count * self.shares[n] / len(part) for n, part in self.parts.items()}

  def tokens_per_row(self) -> float:
    return sum(self.shares[name] * part.tokens_per_row() for name, part in self.parts.items())

  def counts(self, vocab_size: int) -> np.ndarray:
    """Returns the frequency of each token in training, (V,) int64, up to a common factor."""
    weight = {name: self.shares[name] / part.tokens for name, part in self.parts.items()}
    least, total = min(weight.values()), np.zeros(vocab_size)
    for name, part in self.parts.items():
      total += part.counts(vocab_size) * (weight[name] / least)  # type: ignore[attr-defined]
    return np.rint(total).astype(np.int64)


def _own_seed(seed: int, name: str) -> int:
  """Returns the seed of a source, which depends on its name, and not on the other sources."""
  return int(np.random.SeedSequence((seed, zlib.crc32(name.encode()))).generate_state(1)[0])


def _common_fields(rows: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Returns for each field of a row an array of the largest shape, given a row of each source.

  `bytes`, `words` and `examples` are left out unless all rows have them; a missing `prefix` is 0.

  Raises:
    UserError: two rows have other fields, dtypes or shapes beyond the first axis, or only one has
      a target for each input.
  """
  spared = {name for name in _SPARED if any(name not in row for row in rows.values())}
  zeros = {name: row[name] for row in rows.values() for name in _ZEROS if name in row}
  filled = {
    n: {k: x for k, x in (zeros | dict(row)).items() if k not in spared} for n, row in rows.items()
  }
  kinds = {name: {field: _kind(row, field) for field in row} for name, row in filled.items()}
  (first, expected), *others = kinds.items()
  for name, kind in others:
    if kind != expected:
      field = min(dict(kind.items() ^ expected.items()))
      raise UserError(
        f'data.mixture: a row of {name!r} has {field!r} {kind.get(field)}, and one of {first!r} '
        f'{expected.get(field)}; all sources need the same fields'
      )
  largest = {field: max((row[field] for row in filled.values()), key=np.size) for field in expected}
  return {field: np.zeros_like(x) for field, x in largest.items()}


def _kind(row: Mapping[str, np.ndarray], field: str) -> tuple[Any, ...]:
  """Returns what sources must share: dtype, inner axes, whether each input has a target."""
  x = row[field]
  if field not in ('targets', 'weights') or 'inputs' not in row:
    return str(x.dtype), *x.shape[1:]
  of = 'for each input' if len(x) == len(row['inputs']) else 'not for each input'
  return str(x.dtype), *x.shape[1:], of
