"""A variant: attention with a gate on each head, computed from the input with new parameters.

  python -m lm.train --config=experiments/gated_attention.py --workdir=runs/gated_attention

Each head's gate is a sigmoid of a linear map of the layer's input (Qiu et al. 2025, "Gated
Attention for Large Language Models"). Text and sizes are those of the quickstart. Two CPU cores, 3
minutes.
"""

import flax.linen as nn

from lm.config.base import base, select_variant, smoke
from lm.config.resolve import ref
from lm.nn.layers import Attention, Linear


class GatedAttention(Attention):
  """`Attention` with each head's output multiplied by a gate in (0, 1)."""

  @nn.compact
  def __call__(self, x, memory, mask, cache):
    q, k, v = self.project(x, memory)
    o_BTHK, cache = self.attend(q, k, v, mask, cache)
    D, H = x.shape[-1], self.heads
    gate_BTH = nn.sigmoid(Linear((D, H), ('embed', 'heads'), dtype=self.dtype, name='gate')(x))
    return self.out(o_BTHK * gate_BTH[..., None], D), cache


def get_config(arg=''):
  config = base()
  config.model.attention_layer = ref(GatedAttention)
  return select_variant(config, arg, smoke=smoke)
