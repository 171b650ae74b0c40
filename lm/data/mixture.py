"""Mixtures of sources by index arithmetic: position k of the mixture is row m of source i.

Each source is packed and shuffled on its own and repeats on its own epochs, so that none ends the
others. No state is saved, and a resumed run continues in every source.
"""

import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from lm.data.packed_rows import Rows
from lm.errors import UserError

_BITS = 30  # of the fraction of each source; counts of up to 2**33 rows are exact
_LEAST = 1e-6  # share


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

  Per-example values are padded to the largest number of examples in a row of any source.

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
    self._fields = _common_fields({name: part[0] for name, part in self.parts.items()})
    notes = [f'{name} {share:.1%}' for name, share in self.shares.items()]
    of_parts = [f'{name}: {part.note}' for name, part in self.parts.items() if part.note]
    self.note = '; '.join([f'rows of {", ".join(notes)}', *of_parts])

  def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    which = np.searchsorted(self._ends, indices, side='right')
    batch = {n: np.zeros((len(indices), *x.shape), x.dtype) for n, x in self._fields.items()}
    for i, part in enumerate(self.parts.values()):
      here = np.flatnonzero(which == i)
      for name, x in part.batch(indices[here] - self._begins[i]).items() if len(here) else ():
        batch[name][here, : x.shape[1]] = x
    return batch

  def order(self, positions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    which, nth = interleave(positions, [*self.shares.values()])
    epochs, indices = np.empty_like(positions), np.empty_like(positions)
    for i, (name, part) in enumerate(self.parts.items()):
      here = which == i
      # The order of a source depends on its name, and not on the other sources.
      own = np.random.SeedSequence((seed, zlib.crc32(name.encode()))).generate_state(1)[0]
      epochs[here], inside = part.order(nth[here], int(own))
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


def _common_fields(rows: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Returns for each field of a row an array of the largest shape, given a row of each source.

  Raises:
    UserError: two rows have other fields, dtypes or shapes beyond the first axis.
  """
  kinds = {
    name: {field: (str(x.dtype), *x.shape[1:]) for field, x in row.items()}
    for name, row in rows.items()
  }
  (first, expected), *others = kinds.items()
  for name, kind in others:
    if kind != expected:
      field = min(dict(kind.items() ^ expected.items()))
      raise UserError(
        f'data.mixture: a row of {name!r} has {field!r} {kind.get(field)}, and one of {first!r} '
        f'{expected.get(field)}; all sources need the same fields'
      )
  largest = {field: max((row[field] for row in rows.values()), key=np.size) for field in expected}
  return {field: np.zeros_like(x) for field, x in largest.items()}
