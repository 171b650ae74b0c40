"""Normalisation: pure functions and the modules that hold their scales."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.mesh import named
from lm.types import Array

# The backward pass of a norm keeps its input alone: what is in between costs more to store than to
# compute.
_recomputed = functools.partial(jax.checkpoint, prevent_cse=False)


@_recomputed
def layer_norm(x: Array, scale: Array, bias: Array | None, epsilon: float = 1e-5) -> Array:
  """Normalises the last axis to mean 0 and variance 1 in float32 (Ba et al. 2016).

  Args:
    x: (..., D).
    scale: (D,), or shaped to broadcast against x.
    bias: like scale, or None.
    epsilon: added to the variance.
  """
  x32 = x.astype(jnp.float32)
  mean = x32.mean(-1, keepdims=True)
  centred = x32 - mean
  variance = jnp.square(centred).mean(-1, keepdims=True)
  y = centred * jax.lax.rsqrt(variance + epsilon) * _row(scale, x)
  if bias is not None:
    y += _row(bias, x)
  return y.astype(x.dtype)


@_recomputed
def rms_norm(x: Array, scale: Array, epsilon: float = 1e-6) -> Array:
  """Divides the last axis by its root mean square in float32 (Zhang and Sennrich 2019)."""
  x32 = x.astype(jnp.float32)
  y = x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + epsilon)
  return (y * _row(scale, x)).astype(x.dtype)


class LayerNorm(nn.Module):
  """`layer_norm` with a learned scale and, when `bias`, a learned shift."""

  bias: bool = True
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: Array) -> Array:
    width = x.shape[-1]
    scale = self.param('scale', named(nn.initializers.ones, 'width'), (width,))
    bias = None
    if self.bias:
      bias = self.param('bias', named(nn.initializers.zeros, 'width'), (width,))
    return layer_norm(x, scale, bias, self.epsilon)


class RMSNorm(nn.Module):
  """`rms_norm` with a learned scale. Takes `bias` for the sake of one interface; there is none."""

  bias: bool = False
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param('scale', named(nn.initializers.ones, 'width'), (x.shape[-1],))
    return rms_norm(x, scale, self.epsilon)


def _row(vector: Array, x: Array) -> Array:
  return vector.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
