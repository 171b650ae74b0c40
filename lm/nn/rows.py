"""Rows of a table that ids name, each of them once."""

import jax.numpy as jnp
import numpy as np

from lm.types import Array, Batch


def distinct(ids_N: Array, size: int) -> tuple[Array, Array]:
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


def renumbered(batch: Batch, names: tuple[str, ...], size: int) -> tuple[Array, Batch]:
  """Returns the different rows that some arrays of a batch name, and the batch with their places.

  Args:
    batch: its arrays.
    names: of those that hold rows of one table.
    size: how many rows the table has.
  """
  rows_N, places_N = distinct(jnp.concatenate([batch[name].ravel() for name in names]), size)
  ends = np.cumsum([batch[name].size for name in names])[:-1]
  parts = zip(names, jnp.split(places_N, ends), strict=True)
  return rows_N, {**batch, **{name: part.reshape(batch[name].shape) for name, part in parts}}
