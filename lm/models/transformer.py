"""The one Transformer stack, and the decoder-only language model made of it.

GPT-2 is positions `learned`, norm `LayerNorm`, feed-forward `Mlp`, tied embeddings and biases;
Llama is `rope`, `RMSNorm`, `GatedMlp`, fewer key/value heads, untied, no biases. Layers repeat in
periods: `attention` is one layer function or a tuple of them, and the depth is a multiple of its
length (Gemma 3: five with a window and one without). The periods are stacked on axis 0 of the
parameters and scanned.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.errors import UserError
from lm.mesh import constrain, named
from lm.nn.attention import dot_product
from lm.nn.layers import Attention, Mlp, dropout
from lm.nn.norm import LayerNorm
from lm.nn.position import Position, learned
from lm.nn.residual import pre
from lm.nn.tap import tap
from lm.types import Array, Batch, Mask, Output, Params, Terms, Unembed


def self_mask(batch: Batch, bias: Callable | None, cache: Any) -> tuple[Mask, dict[str, Array]]:
  """Returns the causal mask of a batch, and the cache's slots with the batch's tokens entered.

  Without a cache, tokens see the earlier ones of their segment. With one, they see every filled
  slot of the row up to their position; slots of segment 0 (never filled, or padding) stay unseen.
  """
  positions, segments = batch['positions'], batch['segments']
  if cache is None:
    return Mask(positions, positions, segments, segments, bias=bias, ordered=True), {}
  cursor = cache['cursor']
  enter = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=cursor, axis=1)
  slots = {
    'positions': enter(cache['positions'], positions),
    'segments': enter(cache['segments'], segments),
    'cursor': cursor + positions.shape[1],
  }
  return Mask(positions, slots['positions'], segments, slots['segments'], bias=bias), slots


class Block(nn.Module):
  """One layer: attention and feed-forward sublayers put together by `residual`."""

  attention: Callable[..., nn.Module]
  mlp: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  residual: Callable[..., Array]
  dropout: float

  @nn.compact
  def __call__(self, x: Array, mask: Mask, cache: Any) -> tuple[Array, Any]:
    new_cache = cache

    def attend(h: Array) -> Array:
      nonlocal new_cache
      y, new_cache = self.attention(name='attention')(h, None, mask, cache)
      return dropout(self, y, self.dropout)

    def feed(h: Array) -> Array:
      return dropout(self, self.mlp(name='mlp')(h), self.dropout)

    sublayers = (('attention', attend), ('mlp', feed))
    x = self.residual(x, sublayers, lambda name: self.norm(name=name))
    x = constrain(x, 'batch', 'time', 'width')
    return tap(self, 'residual', x), new_cache


class Period(nn.Module):
  """The layers that repeat, each with its own attention."""

  blocks: tuple[Callable[..., nn.Module], ...]

  @nn.compact
  def __call__(self, x: Array, mask: Mask, caches: Any) -> tuple[Array, Any]:
    new_caches = {}
    for i, block in enumerate(self.blocks):
      name = f'layer_{i}'
      x, new_caches[name] = block(name=name)(x, mask, None if caches is None else caches[name])
    return x, (None if caches is None else new_caches)


def stack(blocks, repeats: int, unroll: int, remat: Callable | None, name: str) -> nn.Module:
  """Returns a module `(x, mask, caches) -> (x, caches)` of `repeats` periods of `blocks`.

  Parameters and caches have the periods on axis 0. `unroll` periods are laid out in a row in each
  turn of the loop, which changes the program and not the parameters. `remat` is a policy of
  `jax.checkpoint_policies`, or None to keep all activations.
  """
  period = Period if remat is None else nn.remat(Period, policy=remat, prevent_cse=False)
  scanned = nn.scan(
    period,
    variable_axes={'params': 0, 'taps': 0},
    split_rngs={'params': True, 'dropout': True},
    in_axes=(nn.broadcast, 0),
    length=repeats,
    unroll=unroll,
    metadata_params={nn.PARTITION_NAME: 'layers'},
  )
  return scanned(blocks=tuple(blocks), name=name)


class Decoder(nn.Module):
  """A decoder-only language model: `(batch, cache) -> Output`."""

  vocab_size: int
  context: int  # longest row, and the number of learned positions
  d_model: int
  depth: int
  heads: int
  kv_heads: int
  head_dim: int
  d_mlp: int
  attention: Callable[..., nn.Module] | tuple[Callable[..., nn.Module], ...] = Attention
  attend: Callable[..., Array] = dot_product
  position: Callable[[], Position] = learned
  norm: Callable[..., nn.Module] = LayerNorm
  mlp: Callable[..., nn.Module] = Mlp
  residual: Callable[..., Array] = pre
  final_norm: bool = True  # pre-norm stacks need one; post-norm stacks end in one already
  bias: bool = True
  tied: bool = True
  dropout: float = 0.0
  init_std: float = 0.02
  logit_soft_cap: float | None = None
  vocab_multiple: int = 1  # rows of the table are rounded up to this
  unroll: int = 1
  remat: Callable | None = None
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, batch: Batch, cache: Any = None) -> Output:
    self._check()
    scheme = self.position()
    dtype = jnp.dtype(self.dtype)
    rows = -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple
    init = named(nn.initializers.normal(self.init_std), 'vocab', 'embed')
    table_VD = self.param('embedding', init, (rows, self.d_model))
    positions_BT = batch['positions']
    x = jnp.take(table_VD, batch['inputs'], axis=0)
    if scheme.embed is not None:
      x += scheme.embed(self, positions_BT, self.d_model, self.context)
    x = tap(self, 'embeddings', dropout(self, x, self.dropout).astype(dtype))
    x = constrain(x, 'batch', 'time', 'width')

    bias = scheme.bias and scheme.bias(self.heads)
    mask, slots = self_mask(batch, bias, cache)
    blocks = [self._block(a, scheme, dtype) for a in self._period()]
    periods = stack(blocks, self.depth // len(blocks), self.unroll, self.remat, 'layers')
    x, caches = periods(x, mask, cache and cache['layers'])
    if self.final_norm:
      x = self.norm(bias=self.bias, name='final_norm')(x)
    x = tap(self, 'hidden', x)

    kernel_VD = table_VD if self.tied else self.param('unembedding', init, table_VD.shape)
    unembed = Unembed(kernel_VD, vocab_size=self.vocab_size, soft_cap=self.logit_soft_cap)
    aux: Terms = {}
    return Output(x, unembed, aux, cache and {**slots, 'layers': caches})

  def init_cache(self, batch_size: int, length: int) -> dict[str, Any]:
    """Returns an empty cache of `length` slots a row, for `batch_size` rows."""
    period = len(self._period())
    repeats = self.depth // period
    shape = (repeats, batch_size, length, self.kv_heads, self.head_dim)
    zeros = functools.partial(jnp.zeros, shape, self.dtype)
    return {
      'layers': {
        f'layer_{i}': {'k': zeros(), 'v': zeros(), 'cursor': jnp.zeros(repeats, jnp.int32)}
        for i in range(period)
      },
      'positions': jnp.zeros((batch_size, length), jnp.int32),
      'segments': jnp.zeros((batch_size, length), jnp.int32),
      'cursor': jnp.zeros((), jnp.int32),
    }

  def flops_per_token(self, params: Params, context: int) -> float:
    """Returns the FLOPs of training on a token of a full row: 6 N + 12 N_layers H K T.

    Chowdhery et al. 2022 (PaLM), appendix B; N counts what is multiplied, so tables that are only
    looked up are left out. Attention counts whole, whether or not the upper triangle is skipped.
    """
    looked_up = [params.get('position')] + ([] if self.tied else [params['embedding']])
    multiplied = sum(x.size for x in jax.tree.leaves(params))
    multiplied -= sum(x.size for x in looked_up if x is not None)
    return 6 * multiplied + 12 * self.depth * self.heads * self.head_dim * context

  def _period(self) -> tuple[Callable[..., nn.Module], ...]:
    return self.attention if isinstance(self.attention, tuple) else (self.attention,)

  def _check(self) -> None:
    period = len(self._period())
    if self.depth % period:
      raise UserError(
        f'model.depth={self.depth} is not a multiple of the {period} layers that repeat'
      )
    if self.heads % self.kv_heads:
      raise UserError(f'model.heads={self.heads} is not a multiple of kv_heads={self.kv_heads}')
    if self.depth // period % self.unroll:
      raise UserError(f'model.unroll={self.unroll} does not divide {self.depth // period} periods')

  def _block(self, attention_fn, scheme: Position, dtype) -> Callable[..., nn.Module]:
    kernel_init = nn.initializers.normal(self.init_std)
    # Each layer adds two sublayers to the residual stream (Radford et al. 2019, 2.3).
    out_init = nn.initializers.normal(self.init_std / math.sqrt(2 * self.depth))
    common = {'bias': self.bias, 'dtype': dtype, 'kernel_init': kernel_init, 'out_init': out_init}
    return functools.partial(
      Block,
      attention=functools.partial(
        attention_fn,
        heads=self.heads,
        kv_heads=self.kv_heads,
        head_dim=self.head_dim,
        attend=self.attend,
        rotate=scheme.rotate,
        **common,
      ),
      mlp=functools.partial(self.mlp, d_mlp=self.d_mlp, **common),
      norm=functools.partial(self.norm, bias=self.bias),
      residual=self.residual,
      dropout=self.dropout,
    )
