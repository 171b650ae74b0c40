"""Embedding tables, input layers, and the rows of a table that a batch uses."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.errors import UserError
from lm.parallel.collectives import all_gather_param, apply_with_gathered, is_gathered_for
from lm.parallel.mesh import current_mesh, platform, with_logical_partitioning
from lm.types import Array, Batch, EmbeddingTable

AXES = ('vocab', 'embed')


class InputLayer(NamedTuple):
  """From the vectors of tokens to the input of the first block.

  Attributes:
    apply: `(module, x_BTE, batch, add_positions, d_model) -> x_BTD`. It may hold parameters in the
      module, which is that of the stack; `batch` has the arrays of the row that is embedded, such
      as types (B, T); `add_positions(x)` adds those of `model.position`.
    width: E, of the embedding table; None for the width of the model.
  """

  apply: Callable[[nn.Module, Array, Batch, Callable[[Array], Array], int], Array]
  width: int | None = None


def plain() -> InputLayer:
  """The vectors of tokens plus those of positions."""
  return InputLayer(lambda module, x, batch, add_positions, d_model: add_positions(x))


def normed(
  norm: Callable[..., nn.Module], types: int = 0, width: int | None = None, std: float = 0.02
) -> InputLayer:
  """Normalizes the sum of the vectors of tokens, positions and types (Devlin et al. 2019).

  Rows without `types` have type 0.

  Args:
    norm: of the sum; its parameters are `embedding_norm`.
    types: count of types, the parameter `types`; 0 for none.
    width: of the table; the sum is then projected to the width of the model by `projection`, as in
      ELECTRA. None for the width of the model.
    std: of the initial values.
  """

  def apply(
    module: nn.Module,
    x_BTE: Array,
    batch: Batch,
    add_positions: Callable[[Array], Array],
    d_model: int,
  ) -> Array:
    init = nn.initializers.normal(std)
    if types:
      partitioned = with_logical_partitioning(init, None, 'embed')
      table = module.param('types', partitioned, (types, x_BTE.shape[-1]))
      ids_BT = batch.get('types')
      check_types(ids_BT, types)
      x_BTE += table[0][None, None] if ids_BT is None else jnp.take(table, ids_BT, axis=0)
    x_BTE = norm(name='embedding_norm')(add_positions(x_BTE))
    if width is None:
      return x_BTE
    axes = None, 'embed'
    kernel = module.param(
      'projection', with_logical_partitioning(init, *axes), (x_BTE.shape[-1], d_model)
    )
    bias = module.param(
      'projection_bias', with_logical_partitioning(nn.initializers.zeros, 'embed'), (d_model,)
    )
    return x_BTE @ kernel + bias[None, None]

  return InputLayer(apply, width)


def check_types(ids_BT: Any, types: int) -> None:
  """Raises UserError where a token type is not below `types`; those that are traced are not known.

  The lookup would give NaN. Zeros are allowed without a table of types.
  """
  if ids_BT is None or isinstance(ids_BT, jax.core.Tracer) or not np.size(ids_BT):
    return
  for found in (np.min(ids_BT), np.max(ids_BT)):
    if not 0 <= found < max(types, 1):
      raise UserError(f'types: {found} is no token type of the model, which has {types} from 0 on')


def gather_for_tied(vectors_VD: Array, batch: Array, dtype: Any) -> EmbeddingTable:
  """Returns a table whose all-gathered copies serve both the lookup and the logits.

  With a gather for each, the gradient would be reduced twice, once in float32. On CPUs the copies
  keep the type of the parameter, because XLA:CPU aborts on all-reduces of bfloat16.

  Args:
    vectors_VD: the parameter.
    batch: an array with the batch on axis 0.
    dtype: the type of the matmul that computes logits.
  """
  if current_mesh() is None:
    return EmbeddingTable(vectors_VD)
  short_VD = vectors_VD if platform() == 'cpu' else vectors_VD.astype(dtype)
  return EmbeddingTable(vectors_VD, all_gather_param(short_VD, AXES, batch))


def embedding_lookup(table: EmbeddingTable, ids_BT: Array) -> Array:
  """Returns the embeddings of tokens, (B, T, D), in the type of the parameter."""
  vectors_VD, gathered = table
  if gathered is None or not is_gathered_for(gathered, ids_BT):
    return jnp.take(vectors_VD, ids_BT, axis=0)
  copy = gathered.arrays.dtype, gathered.arrays.shape[1:]
  x_BTD = apply_with_gathered(lambda ids, table: _lookup(table, ids, *copy), ids_BT, gathered)
  return x_BTD.astype(vectors_VD.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _lookup(table_VD: Array, ids_BT: Array, dtype: Any, shape: tuple[int, ...]) -> Array:
  """Returns embeddings from a table of `dtype` and `shape`; gradients are summed in float32."""
  return jnp.take(table_VD, ids_BT, axis=0).astype(jnp.float32)


def _lookup_bwd(
  dtype: Any, shape: tuple[int, ...], ids_BT: Array, d_BTD: Array
) -> tuple[Array, None]:
  return jnp.zeros(shape, jnp.float32).at[ids_BT].add(d_BTD).astype(dtype), None


_lookup.defvjp(lambda table, ids, *like: (_lookup(table, ids, *like), ids), _lookup_bwd)


def unique_ids(ids_N: Array, size: int) -> tuple[Array, Array]:
  """Returns the unique values of N row ids, and for each of the N ids its index among them.

  The cost is linear in N, plus one int32 per row of the table. This takes less time than sorting,
  already for a few hundred ids.

  Args:
    ids_N: ids of rows of the table, with repetitions.
    size: number of rows of the table.

  Returns:
    (N,) unique ids, with `size` in the other places; (N,) indices with `ids[indices] == ids_N`.
  """
  order_N = jnp.arange(len(ids_N), dtype=jnp.int32)
  # Equal ids get the index of their last occurrence, so that all devices agree.
  indices_N = jnp.zeros(size, jnp.int32).at[ids_N].max(order_N)[ids_N]
  return jnp.where(indices_N == order_N, ids_N, size), indices_N


def compact_ids(batch: Batch, names: tuple[str, ...], size: int) -> tuple[Array, Batch]:
  """Returns the unique row ids of some arrays of a batch, and the batch with indices instead.

  The indices point into the array of unique ids (see `unique_ids`).

  Args:
    batch: arrays by name.
    names: the arrays that hold rows of one table.
    size: number of rows of the table.
  """
  ids_N, indices_N = unique_ids(jnp.concatenate([batch[name].ravel() for name in names]), size)
  ends = np.cumsum([batch[name].size for name in names])[:-1]
  parts = zip(names, jnp.split(indices_N, ends), strict=True)
  return ids_N, {**batch, **{name: part.reshape(batch[name].shape) for name, part in parts}}
