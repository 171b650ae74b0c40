"""Attention on TPUs by the kernel that comes with JAX (splash attention), split over a mesh."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.parallel.collectives import shard_map_logical
from lm.parallel.mesh import platform
from lm.types import Array, Mask

LANES = 128  # what a row's length must be a multiple of
BLOCK = 512  # queries, and keys, of a block in VMEM


def splash_supported(T: int, mask: Mask) -> bool:
  """Returns whether the kernel does rows of T tokens that attend to themselves by such a mask."""
  plain = mask.bias is None and mask.k_prefix is None and mask.allowed is None
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
  if not splash_supported(T, mask):
    raise ValueError(
      f'lm.nn.attention:splash takes rows of a multiple of {LANES} tokens, self-attention '
      f'by causality, windows and segments alone; these have {T}; use lm.nn.attention:blockwise'
    )
  segments_BT = mask.q_segments
  part = functools.partial(_part, window=mask.window, causal=mask.causal, interpret=interpret)
  heads, groups = ('batch', 'heads', None, None), ('batch', 'kv_heads', None, None)
  o_BHTK = shard_map_logical(
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


MASKED = -1e30
_HALF = (jnp.bfloat16, jnp.float16)  # what cuDNN's attention takes


def dot_product(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask: Mask) -> Array:
  """Plain attention: it holds all scores and supports every field of the mask."""
  o_BGRTK = _attend(*_head_major(q_BTHK, k_BSGK, v_BSGK), mask)
  return _token_major(o_BGRTK)


def blockwise(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask: Mask, block: int = 64) -> Array:
  """Blocks of queries against the keys they can see: half the work of the plain form when causal.

  Keys after the block, and before its window, are not touched at all. Masks that are not causal
  or not `ordered` (decoding from a cache) have nothing to skip and take the plain form.
  """
  T = q_BTHK.shape[1]
  if not (mask.causal and mask.ordered) or block >= T:
    return dot_product(q_BTHK, k_BSGK, v_BSGK, mask)
  q_BGRTK, k_BGSK, v_BGSK = _head_major(q_BTHK, k_BSGK, v_BSGK)
  outputs = []
  for start in range(0, T, block):
    stop = min(start + block, T)
    first = 0 if mask.window is None else max(0, start - mask.window + 1)
    q, k = slice(start, stop), slice(first, stop)
    of_block = _attend(q_BGRTK[..., q, :], k_BGSK[:, :, k], v_BGSK[:, :, k], mask.block(q, k))
    outputs.append(of_block)
  return _token_major(jnp.concatenate(outputs, axis=3))


def weights(q_BTHK: Array, k_BSGK: Array, mask: Mask) -> Array:
  """Returns the weights (B, H, T, S) float32 by which the attention functions here mix values.

  They are not negative and sum to 1 over the keys.
  """
  B, T, H, _ = q_BTHK.shape
  q_BGRTK, k_BGSK = _queries(q_BTHK, k_BSGK.shape[2]), _groups(k_BSGK)
  return _weights(q_BGRTK, k_BGSK, mask).reshape(B, H, T, k_BSGK.shape[1])


def weighted_values(weights_BHTS: Array, v_BSGK: Array) -> Array:
  """Returns the values mixed by weights (B, T, H, K): `dot_product`, given its weights."""
  B, H, T, S = weights_BHTS.shape
  G = v_BSGK.shape[2]
  return _token_major(_mixed(weights_BHTS.reshape(B, G, H // G, T, S), _groups(v_BSGK)))


def _head_major(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array) -> tuple[Array, Array, Array]:
  # Transposed once, so that every matmul is a batch of plain matrices.
  return _queries(q_BTHK, k_BSGK.shape[2]), _groups(k_BSGK), _groups(v_BSGK)


def _queries(q_BTHK: Array, G: int) -> Array:
  B, T, H, K = q_BTHK.shape
  q_BGRTK = q_BTHK.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
  return q_BGRTK * jnp.asarray(1 / math.sqrt(K), q_BTHK.dtype)


def _groups(k_BSGK: Array) -> Array:
  return k_BSGK.transpose(0, 2, 1, 3)


def _token_major(o_BGRTK: Array) -> Array:
  B, G, R, T, K = o_BGRTK.shape
  return o_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, T, G * R, K)


def _attend(q_BGRTK: Array, k_BGSK: Array, v_BGSK: Array, mask: Mask) -> Array:
  return _mixed(_weights(q_BGRTK, k_BGSK, mask), v_BGSK)


def _weights(q_BGRTK: Array, k_BGSK: Array, mask: Mask) -> Array:
  B, G, R, T, K = q_BGRTK.shape
  S = k_BGSK.shape[2]
  # The heads of a group are rows of one matrix: they read the same keys.
  scores_BGMS = jnp.einsum(
    'bgmk,bgsk->bgms',
    q_BGRTK.reshape(B, G, R * T, K),
    k_BGSK,
    preferred_element_type=jnp.float32,
  )
  scores_BGRTS = scores_BGMS.reshape(B, G, R, T, S)
  bias_BHTS = mask.dense_bias()
  if bias_BHTS is not None:
    scores_BGRTS += bias_BHTS.reshape(-1, G, R, T, S)
  allowed_B1TS = mask.dense()
  if allowed_B1TS is not None:
    scores_BGRTS = jnp.where(allowed_B1TS[:, :, None], scores_BGRTS, MASKED)
  return jax.nn.softmax(scores_BGRTS, axis=-1)


def _mixed(weights_BGRTS: Array, v_BGSK: Array) -> Array:
  B, G, R, T, S = weights_BGRTS.shape
  weights_BGMS = weights_BGRTS.astype(v_BGSK.dtype).reshape(B, G, R * T, S)
  o_BGMK = jnp.einsum('bgms,bgsk->bgmk', weights_BGMS, v_BGSK)
  return o_BGMK.reshape(B, G, R, T, -1)


class CudnnMask(NamedTuple):
  """A mask as arguments of `jax.nn.dot_product_attention` with cuDNN's kernel."""

  mask: Array | None = None  # (B, 1, T, S) bool
  is_causal: bool = False  # by index; blocks of keys that are hidden by it are skipped
  key_value_seq_lengths: Array | None = None  # (B,) int32
  local_window_size: tuple[int, int] | None = None  # to the left and to the right


def cudnn_mask(mask: Mask) -> CudnnMask:
  """Returns the kernel's arguments for a mask: by structure where that suffices, else an array.

  A row of one segment needs no array: causality hides the padding, which comes last, from all
  others, and else the length of the row does. An array for several segments of a row comes with
  causality by index, so that half of the work is skipped for it too. The kernel has offsets of
  segments as well, for which JAX has no public function.
  """
  plain = mask.k_prefix is None and mask.allowed is None
  by_index = plain and mask.causal and mask.ordered
  all_seen = plain and not mask.causal and mask.window is None  # windows of the kernel look back
  if not (by_index or all_seen) or (mask.packed and mask.k_segments is not None):
    return CudnnMask(mask.dense(), by_index)
  if by_index:
    return CudnnMask(None, True, None, None if mask.window is None else (mask.window - 1, 0))
  if mask.k_segments is None:
    return CudnnMask()
  # At least 1, for rows of padding alone: a softmax over no keys is not finite.
  lengths_B = jnp.sum(mask.k_segments > 0, axis=1, dtype=jnp.int32)
  return CudnnMask(None, False, jnp.maximum(lengths_B, 1))


def cudnn(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask: Mask) -> Array:
  """cuDNN's fused attention on NVIDIA GPUs, in float16 or bfloat16, by `cudnn_mask`.

  Raises:
    ValueError: the inputs are float32, or the mask has a bias.
  """
  check_cudnn(q_BTHK.dtype, mask)
  given = cudnn_mask(mask)._asdict()
  return jax.nn.dot_product_attention(q_BTHK, k_BSGK, v_BSGK, **given, implementation='cudnn')


def check_cudnn(dtype: jnp.dtype, mask: Mask) -> None:
  """Raises ValueError where cuDNN's attention does not support the dtype or the mask."""
  if mask.bias is not None:
    raise ValueError('lm.nn.attention:cudnn cannot honour Mask.bias; use lm.nn.attention:blockwise')
  if dtype not in _HALF:
    raise ValueError(
      f'lm.nn.attention:cudnn needs bfloat16 or float16, not {dtype}; '
      "set model.dtype='bfloat16' or use lm.nn.attention:blockwise"
    )


def cudnn_supported(q_BTHK: Array, k_BSGK: Array, mask: Mask) -> bool:
  """Returns whether `cudnn` takes these arrays on any GPU, for training too, and honours the mask.

  A single query, as in writing, is never trained on. Some GPUs would take heads of up to 256.
  """
  _, T, _, K = q_BTHK.shape
  if mask.bias is not None or q_BTHK.dtype not in _HALF or K > 128 or K % 8:
    return False
  return T == 1 or (T % 2 == 0 and k_BSGK.shape[1] % 2 == 0)


def fused(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask: Mask) -> Array:
  """`cudnn` where the program runs on an NVIDIA GPU, `splash` on a TPU, `blocked` elsewhere.

  Unsupported inputs take another form. On a GPU it is `blockwise` (see `cudnn_supported`: float32,
  a bias, heads of more than 128 elements or of no multiple of 8, rows of odd length). On a TPU it
  is `dot_product` (see `splash_supported`: cross-attention, a KV cache, a bias, or rows of no
  multiple of 128 tokens).
  """
  if platform() == 'gpu' and cudnn_supported(q_BTHK, k_BSGK, mask):
    return cudnn(q_BTHK, k_BSGK, v_BSGK, mask)
  if platform() == 'tpu':
    do = splash if splash_supported(q_BTHK.shape[1], mask) else dot_product
    return do(q_BTHK, k_BSGK, v_BSGK, mask)
  return blockwise(q_BTHK, k_BSGK, v_BSGK, mask)
