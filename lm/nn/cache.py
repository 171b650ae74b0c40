"""What attention keeps of the tokens it has seen, so that later ones need not see them again.

Keys and values are kept head-major, as products of matrices want them: the attention functions
transpose theirs so, and the compiler cancels that against the transpositions here. In the order of
tokens every step would copy all that is kept. On a mesh a device keeps the rows and heads that are
its own.
"""

from typing import NamedTuple

import jax

from lm.parallel.mesh import with_logical_constraint
from lm.types import Array


class Projected(NamedTuple):
  """A memory as an earlier call has projected it."""

  k: Array  # (B, G, S, K)
  v: Array  # (B, G, S, K)

  @classmethod
  def of(cls, k_BSGK: Array, v_BSGK: Array) -> 'Projected':
    return cls(_pinned(_swapped(k_BSGK)), _pinned(_swapped(v_BSGK)))

  def read(self) -> tuple[Array, Array]:
    """Returns keys and values (B, S, G, K)."""
    return _swapped(_pinned(self.k)), _swapped(_pinned(self.v))


class Slots(NamedTuple):
  """Room for the keys and values of S tokens."""

  k: Array  # (B, G, S, K)
  v: Array  # (B, G, S, K)
  cursor: Array  # () int32, the slot where the next ones go

  def enter(self, k_BTGK: Array, v_BTGK: Array) -> tuple[Array, Array, 'Slots']:
    """Returns the keys and values (B, S, G, K) of all slots, with T new ones; and the new slots."""
    k, v = (
      _pinned(jax.lax.dynamic_update_slice_in_dim(slots, _swapped(new), self.cursor, axis=2))
      for slots, new in ((self.k, k_BTGK), (self.v, v_BTGK))
    )
    return _swapped(k), _swapped(v), Slots(k, v, self.cursor + k_BTGK.shape[1])


def _pinned(x_BGSK: Array) -> Array:
  return with_logical_constraint(x_BGSK, 'cache_batch', 'kv_heads', 'length', 'head_dim')


def _swapped(x: Array) -> Array:
  return x.swapaxes(1, 2)
