"""The cache of a Transformer: what it keeps of B rows of tokens while it goes on with them.

A cache is a dict:
  layers: for each period, and each layer of it, the Slots of its attention, and the Projected
    source of its cross-attention once that was read (lm/nn/cache.py)
  positions, segments: (B, S) int32, of the tokens in the slots; segment 0 is an empty slot
  cursor: () int32, the slot where the next token goes
  source_segments: (B, S') int32, of a source that was read
  visible: (B, M, S) bool, where M continuations of each row go on side by side

The M continuations of a row keep their tokens in slots of that one row, and each sees its own: so a
beam search moves M * S flags from step to step and no keys, and what all have in common, a prompt
or a source, is there once. (Trees of continuations under one mask: Miao et al. 2024, SpecInfer.)
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lm.types import Array, Batch, Mask


def rows_together(batch: Batch, cache: Any) -> Batch:
  """Returns a batch of B * M rows of one token, where M continuations go on, as (B, M) tokens."""
  if cache is None or 'visible' not in cache:
    return batch
  shape = cache['visible'].shape[:2]
  return {name: x.reshape(shape) for name, x in batch.items()}


def packed(batch: Batch) -> bool:
  """Returns whether rows may hold several segments; those of tasks say how many examples (B, P)."""
  return 'examples' not in batch or batch['examples'].shape[1] > 1


def self_mask(batch: Batch, cache: Any) -> tuple[Mask, dict[str, Array]]:
  """Returns the causal mask of a batch, and the cache's slots with the batch's tokens entered.

  Without a cache, tokens see the earlier ones of their segment. With one, they see every filled
  slot of the row up to their position; slots of segment 0 (never filled, or padding) stay unseen.
  """
  positions, segments = batch['positions'], batch['segments']
  prefix = batch.get('prefix')
  if cache is None:
    mask = Mask(positions, positions, segments, segments, prefix)
    return mask.replace(ordered=prefix is None, packed=packed(batch)), {}
  cursor = cache['cursor']
  enter = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=cursor, axis=1)
  slots = {
    'positions': enter(cache['positions'], positions),
    'segments': enter(cache['segments'], segments),
    'cursor': cursor + positions.shape[1],
  }
  if prefix is not None:  # read in this one call; later tokens see it as they see all before them
    prefix = enter(jnp.zeros_like(slots['segments']), prefix)
  mask = Mask(positions, slots['positions'], segments, slots['segments'], prefix)
  if 'visible' in cache:
    M, S = cache['visible'].shape[1:]
    own_MS = cursor + jnp.arange(M)[:, None] == jnp.arange(S)[None]
    slots['visible'] = cache['visible'] | own_MS[None]
    mask = mask.replace(allowed=slots['visible'])
  return mask, slots


def branch(cache: Mapping[str, Any], parents_BM: Array) -> dict[str, Any]:
  """Returns a cache where each row has M continuations; the m-th goes on from `parents[b, m]`.

  Args:
    cache: after a call of the model.
    parents_BM: int32, among the continuations that row b had: a single one to begin with.
  """
  visible_BMS = cache.get('visible', (cache['segments'] > 0)[:, None])
  visible_BMS = jnp.take_along_axis(visible_BMS, parents_BM[:, :, None], axis=1)
  return {**cache, 'visible': visible_BMS}
