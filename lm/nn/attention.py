"""Attention as pure functions `attend(q_BTHK, k_BSGK, v_BSGK, mask) -> o_BTHK`.

H query heads share G key/value heads, H = G * R; query head h reads key/value head h // R. Scores
are scaled by 1/sqrt(K) (Vaswani et al. 2017, eq. 1). Scores and softmax are float32. Queries that
see no key at all (padding) give finite values that nobody reads.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.mesh import platform
from lm.nn.splash import can, splash
from lm.types import Array, Mask

MASKED = -1e30
_HALF = (jnp.bfloat16, jnp.float16)  # what cuDNN's attention takes


def dot_product(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask: Mask) -> Array:
  """The plain form, with all scores at once. Honours every field of the mask."""
  o_BGRTK = _attend(*_head_major(q_BTHK, k_BSGK, v_BSGK), mask)
  return _token_major(o_BGRTK)


def blocked(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask: Mask, block: int = 64) -> Array:
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


def mixed(weights_BHTS: Array, v_BSGK: Array) -> Array:
  """Returns the values mixed by weights (B, T, H, K): `dot_product`, given its weights."""
  B, H, T, S = weights_BHTS.shape
  G = v_BSGK.shape[2]
  return _token_major(_mixed(weights_BHTS.reshape(B, G, H // G, T, S), _groups(v_BSGK)))


def _head_major(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array) -> tuple[Array, Array, Array]:
  # Transposed once, so that every product is a batch of plain matrices.
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
  visible_B1TS = mask.dense()
  if visible_B1TS is not None:
    scores_BGRTS = jnp.where(visible_B1TS[:, :, None], scores_BGRTS, MASKED)
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
  """Returns how the kernel is told of a mask: by structure where that says all, else as an array.

  A row of one segment needs no array: causality hides the padding, which comes last, from all
  others, and else the length of the row does. An array for several segments of a row comes with
  causality by index, so that half of the work is skipped for it too. The kernel has offsets of
  segments as well, for which JAX has no public function.
  """
  plain = mask.k_prefix is None and mask.visible is None
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
  """Raises ValueError where cuDNN's attention takes no such numbers, or no such mask."""
  if mask.bias is not None:
    raise ValueError('lm.nn.attention:cudnn cannot honour Mask.bias; use lm.nn.attention:blocked')
  if dtype not in _HALF:
    raise ValueError(
      f'lm.nn.attention:cudnn needs bfloat16 or float16, not {dtype}; '
      "set model.dtype='bfloat16' or use lm.nn.attention:blocked"
    )


def can_cudnn(q_BTHK: Array, k_BSGK: Array, mask: Mask) -> bool:
  """Returns whether `cudnn` takes these arrays on any GPU, for training too, and honours the mask.

  A single query, as in writing, is never trained on. Some GPUs would take heads of up to 256.
  """
  _, T, _, K = q_BTHK.shape
  if mask.bias is not None or q_BTHK.dtype not in _HALF or K > 128 or K % 8:
    return False
  return T == 1 or (T % 2 == 0 and k_BSGK.shape[1] % 2 == 0)


def fused(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask: Mask) -> Array:
  """`cudnn` where the program runs on an NVIDIA GPU, `splash` on a TPU, `blocked` elsewhere.

  What these kernels cannot do is done otherwise: on a GPU by `blocked` (can_cudnn: float32, a bias,
  heads of more than 128 numbers or of no multiple of 8, rows of odd lengths), on a TPU with all
  scores at once (lm.nn.splash.can: attention to another text, from a cache, with a bias, or in rows
  of no multiple of 128 tokens).
  """
  if platform() == 'gpu' and can_cudnn(q_BTHK, k_BSGK, mask):
    return cudnn(q_BTHK, k_BSGK, v_BSGK, mask)
  if platform() == 'tpu':
    do = splash if can(q_BTHK.shape[1], mask) else dot_product
    return do(q_BTHK, k_BSGK, v_BSGK, mask)
  return blocked(q_BTHK, k_BSGK, v_BSGK, mask)
