"""The layers of a model: norms, projections, attention, feed-forward, block layouts, a head.

Parameters are float32; layers compute in `dtype` and cast parameters where they use them.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import Initializer

from lm.errors import UserError
from lm.nn import attention
from lm.nn.hooks import HOOKS
from lm.nn.kv_cache import CrossAttentionKV, KVCache
from lm.parallel.collectives import apply_with_gathered_kernel
from lm.parallel.mesh import (
  current_mesh,
  platform,
  with_logical_constraint,
  with_logical_partitioning,
)
from lm.types import LOSSES_COLLECTION, Array, EmbeddingTable, Mask, OutputHead

# Matmuls that contract at least this many elements are kept out of XLA:TPU's fusions
# (_materialize). This costs another write and read of the result, which for a narrower matmul would
# take longer than the matmul itself.
MIN_BARRIER_DIM = 2048

Sublayers = Sequence[tuple[str, Callable[[Array], Array]]]
Norm = Callable[[str], Callable[[Array], Array]]


def hook_point(module: nn.Module, name: str, x: Array) -> Array:
  """Returns x, which hooks of `lm.nn.hooks.with_hooks` may record or edit as 'module/path/name'."""
  hook = HOOKS.get()
  return x if hook is None else hook(module, name, x)


def layer_loss(module: nn.Module, name: str, value: Array, weight: float = 1.0) -> None:
  """Adds `weight * value` to the training loss, as the term `name`, summed over layers.

  Args:
    module: the layer; scan and remat of the stack do not matter.
    name: of the term.
    value: scalar, a mean over the tokens that the layer sees. Under gradient accumulation these are
      the tokens of a microbatch, and the term is the mean over microbatches.
    weight: its coefficient.
  """
  zero = functools.partial(jnp.zeros, ())
  scaled = jnp.asarray(weight * value, jnp.float32)
  module.sow(LOSSES_COLLECTION, name, scaled, reduce_fn=jnp.add, init_fn=zero)


# A decorator of functions whose intermediate values are recomputed in the backward pass: this costs
# less than storing them.
_recomputed = functools.partial(jax.checkpoint, prevent_cse=False)


@_recomputed
def layer_norm(x: Array, scale: Array, bias: Array | None, epsilon: float = 1e-5) -> Array:
  """Normalizes the last axis to mean 0 and variance 1 in float32 (Ba et al. 2016).

  Args:
    x: (..., D).
    scale: (D,), or a shape that broadcasts against x.
    bias: like scale, or None.
    epsilon: added to the variance.
  """
  x32 = x.astype(jnp.float32)
  mean = x32.mean(-1, keepdims=True)
  centered = x32 - mean
  variance = jnp.square(centered).mean(-1, keepdims=True)
  y = centered * jax.lax.rsqrt(variance + epsilon) * _row(scale, x)
  if bias is not None:
    y += _row(bias, x)
  return y.astype(x.dtype)


@_recomputed
def rms_norm(x: Array, scale: Array, epsilon: float = 1e-6) -> Array:
  """Divides the last axis by its root mean square in float32 (Zhang and Sennrich 2019)."""
  x32 = x.astype(jnp.float32)
  y = x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + epsilon)
  return (y * _row(scale, x)).astype(x.dtype)


def _row(vector: Array, x: Array) -> Array:
  return vector.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))


class LayerNorm(nn.Module):
  """`layer_norm` with a learned scale and, if `bias` is set, a learned shift."""

  bias: bool = True
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = _norm_param(self, 'scale', nn.initializers.ones, x)
    bias = _norm_param(self, 'bias', nn.initializers.zeros, x) if self.bias else None
    return layer_norm(x, scale, bias, self.epsilon)


class RMSNorm(nn.Module):
  """`rms_norm` with a learned scale. `bias` has no effect; all norms have this field."""

  bias: bool = False
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return rms_norm(x, _norm_param(self, 'scale', nn.initializers.ones, x), self.epsilon)


class ShiftedRMSNorm(RMSNorm):
  """`rms_norm` scaled by 1 + w, as in Gemma; w starts at 0."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    w = _norm_param(self, 'scale', nn.initializers.zeros, x)
    return rms_norm(x, 1 + w.astype(jnp.float32), self.epsilon)


def _norm_param(norm: nn.Module, name: str, init: Initializer, x: Array) -> Array:
  return norm.param(name, with_logical_partitioning(init, 'activation_embed'), x.shape[-1:])


def pre_norm(x: Array, sublayers: Sublayers, norm: Norm) -> Array:
  """x + f(norm(x)), the block layout of GPT-2 and Llama (Xiong et al. 2020).

  A block layout is a pure function of `sublayers`, which are (name, function) pairs, and of
  `norm(name)`, which returns the norm of that name and makes its parameters on first use.
  """
  for name, f in sublayers:
    x = x + f(norm(f'{name}_norm')(x))
  return x


def mlp_pre_norm(x: Array, sublayers: Sublayers, norm: Norm) -> Array:
  """`pre_norm` without a norm before attention: layer 0 of ModernBERT, after a normed input."""
  (_, attend), *others = sublayers
  return pre_norm(x + attend(x), others, norm)


def post_norm(x: Array, sublayers: Sublayers, norm: Norm) -> Array:
  """norm(x + f(x)), the layout of the first Transformer and BERT (Vaswani et al. 2017)."""
  for name, f in sublayers:
    x = norm(f'{name}_norm')(x + f(x))
  return x


def sandwich_norm(x: Array, sublayers: Sublayers, norm: Norm) -> Array:
  """x + norm(f(norm(x))), the layout of Gemma 2 and CogView (Ding et al. 2021)."""
  for name, f in sublayers:
    x = x + norm(f'{name}_post_norm')(f(norm(f'{name}_norm')(x)))
  return x


def parallel_block(x: Array, sublayers: Sublayers, norm: Norm) -> Array:
  """x + sum of f(norm(x)) with one norm for all sublayers, the layout of GPT-J and PaLM."""
  normed = norm('norm')(x)
  return x + sum((f(normed) for _, f in sublayers[1:]), sublayers[0][1](normed))


def parallel_norms(x: Array, sublayers: Sublayers, norm: Norm) -> Array:
  """x + sum of f(norm(x)) with a norm for each sublayer, the layout of GPT-NeoX and Pythia."""
  (first, f), *others = sublayers
  y = f(norm(f'{first}_norm')(x))
  return x + sum((g(norm(f'{name}_norm')(x)) for name, g in others), y)


class Linear(nn.Module):
  """A matmul over the last axes of x, with named axes: (..., *inputs) -> (..., *outputs)."""

  shape: tuple[int, ...]  # inputs then outputs
  axes: tuple[str | None, ...]  # logical names of `shape`
  inputs: int = 1  # the count of leading axes of `shape` that are contracted
  bias: bool = False
  dtype: Any = jnp.float32
  kernel_init: Initializer = nn.initializers.normal(0.02)

  @nn.compact
  def __call__(self, x: Array) -> Array:
    kernel = self.param(
      'kernel', with_logical_partitioning(self.kernel_init, *self.axes), self.shape
    )
    shape, axes = self.shape[self.inputs :], self.axes[self.inputs :]

    @_recomputed  # only the sharded kernel is stored; the backward pass all-gathers it again
    def matmul(x: Array, kernel: Array) -> Array:
      part = functools.partial(_matmul, inputs=self.inputs)
      kernel = kernel.astype(self.dtype)
      if current_mesh() is None:
        return part(x, kernel)
      return apply_with_gathered_kernel(part, x, kernel, self.axes)

    y = matmul(x.astype(self.dtype), kernel)
    if math.prod(self.shape[: self.inputs]) >= MIN_BARRIER_DIM:
      y = _materialize(y)
    if self.bias:
      bias = self.param('bias', with_logical_partitioning(nn.initializers.zeros, *axes), shape)
      y += bias.astype(self.dtype).reshape((1,) * (y.ndim - len(shape)) + shape)
    return y


def _matmul(x: Array, kernel: Array, inputs: int) -> Array:
  """Contracts the last `inputs` axes of x with the first ones of the kernel."""
  if platform() == 'tpu':
    # With flattened axes, XLA:TPU copies the result into another layout. The copies take a tenth of
    # a training step of Llama 8B by the compiler's own cycle counts.
    over = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
    return jax.lax.dot_general(x, kernel, (over, ((), ())))
  # Both arguments are flattened to matrices. With more axes, XLA:CPU copies and transposes the
  # gradient of y to compute the gradient of the kernel.
  width = math.prod(kernel.shape[:inputs])
  y = x.reshape(-1, width) @ kernel.reshape(width, -1)
  return y.reshape(*x.shape[: x.ndim - inputs], *kernel.shape[inputs:])


@jax.custom_vjp
def _materialize(y: Array) -> Array:
  """Returns y; on TPUs, XLA does not fuse other operations into the matmuls of y and its gradient.

  Elementwise operations in the same fusion compete with a matmul for VMEM. With them, the gradients
  of `gate` and `qkv` took two and three times as long by the compiler's own cycle counts.
  """
  return y


def _barrier(y: Array) -> Array:
  return jax.lax.optimization_barrier(y) if platform() == 'tpu' else y


_materialize.defvjp(lambda y: (_barrier(y), None), lambda _, d: (_barrier(d),))


def dropout(module: nn.Module, x: Array, rate: float) -> Array:
  """Zeroes a fraction `rate` of x and scales up the rest, where `module` has a dropout key."""
  if not 0 <= rate < 1:
    raise UserError(
      f'model: dropout={rate} of {type(module).__name__} is not at least 0 and below 1'
    )
  if rate == 0 or not module.has_rng('dropout'):
    return x
  kept = jax.random.bernoulli(module.make_rng('dropout'), 1 - rate, x.shape)
  return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))


class Attention(nn.Module):
  """Self-attention or cross-attention with H query heads on G key/value heads.

  The call is `(x_BTD, encoder_output, mask, cache) -> (y_BTD, cache)`. For self-attention,
  `encoder_output` is None. For cross-attention, it is an array (B, S, D), or the keys and values
  that an earlier call projected from it (CrossAttentionKV). `cache` is None, or a KVCache, to which
  the T new keys and values are appended; the mask then describes the entries of the cache.
  Cross-attention with a cache returns the projected keys and values as the cache.

  Hook points: `values` (B, S, G, K), `weights` (B, H, T, S), `heads` (B, T, H, K) and `output`
  (B, T, D). `heads` are the weighted values. `weights` are always those of softmax attention under
  the mask, even if `attention_fn` computes another kind of attention.
  """

  heads: int
  kv_heads: int
  head_dim: int
  attention_fn: Callable[..., Array] = attention.dot_product
  rotate: Callable[[Array, Array], Array] | None = None
  window: int | None = None
  scale: float | None = None  # of the scores; None for 1 / sqrt(head_dim)
  qk_norm: Callable[..., nn.Module] | None = None  # of queries and keys (Dehghani et al. 2023)
  qkv_bias: bool | None = None  # of queries, keys and values; None for `bias`
  out_bias: bool | None = None  # of the output projection; None for `bias`
  dropout: float = 0.0  # of the attention weights (Devlin et al. 2019), which are then stored
  bias: bool = False
  dtype: Any = jnp.float32
  kernel_init: Initializer = nn.initializers.normal(0.02)
  out_init: Initializer = nn.initializers.normal(0.02)

  @nn.compact
  def __call__(
    self, x: Array, encoder_output: Array | CrossAttentionKV | None, mask: Mask, cache: Any
  ) -> tuple[Array, KVCache | CrossAttentionKV | None]:
    q_BTHK, k_BSGK, v_BSGK = self.project(x, encoder_output)
    o_BTHK, cache = self.attend(q_BTHK, k_BSGK, v_BSGK, mask, cache)
    return self.out(o_BTHK, x.shape[-1]), cache

  def project(
    self, x_BTD: Array, encoder_output: Array | CrossAttentionKV | None
  ) -> tuple[Array, Array, Array]:
    """Returns queries (B, T, H, K), and keys and values (B, S, G, K) of x or the encoder output."""
    B, T, D = x_BTD.shape
    G, K, R = self.kv_heads, self.head_dim, self.heads // self.kv_heads

    def linear(name: str, per_group: int) -> Linear:
      # One kernel for all projections of one input. It is sharded over the key/value heads, so that
      # a device has all heads of its groups.
      return Linear(
        shape=(D, G, per_group, K),
        axes=('embed', 'kv_heads', None, 'head_dim'),
        bias=self.bias if self.qkv_bias is None else self.qkv_bias,
        dtype=self.dtype,
        kernel_init=self.kernel_init,
        name=name,
      )

    if encoder_output is None:
      # A split, not indexing, because the gradient of a split is one concatenation.
      q, k, v = jnp.split(linear('qkv', R + 2)(x_BTD), (R, R + 1), axis=3)
      k, v = k.squeeze(3), v.squeeze(3)
    else:
      q = linear('q', R)(x_BTD)
      if isinstance(encoder_output, CrossAttentionKV):
        k, v = encoder_output.read()
      else:
        k, v = (y.squeeze(3) for y in jnp.split(linear('kv', 2)(encoder_output), 2, axis=3))
    q_BTHK = q.reshape(B, T, self.heads, K)
    if self.qk_norm is not None:
      q_BTHK, k = self.qk_norm(name='q_norm')(q_BTHK), self.qk_norm(name='k_norm')(k)
    return with_logical_constraint(q_BTHK, 'batch', 'length', 'heads', 'head_dim'), k, v

  def attend(
    self, q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask: Mask, cache: Any
  ) -> tuple[Array, KVCache | CrossAttentionKV | None]:
    """Returns the outputs of the heads (B, T, H, K), and the cache with the new keys and values."""
    if self.scale is not None:
      # Attention functions divide by sqrt(head_dim).
      q_BTHK = q_BTHK * jnp.asarray(self.scale * math.sqrt(self.head_dim), q_BTHK.dtype)
    if self.rotate is not None:
      q_BTHK = self.rotate(q_BTHK, mask.q_positions)
      k_BSGK = self.rotate(k_BSGK, mask.q_positions)
    if isinstance(cache, KVCache):
      k_BSGK, v_BSGK, cache = cache.update(k_BSGK, v_BSGK, mask.q_segments)
    elif cache is not None:  # of cross-attention, which does not grow
      cache = CrossAttentionKV.of(k_BSGK, v_BSGK)
    if self.window is not None:
      mask = mask.replace(window=self.window)
    v_BSGK = hook_point(self, 'values', v_BSGK)
    o_BTHK = hook_point(self, 'heads', self.attended(q_BTHK, k_BSGK, v_BSGK, mask))
    return with_logical_constraint(o_BTHK, 'batch', 'length', 'heads', 'head_dim'), cache

  def attended(self, q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask: Mask) -> Array:
    """Returns `attention_fn` of queries, keys and values, those of the cache too (B, T, H, K)."""
    softmax, cap = attention.is_softmax(self.attention_fn), attention.cap_of(self.attention_fn)
    if HOOKS.get() is not None:
      # `attention_fn` returns no weights, so they are computed separately for hooks to read. The
      # result of `attention_fn` is replaced only if a hook edits the weights.
      weights_BHTS = attention.weights(q_BTHK, k_BSGK, mask, cap)
      edited_BHTS = hook_point(self, 'weights', weights_BHTS)
      if edited_BHTS is not weights_BHTS:
        if not softmax:
          raise ValueError(
            'edits of attention weights need those of softmax: model.attention_fn is no function '
            'of lm.nn.attention'
          )
        return attention.weighted_values(edited_BHTS, v_BSGK)
    if self.dropout != 0 and self.has_rng('dropout'):
      if not softmax:
        raise UserError(
          f'model.attention_layer: dropout={self.dropout} needs the weights of softmax; set '
          'model.attention_fn to a function of lm.nn.attention'
        )
      weights_BHTS = dropout(self, attention.weights(q_BTHK, k_BSGK, mask, cap), self.dropout)
      return attention.weighted_values(weights_BHTS, v_BSGK)
    return self.attention_fn(q_BTHK, k_BSGK, v_BSGK, mask)

  def out(self, o_BTHK: Array, width: int) -> Array:
    """Returns the outputs of the heads projected to the model's width (B, T, D)."""
    linear = Linear(
      shape=(self.heads, self.head_dim, width),
      axes=('heads', 'head_dim', 'embed'),
      inputs=2,
      bias=self.bias if self.out_bias is None else self.out_bias,
      dtype=self.dtype,
      kernel_init=self.out_init,
      name='out',
    )
    return hook_point(self, 'output', linear(o_BTHK))


@_recomputed
def gelu(x: Array) -> Array:
  """The tanh form of GELU (Hendrycks and Gimpel 2016), as in GPT-2."""
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
    return self.down(self.activation(self.up('up', x_BTD)), x_BTD.shape[-1])

  def up(self, name: str, x_BTD: Array) -> Array:
    """Returns a projection of x to (B, T, F)."""
    shape, axes = (x_BTD.shape[-1], self.d_mlp), ('embed', 'mlp')
    return Linear(shape, axes, 1, self.bias, self.dtype, self.kernel_init, name=name)(x_BTD)

  def down(self, hidden_BTF: Array, width: int) -> Array:
    """Returns the projection of the activations to (B, T, D)."""
    hidden_BTF = hook_point(self, 'hidden', hidden_BTF)
    hidden_BTF = with_logical_constraint(hidden_BTF, 'batch', 'length', 'mlp')
    shape, axes = (self.d_mlp, width), ('mlp', 'embed')
    down = Linear(shape, axes, 1, self.bias, self.dtype, self.out_init, name='down')
    return hook_point(self, 'output', down(hidden_BTF))


class GatedMlp(Mlp):
  """A gated feed-forward layer such as SwiGLU: (activation(x W) * x U) V (Shazeer 2020)."""

  activation: Callable[[Array], Array] = jax.nn.silu

  @nn.compact
  def __call__(self, x_BTD: Array) -> Array:
    # Two kernels, because a single result would be sharded over the axis to split: devices would
    # have to all-gather it.
    gate_BTF = self.activation(self.up('gate', x_BTD))
    return self.down(gate_BTF * self.up('up', x_BTD), x_BTD.shape[-1])


class FusedGatedMlp(Mlp):
  """`GatedMlp` with one kernel for `gate` and `up`, (D, 2, F), as ModernBERT stores them."""

  activation: Callable[[Array], Array] = jax.nn.gelu

  @nn.compact
  def __call__(self, x_BTD: Array) -> Array:
    shape, axes = (x_BTD.shape[-1], 2, self.d_mlp), ('embed', None, 'mlp')
    both = Linear(shape, axes, 1, self.bias, self.dtype, self.kernel_init, name='up')(x_BTD)
    return self.down(self.activation(both[..., 0, :]) * both[..., 1, :], x_BTD.shape[-1])


class ClassifierHead(nn.Module):
  """A linear layer to C classes, as the output head of a model."""

  num_classes: int
  d_model: int
  init_std: float

  @nn.compact
  def __call__(self) -> OutputHead:
    init = with_logical_partitioning(nn.initializers.normal(self.init_std), None, 'embed')
    kernel_CD = self.param('kernel', init, (self.num_classes, self.d_model))
    zeros = with_logical_partitioning(nn.initializers.zeros, None)
    bias_C = self.param('bias', zeros, (self.num_classes,))
    return OutputHead(EmbeddingTable(kernel_CD), bias_C, self.num_classes, axes=(None, 'embed'))
