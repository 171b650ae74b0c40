"""The KV cache: keys and values of earlier tokens, which later calls of a model attend to.

The cache of a Transformer is a dict:
  layers: a tuple with one dict per layer group; its 'layer_i' has the KVCache of `attention`, and,
    once the source was encoded, the CrossAttentionKV of `cross_attention`
  positions, segments: (B, S) int32, of the cached tokens; segment 0 marks an empty entry
  lengths: (B,) int32, the count of cached tokens of each row, which is also the next free index
  source_segments: (B, S') int32, of the encoded source
  allowed: (B, M, S) bool, in beam search, which entries each of M beams attends to

The M beams of a row share the cache of that row, and each attends to its own tokens. Reordering the
beams moves M * S booleans and no keys, and a prompt or source is stored once. (Trees of
continuations under one mask: Miao et al. 2024, SpecInfer.)

Keys and values are stored head-major, the layout of the matmuls. The attention functions transpose
to this layout, and the compiler cancels their transpositions with those here. With a token-major
layout every step would copy the entire cache. On a mesh each device stores its own rows and heads.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.parallel.collectives import shard_map_logical
from lm.parallel.mesh import platform, with_logical_constraint
from lm.types import Array, Batch, Mask

AXES = ('cache_batch', 'kv_heads', 'length', 'head_dim')  # of keys and values
# On TPUs each row is updated by its own operation, up to this number of rows per device. Operations
# for more rows take minutes to compile.
MAX_UNROLLED_ROWS = 256


class CrossAttentionKV(NamedTuple):
  """Keys and values of an encoder output, projected once."""

  k: Array  # (B, G, S, K)
  v: Array  # (B, G, S, K)

  @classmethod
  def of(cls, k_BSGK: Array, v_BSGK: Array) -> 'CrossAttentionKV':
    return cls(_constrained(k_BSGK.swapaxes(1, 2)), _constrained(v_BSGK.swapaxes(1, 2)))

  def read(self) -> tuple[Array, Array]:
    """Returns keys and values (B, S, G, K)."""
    return _constrained(self.k).swapaxes(1, 2), _constrained(self.v).swapaxes(1, 2)


class KVCache(NamedTuple):
  """Keys and values of self-attention, in buffers of S tokens a row."""

  k: Array  # (B, G, S, K)
  v: Array  # (B, G, S, K)
  lengths: Array  # (B,) int32, the count of cached tokens of each row

  def update(
    self, k_BTGK: Array, v_BTGK: Array, segments_BT: Array | None
  ) -> tuple[Array, Array, 'KVCache']:
    """Returns all keys and all values (B, S, G, K), the T new ones included, and the new cache.

    The buffers must have T free entries after the cached tokens of each row. Padding (segment 0)
    comes last and does not count: the next tokens overwrite it. If `segments_BT` is None, no token
    is padding.
    """
    if segments_BT is None:
      segments_BT = jnp.ones(k_BTGK.shape[:2], jnp.int32)
    k, v = (
      _constrained(_append(buffer, new.swapaxes(1, 2), self.lengths, AXES))
      for buffer, new in ((self.k, k_BTGK), (self.v, v_BTGK))
    )
    return (
      k.swapaxes(1, 2),
      v.swapaxes(1, 2),
      KVCache(k, v, _new_lengths(self.lengths, segments_BT)),
    )


def _constrained(x_BGSK: Array) -> Array:
  return with_logical_constraint(x_BGSK, *AXES)


def _append(buffer: Array, new: Array, lengths_B: Array, axes: tuple[str, ...]) -> Array:
  """Returns the buffer with `new` after the cached tokens of each row.

  XLA updates the buffer in place if it is the carry of a loop or is donated. On a mesh, the update
  needs no communication.

  Args:
    buffer: an array with the logical axes `axes`.
    new: an array with the same axes and fewer tokens.
    lengths_B: int32, the count of cached tokens of each row.
    axes: logical axes; 'cache_batch' is the first, and 'length' is one of the others.
  """
  axis = axes.index('length')
  if platform() == 'tpu':
    by_row = functools.partial(_append_by_row, axis=axis)
    return shard_map_logical(by_row, (axes, axes, axes[:1]), axes)(buffer, new, lengths_B)
  return _append_scatter(buffer, new, lengths_B, axis)


def _append_scatter(buffer: Array, new: Array, lengths_B: Array, axis: int) -> Array:
  update = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=axis - 1)
  return jax.vmap(update)(buffer, new, lengths_B)


def _append_by_row(buffer: Array, new: Array, lengths_B: Array, axis: int) -> Array:
  if len(buffer) > MAX_UNROLLED_ROWS:
    return _append_scatter(buffer, new, lengths_B, axis)
  # XLA:TPU lowers a scatter to a loop. A row takes some 10,000 cycles by the compiler's own counts,
  # and 64 rows of 1,024 tokens take almost the time of attention. The updates below are fused into
  # one.
  for row in range(len(buffer)):
    start = [jnp.int32(0)] * buffer.ndim
    start[0], start[axis] = jnp.int32(row), lengths_B[row]
    buffer = jax.lax.dynamic_update_slice(buffer, new[row : row + 1], start)
  return buffer


def _new_lengths(lengths_B: Array, segments_BT: Array) -> Array:
  return lengths_B + (segments_BT > 0).sum(1, dtype=jnp.int32)


def unflatten_beams(batch: Batch, cache: Mapping[str, Any]) -> Batch:
  """Returns the B * M one-token rows of beam search as (B, M) tokens; other batches unchanged."""
  if 'allowed' not in cache:
    return batch
  shape = cache['allowed'].shape[:2]
  return {name: x.reshape(shape) for name, x in batch.items()}


def cached_mask(batch: Batch, cache: Mapping[str, Any]) -> tuple[Mask, dict[str, Array]]:
  """Returns the causal mask of a batch, and the new positions, segments and lengths of the cache.

  Tokens attend to all entries of their row up to their position, but not to empty entries and
  padding (segment 0).
  """
  positions, segments = batch['positions'], batch['segments']
  prefix = batch.get('prefix')
  lengths, axes = cache['lengths'], ('cache_batch', 'length')
  new = {
    'positions': _append(cache['positions'], positions, lengths, axes),
    'segments': _append(cache['segments'], segments, lengths, axes),
    'lengths': _new_lengths(lengths, segments),
  }
  # One call has the entire prefix. Later calls need none, because their tokens follow all of it.
  if prefix is not None:
    prefix = _append(jnp.zeros_like(new['segments']), prefix, lengths, axes)
  mask = Mask(positions, new['positions'], segments, new['segments'], prefix)
  if 'allowed' in cache:
    M, S = cache['allowed'].shape[1:]
    own_BM1 = (lengths[:, None] + jnp.arange(M)[None])[:, :, None]
    new['allowed'] = cache['allowed'] | (own_BM1 == jnp.arange(S)[None, None])
    mask = mask.replace(allowed=new['allowed'])
  return mask, new


def reorder_cache(cache: Mapping[str, Any], parents_BM: Array) -> dict[str, Any]:
  """Returns a cache of M beams a row, where beam m continues beam `parents_BM[b, m]`.

  Args:
    cache: from a call of the model.
    parents_BM: int32, indices of beams in `cache`. Before the first reordering a row has one beam.
  """
  allowed_BMS = cache.get('allowed', (cache['segments'] > 0)[:, None])
  allowed_BMS = jnp.take_along_axis(allowed_BMS, parents_BM[:, :, None], axis=1)
  return {**cache, 'allowed': allowed_BMS}
