"""Vectors of a vocabulary: tokens are looked up among them, and by them states become logits."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.parallel.collectives import all_gather_param, apply_with_gathered, is_gathered_for
from lm.parallel.mesh import platform
from lm.types import Array, Batch, EmbeddingTable

AXES = ('vocab', 'embed')


def gather_for_tied(vectors_VD: Array, rows: Array, dtype: Any) -> EmbeddingTable:
  """Returns a table of which devices have copies for looking up and for logits alike.

  Without, its gradient is added up twice, and once of it in float32. On CPUs, whose compiler aborts
  on sums of bfloat16 over devices, copies are as the vectors are.

  Args:
    vectors_VD: the parameter.
    rows: the batch along axis 0.
    dtype: of the logits' product.
  """
  short_VD = vectors_VD if platform() == 'cpu' else vectors_VD.astype(dtype)
  return EmbeddingTable(vectors_VD, all_gather_param(short_VD, AXES, rows))


def embedding_lookup(table: EmbeddingTable, ids_BT: Array) -> Array:
  """Returns the vectors of tokens, (B, T, D), of the type of the parameter."""
  vectors_VD, copies = table
  if not is_gathered_for(copies, ids_BT):
    return jnp.take(vectors_VD, ids_BT, axis=0)
  short = copies.arrays.dtype, copies.arrays.shape[1:]
  found_BTD = apply_with_gathered(lambda ids, copy: _lookup(copy, ids, *short), ids_BT, copies)
  return found_BTD.astype(vectors_VD.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _lookup(table_VD: Array, ids_BT: Array, dtype: Any, shape: tuple[int, ...]) -> Array:
  """Returns vectors of a table of this type and shape; gradients add up in float32."""
  return jnp.take(table_VD, ids_BT, axis=0).astype(jnp.float32)


def _taken_bwd(
  dtype: Any, shape: tuple[int, ...], ids_BT: Array, d_BTD: Array
) -> tuple[Array, None]:
  return jnp.zeros(shape, jnp.float32).at[ids_BT].add(d_BTD).astype(dtype), None


_lookup.defvjp(lambda table, ids, *like: (_lookup(table, ids, *like), ids), _taken_bwd)


def unique_ids(ids_N: Array, size: int) -> tuple[Array, Array]:
  """Returns the different ones of N rows of a table, and the place of each of the N among them.

  Takes time in N and in one int32 for each row of the table: less than a sort of a few hundred.

  Args:
    ids_N: rows, with repetitions.
    size: how many rows the table has.

  Returns:
    (N,) rows, filled up with `size`; and (N,) places, `rows[places] == ids`.
  """
  order_N = jnp.arange(len(ids_N), dtype=jnp.int32)
  # The greatest of equal ones, and not any of them: the same on every device.
  places_N = jnp.zeros(size, jnp.int32).at[ids_N].max(order_N)[ids_N]
  return jnp.where(places_N == order_N, ids_N, size), places_N


def compact_ids(batch: Batch, names: tuple[str, ...], size: int) -> tuple[Array, Batch]:
  """Returns the different rows that some arrays of a batch name, and the batch with their places.

  Args:
    batch: its arrays.
    names: of those that hold rows of one table.
    size: how many rows the table has.
  """
  rows_N, places_N = unique_ids(jnp.concatenate([batch[name].ravel() for name in names]), size)
  ends = np.cumsum([batch[name].size for name in names])[:-1]
  parts = zip(names, jnp.split(places_N, ends), strict=True)
  return rows_N, {**batch, **{name: part.reshape(batch[name].shape) for name, part in parts}}
