"""Vectors of a vocabulary: tokens are looked up among them, and by them states become logits."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.mesh import platform
from lm.shards import Copies, copied, with_copies
from lm.types import Array

AXES = ('vocab', 'embed')


class Table(NamedTuple):
  """Vectors (V, D), and the copies of them that devices have for their rows, if any."""

  vectors_VD: Array
  copies: Copies | None = None


def shared(vectors_VD: Array, rows: Array, dtype: Any) -> Table:
  """Returns a table of which devices have copies for looking up and for logits alike.

  Without, its gradient is added up twice, and once of it in float32. On CPUs, whose compiler aborts
  on sums of bfloat16 over devices, copies are as the vectors are.

  Args:
    vectors_VD: the parameter.
    rows: the batch along axis 0.
    dtype: of the logits' product.
  """
  short_VD = vectors_VD if platform() == 'cpu' else vectors_VD.astype(dtype)
  return Table(vectors_VD, copied(short_VD, AXES, rows))


def look_up(table: Table, ids_BT: Array) -> Array:
  """Returns the vectors of tokens, (B, T, D)."""
  if table.copies is None:
    return jnp.take(table.vectors_VD, ids_BT, axis=0)
  of_copy = jax.typeof(table.copies.arrays)
  like = jax.ShapeDtypeStruct(of_copy.shape[1:], of_copy.dtype)
  return with_copies(lambda ids, copy: _taken(copy, ids, like), ids_BT, table.copies)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _taken(table_VD: Array, ids_BT: Array, like: jax.ShapeDtypeStruct) -> Array:
  """Returns vectors of a table like `like`; the gradients of one token are added up in float32."""
  return jnp.take(table_VD, ids_BT, axis=0)


def _taken_bwd(like: jax.ShapeDtypeStruct, ids_BT: Array, d_BTD: Array) -> tuple[Array, None]:
  zero_VD = jnp.zeros(like.shape, jnp.float32)
  return zero_VD.at[ids_BT].add(d_BTD.astype(jnp.float32)).astype(like.dtype), None


_taken.defvjp(lambda table, ids, like: (_taken(table, ids, like), ids), _taken_bwd)
