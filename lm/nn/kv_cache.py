"""The KV cache: keys and values of earlier tokens, which later calls of a model attend to.

The cache of a Transformer is a dict:
  layers: for each layer group, and each layer of it, the KVCache of its attention, and the
    CrossAttentionKV of its cross-attention once the source was encoded
  positions, segments: (B, S) int32, of the cached tokens; segment 0 marks an empty entry
  lengths: (B,) int32, the number of cached tokens of each row, which is also the next free index
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
# The largest number of rows of a device that are updated one by one on TPUs; more take minutes to
# compile.
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
  lengths: Array  # (B,) int32, the number of cached tokens of each row

  def update(
    self, k_BTGK: Array, v_BTGK: Array, segments_BT: Array | None
  ) -> tuple[Array, Array, 'KVCache']:
    """Returns the keys and values (B, S, G, K) of all entries with T new ones; the new cache.

    The buffers must have T free entries after the cached tokens of each row. Padding (segment 0)
    comes last and does not count: the next tokens overwrite it. Without segments there is none.
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

  XLA updates the buffer in place in a loop or if it is donated, without communication on a mesh.

  Args:
    buffer: with the logical axes `axes`.
    new: likewise, with fewer tokens.
    lengths_B: int32.
    axes: 'cache_batch' first, and 'length', among others.
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
  # XLA:TPU lowers the scatter to a loop of some 10,000 cycles a row by its own cycle counts. For 64
  # rows of 1,024 tokens this is almost the time of attention. It fuses the updates below into one.
  for row in range(len(buffer)):
    start = [jnp.int32(0)] * buffer.ndim
    start[0], start[axis] = jnp.int32(row), lengths_B[row]
    buffer = jax.lax.dynamic_update_slice(buffer, new[row : row + 1], start)
  return buffer


def _new_lengths(lengths_B: Array, segments_BT: Array) -> Array:
  return lengths_B + (segments_BT > 0).sum(1, dtype=jnp.int32)


def unflatten_beams(batch: Batch, cache: Mapping[str, Any]) -> Batch:
  """Returns a batch of B * M one-token rows, in beam search, as (B, M) tokens."""
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
  if prefix is not None:  # one call has all of it; later tokens treat it like other tokens
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
    parents_BM: int32, indices of the beams that row b had; a single one before the first call.
  """
  allowed_BMS = cache.get('allowed', (cache['segments'] > 0)[:, None])
  allowed_BMS = jnp.take_along_axis(allowed_BMS, parents_BM[:, :, None], axis=1)
  return {**cache, 'allowed': allowed_BMS}
