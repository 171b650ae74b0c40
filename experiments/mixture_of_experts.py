"""A variant: a mixture of experts, whose balance loss spreads the tokens over them.

  python -m lm.train --config=experiments/mixture_of_experts.py --workdir=runs/mixture_of_experts

A router sends each token to one of eight feed-forward layers (Fedus et al. 2021, Switch
Transformer). `train/balance` is 0.01 in each layer, 0.04 in total, if all get equally many tokens.
No token is dropped. Text and sizes are those of the quickstart. Two CPU cores; the time is not
measured.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config.base import base, select_variant, smoke
from lm.nn.layers import Linear, Mlp, hook_point, layer_loss
from lm.parallel.mesh import with_logical_partitioning


class MixtureOfExperts(Mlp):
  """Expert layers without biases; the output of a token is scaled by the probability of its expert.

  The balance loss is E times the sum over experts of the fraction of tokens that an expert gets and
  its mean probability (equation 4): 1 if both are uniform.
  """

  experts: int = 8
  balance: float = 0.01  # weight of the balance loss

  @nn.compact
  def __call__(self, x_BTD):
    D, E, F = x_BTD.shape[-1], self.experts, self.d_mlp
    x_MD = x_BTD.reshape(-1, D)
    logits_ME = Linear((D, E), ('embed', None), kernel_init=self.kernel_init, name='router')(x_MD)
    p_ME = hook_point(self, 'router', jax.nn.softmax(logits_ME))
    expert_M = p_ME.argmax(-1)
    load_E = jnp.bincount(expert_M, length=E)
    layer_loss(self, 'balance', E * jnp.sum(load_E / len(x_MD) * p_ME.mean(0)), self.balance)
    init = with_logical_partitioning(self.kernel_init, None, 'embed', 'mlp')
    up_EDF = self.param('experts_up_kernel', init, (E, D, F)).astype(self.dtype)
    init = with_logical_partitioning(self.out_init, None, 'mlp', 'embed')
    down_EFD = self.param('experts_down_kernel', init, (E, F, D)).astype(self.dtype)
    order_M = expert_M.argsort()  # tokens of an expert are consecutive
    h_MF = self.activation(jax.lax.ragged_dot(x_MD[order_M], up_EDF, load_E))
    y_MD = jax.lax.ragged_dot(h_MF, down_EFD, load_E)[order_M.argsort()]
    return (y_MD * p_ME.max(-1, keepdims=True).astype(self.dtype)).reshape(x_BTD.shape)


def get_config(arg=''):
  config = base()
  config.model.mlp = 'mixture_of_experts:MixtureOfExperts(experts=8, balance=0.01)'
  return select_variant(config, arg, smoke=smoke)
