"""A variant: differential attention, whose lambda starts at a value that depends on the depth.

  python -m lm.train --config=experiments/differential_attention.py --workdir=runs/differential

Two softmax maps of a pair of heads are subtracted, and the difference weighs the values of both
heads (Ye et al. 2024, "Differential Transformer", section 2.1). Text and sizes are those of the
quickstart. Two CPU cores, 5 minutes.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lm.config.base import base, select_variant, smoke
from lm.config.resolve import ref
from lm.nn.layers import Attention, RMSNorm
from lm.parallel.mesh import with_logical_partitioning


class DifferentialAttention(Attention):
  """`Attention` of an even number of key/value heads, paired; `layer` is its index, from 0."""

  layer: Any = 0

  def attended(self, q_BTHK, k_BSGK, v_BSGK, mask):
    B, T, H, K = q_BTHK.shape
    pairs = self.kv_heads // 2
    other_BSGK = v_BSGK.reshape(*v_BSGK.shape[:2], pairs, 2, K)[:, :, :, ::-1].reshape(v_BSGK.shape)
    own, other = (
      self.attention_fn(q_BTHK, k_BSGK, v, mask).reshape(B, T, pairs, 2, H // pairs // 2, K)
      for v in (v_BSGK, other_BSGK)
    )
    first = jnp.concatenate([own[:, :, :, 0], other[:, :, :, 0]], axis=-1)
    second = jnp.concatenate([other[:, :, :, 1], own[:, :, :, 1]], axis=-1)
    start = 0.8 - 0.6 * jnp.exp(-0.3 * jnp.float32(self.layer))
    init = with_logical_partitioning(nn.initializers.normal(0.1), None, None)
    q1, k1, q2, k2 = self.param('lambdas', init, (4, K))
    weight = jnp.exp(q1 @ k1) - jnp.exp(q2 @ k2) + start
    normed = RMSNorm(epsilon=1e-5, name='heads_norm')(first - weight.astype(first.dtype) * second)
    return (normed * (1 - start).astype(normed.dtype)).reshape(B, T, H, K)


def get_config(arg=''):
  config = base()
  config.model.attention_layer = ref(DifferentialAttention)
  return select_variant(config, arg, smoke=smoke)
