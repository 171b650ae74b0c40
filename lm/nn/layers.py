"""The thin Linen modules of a block: projections, attention, feed-forward layers.

Compute runs in `dtype`; parameters are float32 masters, cast where they are used.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import Initializer

from lm.mesh import constrain, named, platform
from lm.nn import attention
from lm.nn.cache import Projected, Slots
from lm.nn.tap import COLLECTION, tap
from lm.shards import with_whole
from lm.types import Array, Mask

# How many numbers a product adds up for one, from which on it pays TPUs to hold it (see _apart).
# Narrower ones take less time than their results take to be written and read once more.
WIDE = 2048


class Linear(nn.Module):
  """A product over the last axes of x, with named axes: (..., *inputs) -> (..., *outputs)."""

  shape: tuple[int, ...]  # inputs then outputs
  axes: tuple[str | None, ...]  # logical names of `shape`
  inputs: int = 1  # how many leading axes of `shape` are contracted
  bias: bool = False
  dtype: Any = jnp.float32
  kernel_init: Initializer = nn.initializers.normal(0.02)

  @nn.compact
  def __call__(self, x: Array) -> Array:
    kernel = self.param('kernel', named(self.kernel_init, *self.axes), self.shape)
    shape, axes = self.shape[self.inputs :], self.axes[self.inputs :]

    # The pass backward keeps the kernel in its parts and puts it together again.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def product(x: Array, kernel: Array) -> Array:
      part = functools.partial(_product, inputs=self.inputs)
      return with_whole(part, x, kernel.astype(self.dtype), self.axes)

    y = product(x.astype(self.dtype), kernel)
    if math.prod(self.shape[: self.inputs]) >= WIDE:
      y = _apart(y)
    if self.bias:
      bias = self.param('bias', named(nn.initializers.zeros, *axes), shape)
      y += bias.astype(self.dtype).reshape((1,) * (y.ndim - len(shape)) + shape)
    return y


def _product(x: Array, kernel: Array, inputs: int) -> Array:
  """Returns the product over the last axes of x and the first of the kernel, `inputs` of them."""
  if platform() == 'tpu':
    # As one product of matrices, TPUs copy what comes out for its layout: a tenth of a step of
    # Llama 8B by their compiler's own cycles.
    over = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
    return jax.lax.dot_general(x, kernel, (over, ((), ())))
  # As one product of matrices: with more axes the CPU's gradient of the kernel copies and
  # transposes the gradient of y first.
  width = math.prod(kernel.shape[:inputs])
  y = x.reshape(-1, width) @ kernel.reshape(width, -1)
  return y.reshape(*x.shape[: x.ndim - inputs], *kernel.shape[inputs:])


@jax.custom_vjp
def _apart(y: Array) -> Array:
  """Returns y, which while training is an array by itself on TPUs, and so is its gradient.

  Fused into products, what is done to y and its gradient takes the room that products need: by the
  compiler's own cycles the gradients of `gate` and `qkv` took two and three times as long.
  """
  return y


def _held(y: Array) -> Array:
  return jax.lax.optimization_barrier(y) if platform() == 'tpu' else y


_apart.defvjp(lambda y: (_held(y), None), lambda _, d: (_held(d),))


def dropout(module: nn.Module, x: Array, rate: float) -> Array:
  """Zeroes a fraction `rate` of x and scales the rest up, when `module` was given a dropout key."""
  if rate == 0 or not module.has_rng('dropout'):
    return x
  kept = jax.random.bernoulli(module.make_rng('dropout'), 1 - rate, x.shape)
  return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))


class Attention(nn.Module):
  """Self-attention, or attention to a memory, with H query heads on G key/value heads.

  Called as `(x_BTD, memory, mask, cache) -> (y_BTD, cache)`. `memory` is None for self-attention,
  (B, S, D), or Projected. `cache` is None where nothing is to be kept. Self-attention enters its T
  new keys and values into Slots, of which the mask then speaks, and returns these; attention to a
  memory returns it Projected.

  Sites of lm.nn.tap: `values` (B, S, G, K), `weights` (B, H, T, S), `heads` (B, T, H, K), which
  are the values mixed by the weights, and `output` (B, T, D). The weights are those of softmax
  attention under the mask, as `attend` honours it; an `attend` of another kind mixes by others.
  """

  heads: int
  kv_heads: int
  head_dim: int
  attend: Callable[..., Array] = attention.dot_product
  rotate: Callable[[Array, Array], Array] | None = None
  window: int | None = None
  bias: bool = False
  dtype: Any = jnp.float32
  kernel_init: Initializer = nn.initializers.normal(0.02)
  out_init: Initializer = nn.initializers.normal(0.02)

  @nn.compact
  def __call__(
    self, x: Array, memory: Array | Projected | None, mask: Mask, cache: Any
  ) -> tuple[Array, Slots | Projected | None]:
    q_BTHK, k_BSGK, v_BSGK = self.project(x, memory)
    o_BTHK, cache = self.mix(q_BTHK, k_BSGK, v_BSGK, mask, cache)
    return self.out(o_BTHK, x.shape[-1]), cache

  def project(self, x_BTD: Array, memory: Array | Projected | None) -> tuple[Array, Array, Array]:
    """Returns queries (B, T, H, K) of x, keys and values (B, S, G, K) of x or the memory."""
    B, T, D = x_BTD.shape
    G, K = self.kv_heads, self.head_dim
    R = self.heads // G

    def linear(name: str, per_group: int) -> Linear:
      # One kernel for all that reads the same input; the key/value heads are the sharded axis, so
      # that each device keeps whole groups.
      return Linear(
        shape=(D, G, per_group, K),
        axes=('embed', 'kv_heads', None, 'head_dim'),
        bias=self.bias,
        dtype=self.dtype,
        kernel_init=self.kernel_init,
        name=name,
      )

    if memory is None:
      # Split and not indexed: the gradient of a split is one concatenation.
      q, k, v = jnp.split(linear('qkv', R + 2)(x_BTD), (R, R + 1), axis=3)
      k, v = k.squeeze(3), v.squeeze(3)
    else:
      q = linear('q', R)(x_BTD)
      if isinstance(memory, Projected):
        k, v = memory.read()
      else:
        k, v = (y.squeeze(3) for y in jnp.split(linear('kv', 2)(memory), 2, axis=3))
    q_BTHK = constrain(q.reshape(B, T, self.heads, K), 'batch', 'time', 'heads', 'head_dim')
    return q_BTHK, k, v

  def mix(
    self, q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask: Mask, cache: Any
  ) -> tuple[Array, Slots | Projected | None]:
    """Returns the heads' outputs (B, T, H, K), and the cache with the new keys and values."""
    if self.rotate is not None:
      q_BTHK = self.rotate(q_BTHK, mask.q_positions)
      k_BSGK = self.rotate(k_BSGK, mask.q_positions)
    if isinstance(cache, Slots):
      k_BSGK, v_BSGK, cache = cache.enter(k_BSGK, v_BSGK)
    elif cache is not None:  # of a memory, which does not grow
      cache = Projected.of(k_BSGK, v_BSGK)
    if self.window is not None:
      mask = mask.replace(window=self.window)
    v_BSGK = tap(self, 'values', v_BSGK)
    o_BTHK = tap(self, 'heads', self._attended(q_BTHK, k_BSGK, v_BSGK, mask))
    return constrain(o_BTHK, 'batch', 'time', 'heads', 'head_dim'), cache

  def _attended(self, q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask: Mask) -> Array:
    if self.is_mutable_collection(COLLECTION):
      # `attend` never shows its weights. Where sites are read they are found beside it; only where
      # they are edited do they take its place.
      weights_BHTS = attention.weights(q_BTHK, k_BSGK, mask)
      edited_BHTS = tap(self, 'weights', weights_BHTS)
      if edited_BHTS is not weights_BHTS:
        return attention.mixed(edited_BHTS, v_BSGK)
    return self.attend(q_BTHK, k_BSGK, v_BSGK, mask)

  def out(self, o_BTHK: Array, width: int) -> Array:
    """Returns the heads' outputs mapped back to the model's width (B, T, D)."""
    linear = Linear(
      shape=(self.heads, self.head_dim, width),
      axes=('heads', 'head_dim', 'embed'),
      inputs=2,
      bias=self.bias,
      dtype=self.dtype,
      kernel_init=self.out_init,
      name='out',
    )
    return tap(self, 'output', linear(o_BTHK))


@functools.partial(jax.checkpoint, prevent_cse=False)
def gelu(x: Array) -> Array:
  """The tanh form of GELU (Hendrycks and Gimpel 2016), as in GPT-2.

  The backward pass keeps x alone: the steps in between cost more to store than to compute.
  """
  return jax.nn.gelu(x, approximate=True)


class Mlp(nn.Module):
  """Two projections around an activation: D -> F -> D."""

  d_mlp: int
  activation: Callable[[Array], Array] = gelu
  bias: bool = False
  dtype: Any = jnp.float32
  kernel_init: Initializer = nn.initializers.normal(0.02)
  out_init: Initializer = nn.initializers.normal(0.02)

  @nn.compact
  def __call__(self, x_BTD: Array) -> Array:
    D = x_BTD.shape[-1]
    common = {'bias': self.bias, 'dtype': self.dtype}
    up = Linear(
      (D, self.d_mlp), ('embed', 'mlp'), kernel_init=self.kernel_init, name='up', **common
    )(x_BTD)
    hidden = tap(self, 'hidden', self.activation(up))
    hidden = constrain(hidden, 'batch', 'time', 'mlp')
    down = Linear(
      (self.d_mlp, D), ('mlp', 'embed'), kernel_init=self.out_init, name='down', **common
    )
    return tap(self, 'output', down(hidden))


class GatedMlp(nn.Module):
  """SwiGLU and its kin: (activation(x W) * x U) V (Shazeer 2020)."""

  d_mlp: int
  activation: Callable[[Array], Array] = jax.nn.silu
  bias: bool = False
  dtype: Any = jnp.float32
  kernel_init: Initializer = nn.initializers.normal(0.02)
  out_init: Initializer = nn.initializers.normal(0.02)

  @nn.compact
  def __call__(self, x_BTD: Array) -> Array:
    D = x_BTD.shape[-1]
    common = {'bias': self.bias, 'dtype': self.dtype}

    def projected(name: str) -> Array:
      shape, axes = (D, self.d_mlp), ('embed', 'mlp')
      return Linear(shape, axes, kernel_init=self.kernel_init, name=name, **common)(x_BTD)

    # Two kernels: side by side in one, their split axis would not be the first of the product's,
    # and devices that share it would have to gather it.
    hidden = tap(self, 'hidden', self.activation(projected('gate')) * projected('up'))
    hidden = constrain(hidden, 'batch', 'time', 'mlp')
    down = Linear(
      (self.d_mlp, D), ('mlp', 'embed'), kernel_init=self.out_init, name='down', **common
    )
    return tap(self, 'output', down(hidden))
