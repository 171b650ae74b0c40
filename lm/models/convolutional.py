"""A convolutional encoder, which reads all tokens in parallel (Gehring et al. 2017)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.errors import UserError
from lm.nn.layers import Linear, dropout, hook_point
from lm.nn.position import sines
from lm.parallel.mesh import with_logical_constraint
from lm.types import Array


class Convolutional(nn.Module):
  """Gated convolutions with residuals: `(x_BSI, segments, positions) -> (B, S, d_hidden)`.

  A layer is (x + (A * sigmoid(G))) sqrt(1/2). A and G are linear maps of the `width` tokens around
  a token, without those of other segments. Positions are sinusoidal.
  """

  d_hidden: int
  depth: int
  width: int = 3  # odd number of tokens
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x_BSI: Array, segments_BS: Array, positions_BS: Array) -> Array:
    if self.width % 2 == 0:
      raise UserError(f'model.encoder.width={self.width} is even: a window needs a middle token')
    if self.d_hidden % 2:
      raise UserError(f'model.encoder.d_hidden={self.d_hidden} is odd: sinusoids need an even size')
    D, near = self.d_hidden, self.width // 2
    x = self._linear('in', x_BSI.shape[-1], D)(x_BSI)
    x += sines(positions_BS, D).astype(x.dtype)
    for i in range(self.depth):
      h = dropout(self, x, self.dropout)
      neighbors = [_shifted(h, segments_BS, offset) for offset in range(-near, near + 1)]
      both = self._linear(f'layer_{i}', self.width * D, 2 * D)(jnp.concatenate(neighbors, -1))
      a, gate = jnp.split(both, 2, axis=-1)
      x = hook_point(self, f'states_{i}', (x + a * jax.nn.sigmoid(gate)) * math.sqrt(0.5))
    return with_logical_constraint(x, 'batch', 'length', 'activation_embed')

  def _linear(self, name: str, inputs: int, outputs: int) -> Linear:
    return Linear(
      (inputs, outputs),
      ('embed', 'mlp'),
      bias=True,
      dtype=jnp.dtype(self.dtype),
      kernel_init=nn.initializers.lecun_normal(),
      name=name,
    )


def _shifted(x_BSD: Array, segments_BS: Array, offset: int) -> Array:
  """Returns x[s + offset] at each token s, or zeros where that is outside the segment of s."""
  shifted_BS, S = jnp.roll(segments_BS, -offset, axis=1), segments_BS.shape[1]
  index_S = jnp.arange(S) + offset
  inside_S = (index_S >= 0) & (index_S < S)
  same_BS = (shifted_BS == segments_BS) & inside_S[None]
  return jnp.where(same_BS[:, :, None], jnp.roll(x_BSD, -offset, axis=1), 0)
