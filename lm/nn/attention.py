"""Attention functions `(q_BTHK, k_BSGK, v_BSGK, mask) -> o_BTHK`, and the kernels that they call.

`fused` chooses among them by platform: cuDNN's kernel on NVIDIA GPUs, the splash attention of JAX
on TPUs, and blocks of matmuls elsewhere.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.errors import UserError
from lm.parallel.collectives import shard_map_logical
from lm.parallel.mesh import platform
from lm.types import Array, Mask

LANES = 128  # the length of a row must be a multiple of this
BLOCK = 512  # the count of queries, and of keys, in one block in VMEM


def splash_supported(T: int, mask: Mask) -> bool:
  """Returns whether the kernel supports self-attention over rows of T tokens under a mask."""
  plain = mask.bias is None and mask.k_prefix is None and mask.allowed is None
  return mask.ordered and plain and T % LANES == 0


def splash(
  q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask: Mask, interpret: bool = False
) -> Array:
  """Splash attention, the TPU kernel of JAX, which keeps the scores of one block in VMEM.

  Each device computes its own rows and heads. `interpret` emulates the kernel on a CPU.

  Raises:
    UserError: the kernel does not support the mask, the length of rows, or the device.
  """
  _, T, _, K = q_BTHK.shape
  if not splash_supported(T, mask):
    raise UserError(
      'model.attention_fn: lm.nn.attention:splash supports self-attention only, with a mask of '
      f'causality, windows and segments, and rows of a multiple of {LANES} tokens; these have {T}; '
      'use lm.nn.attention:blockwise'
    )
  if not interpret:
    _check_platform('splash', 'tpu')
  segments_BT = mask.q_segments
  part = functools.partial(
    _splash_on_device, window=mask.window, causal=mask.causal, interpret=interpret
  )
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


def _splash_on_device(
  q_BHTK: Array,
  k_BGTK: Array,
  v_BGTK: Array,
  segments_BT: Array | None,
  window: int | None,
  causal: bool,
  interpret: bool,
) -> Array:
  """Returns the attention of the rows and heads of one device."""
  # Imported here, because the import is slow and most programs run on other devices.
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
_HALF = (jnp.bfloat16, jnp.float16)  # the types that cuDNN's attention supports


def dot_product(
  q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask: Mask, cap: float | None = None
) -> Array:
  """Plain attention, which stores all scores and supports every field of the mask.

  `cap` bounds the scores s to cap tanh(s / cap), as in Gemma 2; None leaves them as they are.
  """
  return _token_major(_attend(*_head_major(q_BTHK, k_BSGK, v_BSGK), mask, cap))


def blockwise(
  q_BTHK: Array,
  k_BSGK: Array,
  v_BSGK: Array,
  mask: Mask,
  block: int = 64,
  cap: float | None = None,
) -> Array:
  """Attention by blocks of queries, with half the FLOPs of `dot_product` under a causal mask.

  It skips keys after the block and keys before its window. Masks that are not causal or not
  `ordered` (decoding with a cache) have nothing to skip: these run `dot_product`.
  """
  T = q_BTHK.shape[1]
  if not (mask.causal and mask.ordered) or block >= T:
    return dot_product(q_BTHK, k_BSGK, v_BSGK, mask, cap)
  q_BGRTK, k_BGSK, v_BGSK = _head_major(q_BTHK, k_BSGK, v_BSGK)
  outputs = []
  for start in range(0, T, block):
    stop = min(start + block, T)
    first = 0 if mask.window is None else max(0, start - mask.window + 1)
    q, k = slice(start, stop), slice(first, stop)
    blocks = q_BGRTK[..., q, :], k_BGSK[:, :, k], v_BGSK[:, :, k]
    outputs.append(_attend(*blocks, mask.block(q, k), cap))
  return _token_major(jnp.concatenate(outputs, axis=3))


def weights(q_BTHK: Array, k_BSGK: Array, mask: Mask, cap: float | None = None) -> Array:
  """Returns the weights (B, H, T, S) float32 of softmax attention; `cap` as in `dot_product`.

  They are not negative and sum to 1 over the keys.
  """
  B, T, H, _ = q_BTHK.shape
  q_BGRTK, k_BGSK = _queries(q_BTHK, k_BSGK.shape[2]), k_BSGK.swapaxes(1, 2)
  return _weights(q_BGRTK, k_BGSK, mask, cap).reshape(B, H, T, k_BSGK.shape[1])


def weighted_values(weights_BHTS: Array, v_BSGK: Array) -> Array:
  """Returns the weighted values (B, T, H, K): the result of `dot_product`, given its weights."""
  B, H, T, S = weights_BHTS.shape
  G = v_BSGK.shape[2]
  return _token_major(_mixed(weights_BHTS.reshape(B, G, H // G, T, S), v_BSGK.swapaxes(1, 2)))


def is_softmax(attention_fn: Any) -> bool:
  """Returns whether a function computes `weighted_values` of `weights`, by whatever kernel."""
  return getattr(attention_fn, 'func', attention_fn).__module__ == __name__


def cap_of(attention_fn: Any) -> float | None:
  """Returns the soft cap of the scores that a config gives to a function of this file."""
  return getattr(attention_fn, 'keywords', {}).get('cap')


def _head_major(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array) -> tuple[Array, Array, Array]:
  # Transposed once, so that every matmul is a batch of plain matrices.
  return _queries(q_BTHK, k_BSGK.shape[2]), k_BSGK.swapaxes(1, 2), v_BSGK.swapaxes(1, 2)


def _queries(q_BTHK: Array, G: int) -> Array:
  B, T, H, K = q_BTHK.shape
  q_BGRTK = q_BTHK.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
  return q_BGRTK * jnp.asarray(1 / math.sqrt(K), q_BTHK.dtype)


def _token_major(o_BGRTK: Array) -> Array:
  B, G, R, T, K = o_BGRTK.shape
  return o_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, T, G * R, K)


def _attend(q_BGRTK: Array, k_BGSK: Array, v_BGSK: Array, mask: Mask, cap: float | None) -> Array:
  return _mixed(_weights(q_BGRTK, k_BGSK, mask, cap), v_BGSK)


def _weights(q_BGRTK: Array, k_BGSK: Array, mask: Mask, cap: float | None = None) -> Array:
  B, G, R, T, K = q_BGRTK.shape
  S = k_BGSK.shape[2]
  # The heads of a group are rows of one matrix, because they share their keys.
  scores_BGMS = jnp.einsum(
    'bgmk,bgsk->bgms',
    q_BGRTK.reshape(B, G, R * T, K),
    k_BGSK,
    preferred_element_type=jnp.float32,
  )
  scores_BGRTS = scores_BGMS.reshape(B, G, R, T, S)
  if cap is not None:
    scores_BGRTS = cap * jnp.tanh(scores_BGRTS / cap)
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
  is_causal: bool = False  # compares indices, not positions; the kernel skips hidden blocks of keys
  key_value_seq_lengths: Array | None = None  # (B,) int32
  local_window_size: tuple[int, int] | None = None  # to the left and to the right


def cudnn_mask(mask: Mask) -> CudnnMask:
  """Returns the kernel's arguments for a mask: an array only where no other argument expresses it.

  A row of one segment needs no array. Its padding comes last: a causal mask hides the padding from
  the other tokens, and without causality `key_value_seq_lengths` hides it. Rows of several segments
  need an array, because the public API of JAX does not expose the kernel's segment offsets. With
  causality, `is_causal` is also set, so that the kernel skips half of the blocks.
  """
  plain = mask.k_prefix is None and mask.allowed is None
  by_index = plain and mask.causal and mask.ordered
  bidirectional = plain and not mask.causal and mask.window is None  # kernel windows look back
  if not (by_index or bidirectional) or (mask.packed and mask.k_segments is not None):
    return CudnnMask(mask.dense(), by_index)
  if by_index:
    return CudnnMask(None, True, None, None if mask.window is None else (mask.window - 1, 0))
  if mask.k_segments is None:
    return CudnnMask()
  # At least 1, for rows of nothing but padding: a softmax over no keys is not finite.
  lengths_B = jnp.sum(mask.k_segments > 0, axis=1, dtype=jnp.int32)
  return CudnnMask(None, False, jnp.maximum(lengths_B, 1))


def cudnn(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask: Mask) -> Array:
  """cuDNN's fused attention on NVIDIA GPUs, in float16 or bfloat16; see `cudnn_mask`.

  Raises:
    UserError: the inputs are float32, the mask has a bias, or the device is no GPU.
  """
  check_cudnn(q_BTHK.dtype, mask)
  _check_platform('cudnn', 'gpu')
  return jax.nn.dot_product_attention(
    q_BTHK, k_BSGK, v_BSGK, **cudnn_mask(mask)._asdict(), implementation='cudnn'
  )


def check_cudnn(dtype: jnp.dtype, mask: Mask) -> None:
  """Raises UserError where cuDNN's attention does not support the dtype or the mask."""
  if mask.bias is not None:
    raise UserError(
      'model.attention_fn: lm.nn.attention:cudnn cannot honor Mask.bias, such as that of '
      'model.position; use lm.nn.attention:blockwise'
    )
  if dtype not in _HALF:
    raise UserError(
      f'model.attention_fn: lm.nn.attention:cudnn needs bfloat16 or float16, not {dtype}; '
      "set model.dtype='bfloat16' or use lm.nn.attention:blockwise"
    )


def _check_platform(kernel: str, wanted: str) -> None:
  if platform() != wanted:
    raise UserError(
      f'model.attention_fn: lm.nn.attention:{kernel} needs a {wanted.upper()}, and this is a '
      f'{platform().upper()}; use lm.nn.attention:fused'
    )


def cudnn_supported(q_BTHK: Array, k_BSGK: Array, mask: Mask) -> bool:
  """Returns whether `cudnn` supports these arrays and the mask on any GPU, also in training.

  T and S must be even. A single query is an exception, because it occurs only in decoding and needs
  no gradient. The head size must be a multiple of 8, and at most 128: only some GPUs support 256.
  """
  _, T, _, K = q_BTHK.shape
  if mask.bias is not None or q_BTHK.dtype not in _HALF or K > 128 or K % 8:
    return False
  return T == 1 or (T % 2 == 0 and k_BSGK.shape[1] % 2 == 0)


def fused(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask: Mask) -> Array:
  """`cudnn` on NVIDIA GPUs, `splash` on TPUs, `blockwise` elsewhere.

  If the kernel does not support the inputs, GPUs run `blockwise` (see `cudnn_supported`: float32, a
  bias, rows of odd length, a head size above 128 or not a multiple of 8). TPUs run `dot_product`
  (see `splash_supported`: cross-attention, a KV cache, a bias, or rows that are not a multiple of
  128 tokens), also for rows of 128: by the TPU compiler it is faster there, and not for 256.
  """
  if platform() == 'gpu' and cudnn_supported(q_BTHK, k_BSGK, mask):
    return cudnn(q_BTHK, k_BSGK, v_BSGK, mask)
  if platform() == 'tpu':
    T = q_BTHK.shape[1]
    do = splash if T > LANES and splash_supported(T, mask) else dot_product
    return do(q_BTHK, k_BSGK, v_BSGK, mask)
  return blockwise(q_BTHK, k_BSGK, v_BSGK, mask)
