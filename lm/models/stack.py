"""The one Transformer stack: blocks that repeat in periods, positions before and a norm after.

Layers repeat in periods: `attention` is one layer function or a tuple of them, and the depth is a
multiple of its length (Gemma 3: five with a window and one without). The periods are stacked on
axis 0 of the parameters and scanned. With caches they are laid out in a row, for a loop would copy
out and back, at every token, what each period keeps.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import spec
from lm.errors import UserError
from lm.mesh import constrain
from lm.nn.attention import dot_product
from lm.nn.layers import Attention, Mlp, dropout
from lm.nn.norm import LayerNorm
from lm.nn.position import Position, learned
from lm.nn.residual import pre
from lm.nn.tap import tap
from lm.types import Array, Mask


class Block(nn.Module):
  """One layer: its sublayers put together by `residual`.

  They are attention, attention to a memory where `cross_attention` is given, and feed-forward.
  """

  attention: Callable[..., nn.Module]
  cross_attention: Callable[..., nn.Module] | None
  mlp: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  residual: Callable[..., Array]
  dropout: float

  @nn.compact
  def __call__(
    self, x: Array, mask: Mask, memory: Array | None, memory_mask: Mask | None, cache: Any
  ) -> tuple[Array, Any]:
    caches: dict[str, Any] = {}

    def of(name: str) -> Any:
      # Of a memory there is nothing until it was read.
      return None if cache is None else cache.get(name, ())

    def attend(h: Array) -> Array:
      layer = self.attention(name='attention')
      given = of('attention')
      y, caches['attention'] = _with_cache(layer(h, None, mask, given), given, 'model.attention')
      return dropout(self, y, self.dropout)

    def attend_to_memory(h: Array) -> Array:
      assert self.cross_attention is not None
      layer = self.cross_attention(name='cross_attention')
      kept = of('cross_attention')
      found = layer(h, kept if memory is None else memory, memory_mask, kept)
      y, caches['cross_attention'] = _with_cache(found, kept, 'model.cross_attention')
      return dropout(self, y, self.dropout)

    def feed(h: Array) -> Array:
      return dropout(self, self.mlp(name='mlp')(h), self.dropout)

    crossing = () if self.cross_attention is None else (('cross_attention', attend_to_memory),)
    sublayers = (('attention', attend), *crossing, ('mlp', feed))
    x = self.residual(x, sublayers, lambda name: self.norm(name=name))
    x = constrain(x, 'batch', 'time', 'width')
    return tap(self, 'residual', x), (None if cache is None else caches)


class Period(nn.Module):
  """The layers that repeat, each with its own attention; `caches` are one a layer, or None."""

  blocks: tuple[Callable[..., nn.Module], ...]

  @nn.compact
  def __call__(
    self, x: Array, mask: Mask, memory: Array | None, memory_mask: Mask | None, caches: Any
  ) -> tuple[Array, Any]:
    new_caches = {}
    for i, block in enumerate(self.blocks):
      name = f'layer_{i}'
      cache = None if caches is None else caches[name]
      x, new_caches[name] = block(name=name)(x, mask, memory, memory_mask, cache)
    return x, (None if caches is None else new_caches)


class Stack(nn.Module):
  """Embeddings (B, T, D) to hidden states (B, T, D), with or without a memory to attend to.

  Parameters of `layers` have the periods on axis 0. `unroll` periods are laid out in a row in each
  turn of the loop, which changes the program and not the parameters. `remat` is a policy of
  `jax.checkpoint_policies`, or None to keep all activations. `caches` are one a period.
  """

  context: int
  d_model: int
  depth: int
  heads: int
  kv_heads: int
  head_dim: int
  d_mlp: int
  attention: Callable[..., nn.Module] | tuple[Callable[..., nn.Module], ...] = Attention
  cross_attention: Callable[..., nn.Module] | None = None
  attend: Callable[..., Array] = dot_product
  position: Callable[[], Position] = learned
  norm: Callable[..., nn.Module] = LayerNorm
  mlp: Callable[..., nn.Module] = Mlp
  residual: Callable[..., Array] = pre
  final_norm: bool = True
  bias: bool = True
  dropout: float = 0.0
  init_std: float = 0.02
  unroll: int = 1
  remat: Callable | None = None
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self,
    x: Array,
    mask: Mask,
    memory: Array | None = None,
    memory_mask: Mask | None = None,
    caches: Any = None,
  ) -> tuple[Array, Any]:
    self._check()
    scheme = self.position()
    if scheme.embed is not None:
      x += scheme.embed(self, mask.q_positions, self.d_model, self.context)
    if scheme.bias is not None:
      mask = mask.replace(bias=scheme.bias(self, self.heads, mask.causal))
    x = tap(self, 'embeddings', dropout(self, x, self.dropout).astype(self.dtype))
    x = constrain(x, 'batch', 'time', 'width')
    if caches is None:
      x, _ = self._scanned(scheme)(x, mask, memory, memory_mask, None)
    else:
      x, caches = self._in_a_row(scheme, x, mask, memory, memory_mask, caches)
    if self.final_norm:
      x = self.norm(bias=self.bias, name='final_norm')(x)
    return tap(self, 'hidden', x), caches

  def period(self) -> tuple[Callable[..., nn.Module], ...]:
    """Returns the attention layers that repeat."""
    return self.attention if isinstance(self.attention, tuple) else (self.attention,)

  def _in_a_row(
    self, scheme: Position, x: Array, mask: Mask, memory: Any, memory_mask: Any, caches: Any
  ) -> tuple[Array, tuple[Any, ...]]:
    period = Period(blocks=self._blocks(scheme), parent=None)
    new_caches = []
    for params, cache in zip(_apart(self.variables['params']['layers']), caches, strict=True):
      x, cache = period.apply({'params': params}, x, mask, memory, memory_mask, cache)
      new_caches.append(cache)
    return x, tuple(new_caches)

  def _scanned(self, scheme: Position) -> nn.Module:
    period = Period
    if self.remat is not None:
      period = nn.remat(Period, policy=self.remat, prevent_cse=False)
    scanned = nn.scan(
      period,
      # All collections, so that what a layer sows comes out, where it is refused (lm.run.build).
      variable_axes={'params': 0, 'taps': 0, nn.DenyList(('params', 'taps')): 0},
      split_rngs={'params': True, 'dropout': True},
      in_axes=nn.broadcast,
      length=self.depth // len(self.period()),
      unroll=self.unroll,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )
    return scanned(blocks=self._blocks(scheme), name='layers')

  def _blocks(self, scheme: Position) -> tuple[Callable[..., nn.Module], ...]:
    return tuple(self._block(attention, scheme) for attention in self.period())

  def _block(self, attention_fn, scheme: Position) -> Callable[..., nn.Module]:
    sublayers = 2 if self.cross_attention is None else 3
    kernel_init = nn.initializers.normal(self.init_std)
    # Each sublayer adds to the residual stream (Radford et al. 2019, 2.3).
    out_init = nn.initializers.normal(self.init_std / math.sqrt(sublayers * self.depth))
    dtype = jnp.dtype(self.dtype)
    common = {'bias': self.bias, 'dtype': dtype, 'kernel_init': kernel_init, 'out_init': out_init}
    heads = {
      'heads': self.heads,
      'kv_heads': self.kv_heads,
      'head_dim': self.head_dim,
      'attend': self.attend,
      **common,
    }
    crossing = self.cross_attention
    return functools.partial(
      Block,
      # Bound with a check: a module of another kind does not take what these are given.
      attention=spec.bind(attention_fn, {'rotate': scheme.rotate, **heads}, 'model.attention'),
      # Positions of the memory and of x are not of one line: nothing rotates there.
      cross_attention=crossing and spec.bind(crossing, heads, 'model.cross_attention'),
      mlp=spec.bind(self.mlp, {'d_mlp': self.d_mlp, **common}, 'model.mlp'),
      norm=spec.bind(self.norm, {'bias': self.bias}, 'model.norm'),
      residual=self.residual,
      dropout=self.dropout,
    )

  def _check(self) -> None:
    period = len(self.period())
    if self.depth % period:
      raise UserError(
        f'model.depth={self.depth} is not a multiple of the {period} layers that repeat'
      )
    if self.heads % self.kv_heads:
      raise UserError(f'model.heads={self.heads} is not a multiple of kv_heads={self.kv_heads}')
    if self.depth // period % self.unroll:
      raise UserError(f'model.unroll={self.unroll} does not divide {self.depth // period} periods')


def _with_cache(found: Any, given: Any, key: str) -> tuple[Array, Any]:
  """Returns what an attention layer returns.

  Raises:
    UserError: it is no pair, or lacks the cache that the layer was given.
  """
  if not isinstance(found, tuple) or len(found) != 2:
    raise UserError(f'{key}: the layer returns {type(found).__name__}, not a pair (y, cache)')
  if given is not None and found[1] is None:
    raise UserError(
      f'{key}: the layer was given a cache and returns None in its place; it returns (y, cache) '
      'with the cache that Attention.mix gives back'
    )
  return found


def _apart(stacked: Any) -> list[Any]:
  """Returns the parameters of each period."""
  periods = len(jax.tree.leaves(stacked)[0])
  # A slice whose place is known is copied before it is read, by XLA's CPU compiler: at GPT-2's size
  # that is a third of a step. From a place it does not know it reads where the parameters lie.
  places = jax.lax.optimization_barrier(jnp.arange(periods))
  take = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)
  return [jax.tree.map(lambda x, i=i: take(x, places[i]), stacked) for i in range(periods)]
