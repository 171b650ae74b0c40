"""Attention on TPUs by the kernel that comes with JAX (splash attention), split over a mesh."""

import functools
from typing import Any

import jax

from lm.shards import on_each
from lm.types import Array, Mask

LANES = 128  # what a row's length must be a multiple of
BLOCK = 512  # queries, and keys, that are in fast memory at once


def can(T: int, mask: Mask) -> bool:
  """Returns whether the kernel does rows of T tokens that attend to themselves by such a mask."""
  plain = mask.bias is None and mask.k_prefix is None and mask.visible is None
  return mask.ordered and plain and T % LANES == 0


def splash(
  q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask: Mask, interpret: bool = False
) -> Array:
  """Attends within fast memory, and never holds scores of more than a block.

  A device does the rows and heads that it has. `interpret` runs the kernel's text on a CPU.

  Raises:
    ValueError: the kernel cannot honour the mask, or the length of rows.
  """
  _, T, _, K = q_BTHK.shape
  if not can(T, mask):
    raise ValueError(
      f'lm.nn.splash:splash takes rows of a multiple of {LANES} tokens that attend to themselves, '
      f'by causality, windows and segments alone; these have {T}; use lm.nn.attention:blocked'
    )
  segments_BT = mask.q_segments
  part = functools.partial(_part, window=mask.window, causal=mask.causal, interpret=interpret)
  heads, groups = ('batch', 'heads', None, None), ('batch', 'kv_heads', None, None)
  o_BHTK = on_each(
    part, (heads, groups, groups, None if segments_BT is None else ('batch', None)), heads
  )(
    (q_BTHK * K**-0.5).astype(q_BTHK.dtype).swapaxes(1, 2),
    k_BSGK.swapaxes(1, 2),
    v_BSGK.swapaxes(1, 2),
    segments_BT,
  )
  return o_BHTK.swapaxes(1, 2)


def _part(
  q_BHTK: Array,
  k_BGTK: Array,
  v_BGTK: Array,
  segments_BT: Array | None,
  window: int | None,
  causal: bool,
  interpret: bool,
) -> Array:
  """Attends for the rows and heads of one device."""
  # Here, since it takes a while and most programs run on other devices.
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernels,
  )
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  _, H, T, _ = q_BHTK.shape
  block = next(size for size in (BLOCK, 256, LANES) if T % size == 0)
  sizes = kernels.BlockSizes(
    block_q=block,
    block_kv=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_q_dq=block,
    block_kv_dq=block,
  )
  kernel = kernels.make_splash_mha(
    mask=masks.MultiHeadMask([_mask(masks, T, window, causal)] * H),
    head_shards=1,
    q_seq_shards=1,
    block_sizes=sizes,
    interpret=interpret,
  )
  if segments_BT is None:
    return jax.vmap(kernel)(q_BHTK, k_BGTK, v_BGTK)
  segments = kernels.SegmentIds(q=segments_BT, kv=segments_BT)
  return jax.vmap(kernel)(q_BHTK, k_BGTK, v_BGTK, segments)


def _mask(masks: Any, T: int, window: int | None, causal: bool) -> Any:
  if window is not None:
    return masks.LocalMask((T, T), (window - 1, 0 if causal else window - 1), 0)
  return masks.CausalMask((T, T)) if causal else masks.FullMask((T, T))
