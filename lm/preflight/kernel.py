"""Attention that stands for the kernel of GPUs, to find out what it does and keeps.

cuDNN's kernel asks for a GPU as soon as it is traced. This one has its shapes, does as many
products and keeps the same for the pass backward: its inputs, its output and one number for each
query and head. Nobody runs it: what it computes is not attention.
"""

import functools

import jax
import jax.numpy as jnp

from lm.errors import UserError
from lm.nn.attention import blockwise, check_cudnn, cudnn_mask, cudnn_supported
from lm.types import Array, Mask

# What stands for which attention.
PATHS = {
  'lm.nn.attention:fused': 'lm.preflight.kernel:fused',
  'lm.nn.attention:cudnn': 'lm.preflight.kernel:attention',
}


def fused(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask: Mask) -> Array:
  """Does what `lm.nn.attention:fused` does on a GPU."""
  do = attention if cudnn_supported(q_BTHK, k_BSGK, mask) else blockwise
  return do(q_BTHK, k_BSGK, v_BSGK, mask)


def attention(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask: Mask) -> Array:
  """Has the shapes of `lm.nn.attention:cudnn`, and does its products.

  Raises:
    UserError: cuDNN's attention takes no such numbers, or no such mask.
  """
  try:
    check_cudnn(q_BTHK.dtype, mask)
  except ValueError as e:
    raise UserError(f'model.attention_fn, on a GPU: {e}') from e
  S = seen = k_BSGK.shape[1]
  given = cudnn_mask(mask)
  # Of keys that are hidden by their places the kernel does not read most.
  seen = (S + 1) // 2 if given.is_causal else S
  if given.local_window_size is not None:
    seen = min(seen, given.local_window_size[0] + 1)
  # jax.nn.dot_product_attention adds an array as a bias.
  bias = None if given.mask is None else given.mask.astype(q_BTHK.dtype)
  return _kernel(q_BTHK, k_BSGK, v_BSGK, bias, seen)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _kernel(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, bias: Array | None, seen: int) -> Array:
  return _forward(q_BTHK, k_BSGK, v_BSGK, bias, seen)[0]


def _forward(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, bias: Array | None, seen: int):
  del bias
  o_BTHK = _back(_scores(q_BTHK, k_BSGK, seen), v_BSGK, seen)
  # Not of the scores, which a policy might then keep.
  statistic_BTH = o_BTHK[..., 0].astype(jnp.float32)
  return o_BTHK, statistic_BTH


def _kernel_fwd(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, bias: Array | None, seen: int):
  o_BTHK, statistic_BTH = _forward(q_BTHK, k_BSGK, v_BSGK, bias, seen)
  return o_BTHK, (q_BTHK, k_BSGK, v_BSGK, bias, o_BTHK, statistic_BTH)


def _kernel_bwd(seen: int, kept, d_BTHK: Array):
  q_BTHK, k_BSGK, v_BSGK, bias, o_BTHK, statistic_BTH = kept
  scores_BGRTs = _scores(q_BTHK, k_BSGK, seen)  # again, for they were not kept
  inner_BTH1 = jnp.sum(o_BTHK * d_BTHK, -1, keepdims=True) + statistic_BTH[..., None]
  d_scores_BGRTs = _scores(d_BTHK + inner_BTH1.astype(d_BTHK.dtype), v_BSGK, seen)
  d_q_BTHK = _back(d_scores_BGRTs, k_BSGK, seen)
  d_k_BSGK = _down(d_scores_BGRTs, q_BTHK, k_BSGK)
  d_v_BSGK = _down(scores_BGRTs, d_BTHK, v_BSGK)
  return d_q_BTHK, d_k_BSGK, d_v_BSGK, jax.tree.map(jnp.zeros_like, bias)


_kernel.defvjp(_kernel_fwd, _kernel_bwd)


def _grouped(x_BTHK: Array, G: int) -> Array:
  B, T, H, K = x_BTHK.shape
  return x_BTHK.reshape(B, T, G, H // G, K)


def _scores(q_BTHK: Array, k_BSGK: Array, seen: int) -> Array:
  q_BTGRK = _grouped(q_BTHK, k_BSGK.shape[2])
  return jnp.einsum('btgrk,bsgk->bgrts', q_BTGRK, k_BSGK[:, :seen])


def _back(scores_BGRTs: Array, v_BSGK: Array, seen: int) -> Array:
  o_BTGRK = jnp.einsum('bgrts,bsgk->btgrk', scores_BGRTs, v_BSGK[:, :seen])
  B, T, G, R, K = o_BTGRK.shape
  return o_BTGRK.reshape(B, T, G * R, K)


def _down(scores_BGRTs: Array, x_BTHK: Array, like_BSGK: Array) -> Array:
  S, G = like_BSGK.shape[1:3]
  d_BsGK = jnp.einsum('bgrts,btgrk->bsgk', scores_BGRTs, _grouped(x_BTHK, G))
  return jnp.pad(d_BsGK, ((0, 0), (0, S - d_BsGK.shape[1]), (0, 0), (0, 0)))
