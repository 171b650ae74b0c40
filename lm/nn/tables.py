"""Vectors of a vocabulary: tokens are looked up among them, and by them states become logits."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lm.mesh import platform
from lm.shards import copied, serve, with_copies
from lm.types import Array, Table

AXES = ('vocab', 'embed')


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
  """Returns the vectors of tokens, (B, T, D), of the type of the parameter."""
  vectors_VD, copies = table
  if not serve(copies, ids_BT):
    return jnp.take(vectors_VD, ids_BT, axis=0)
  short = copies.arrays.dtype, copies.arrays.shape[1:]
  found_BTD = with_copies(lambda ids, copy: _taken(copy, ids, *short), ids_BT, copies)
  return found_BTD.astype(vectors_VD.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _taken(table_VD: Array, ids_BT: Array, dtype: Any, shape: tuple[int, ...]) -> Array:
  """Returns vectors of a table of this type and shape; gradients add up in float32."""
  return jnp.take(table_VD, ids_BT, axis=0).astype(jnp.float32)


def _taken_bwd(
  dtype: Any, shape: tuple[int, ...], ids_BT: Array, d_BTD: Array
) -> tuple[Array, None]:
  return jnp.zeros(shape, jnp.float32).at[ids_BT].add(d_BTD).astype(dtype), None


_taken.defvjp(lambda table, ids, *like: (_taken(table, ids, *like), ids), _taken_bwd)
