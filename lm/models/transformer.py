"""The Transformer: a stack of blocks, and the decoder, encoder and encoder-decoder built from it.

GPT-2 is a `Decoder` with `learned` positions, `LayerNorm`, `Mlp`, tied embeddings and biases. Llama
has `rope`, `RMSNorm`, `GatedMlp`, fewer key/value heads, and neither tied embeddings nor biases.
BERT is an `Encoder` with `post_norm`. The first Transformer (Vaswani et al. 2017) is an
`EncoderDecoder` with `sinusoidal` and `post_norm`, and T5 is one with `relative`.

Layers repeat in groups: `attention_layer`, `position` and `block_layout` are a function or a tuple,
and `depth` is a multiple of its length (Gemma 3: five layers with a window and one without).
Parameters of the groups are stacked on axis 0 and scanned. With a KV cache the groups are unrolled
instead, because a loop would copy the cache of every group in and out at every token.

An attention layer or MLP with a field `layer` receives the index of its layer, from 0 in each
stack: an int32 scalar, which is traced in the scan.
"""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.errors import UserError
from lm.nn import embedding
from lm.nn.attention import dot_product
from lm.nn.embedding import InputLayer
from lm.nn.hooks import HOOKS, within
from lm.nn.kv_cache import KVCache, cached_mask, reorder_cache, unflatten_beams
from lm.nn.layers import Attention, ClassifierHead, LayerNorm, Mlp, dropout, hook_point, pre_norm
from lm.nn.position import Position, learned
from lm.parallel.mesh import with_logical_constraint, with_logical_partitioning
from lm.types import (
  HOOKS_COLLECTION,
  Array,
  Batch,
  EmbeddingTable,
  Mask,
  Output,
  OutputHead,
  Params,
)


class Block(nn.Module):
  """One layer: attention, cross-attention where given, and feed-forward, in a block layout."""

  attention_layer: Callable[..., nn.Module]
  cross_attention: Callable[..., nn.Module] | None
  mlp: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  block_layout: Callable[..., Array]
  dropout: float

  @nn.compact
  def __call__(
    self,
    x: Array,
    mask: Mask,
    encoder_output: Array | None,
    encoder_mask: Mask | None,
    cache: Any,
    index: Any,
  ) -> tuple[Array, Any]:
    caches: dict[str, Any] = {}

    def indexed(layer: Callable[..., nn.Module], name: str) -> nn.Module:
      return layer(name=name, layer=index) if _asks_index(layer) else layer(name=name)

    def cache_of(name: str) -> Any:
      # An empty tuple tells cross-attention to return a cache, although it has none before the
      # source is encoded.
      return None if cache is None else cache.get(name, ())

    def attend(h: Array) -> Array:
      layer, given = indexed(self.attention_layer, 'attention'), cache_of('attention')
      y, caches['attention'] = _checked(layer(h, None, mask, given), given, 'attention_layer')
      return dropout(self, y, self.dropout)

    def attend_across(h: Array) -> Array:
      assert self.cross_attention is not None
      layer, given = indexed(self.cross_attention, name := 'cross_attention'), cache_of(name)
      result = layer(h, given if encoder_output is None else encoder_output, encoder_mask, given)
      y, caches['cross_attention'] = _checked(result, given, 'cross_attention')
      return dropout(self, y, self.dropout)

    def feed_forward(h: Array) -> Array:
      return dropout(self, indexed(self.mlp, 'mlp')(h), self.dropout)

    across = () if self.cross_attention is None else (('cross_attention', attend_across),)
    sublayers = (('attention', attend), *across, ('mlp', feed_forward))
    x = self.block_layout(x, sublayers, lambda name: self.norm(name=name))
    x = with_logical_constraint(x, 'batch', 'length', 'activation_embed')
    return hook_point(self, 'residual', x), (None if cache is None else caches)


def _checked(result: Any, given: Any, field: str) -> tuple[Array, Any]:
  """Returns the result of an attention layer.

  Raises:
    UserError: the result is not a pair, or lacks a cache although the layer was given one.
  """
  if not isinstance(result, tuple) or len(result) != 2:
    raise UserError(f'{field}: the layer returns {type(result).__name__}, not a pair (y, cache)')
  if given is not None and result[1] is None:
    raise UserError(
      f'{field}: the layer was given a cache and returns None in its place; it must return '
      '(y, cache) with the cache from Attention.attend'
    )
  return result


class LayerGroup(nn.Module):
  """The layers that repeat, each with its own attention; `caches` are one per layer, or None.

  `first` is the index of the first of these layers, or None where nothing reads it.
  """

  blocks: tuple[Callable[..., nn.Module], ...]

  @nn.compact
  def __call__(
    self, x: Array, mask: Mask, encoder_output: Any, encoder_mask: Any, caches: Any, first: Any
  ) -> tuple[Array, Any]:
    new_caches = {}
    for i, block in enumerate(self.blocks):
      name, index = f'layer_{i}', None if first is None else first + i
      cache = None if caches is None else caches[name]
      with _hooks(layer=index):
        x, new_caches[name] = block(name=name)(x, mask, encoder_output, encoder_mask, cache, index)
    return x, (None if caches is None else new_caches)


class Scope(nn.Module):
  """A module that runs a function of the enclosing model in its own subtree of parameters."""

  run: Callable[..., Any]

  @nn.compact
  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    return self.run(self, *args, **kwargs)


class Transformer(nn.Module):
  """The fields and the stack of blocks that all architectures share."""

  vocab_size: int
  context: int  # longest row, and the count of learned positions
  d_model: int
  depth: int
  heads: int
  kv_heads: int
  head_dim: int
  d_mlp: int
  attention_layer: Callable[..., nn.Module] | tuple[Callable[..., nn.Module], ...] = Attention
  attention_fn: Callable[..., Array] = dot_product
  input_layer: Callable[[], InputLayer] = embedding.plain
  position: Callable[[], Position] | tuple[Callable[[], Position], ...] = learned
  norm: Callable[..., nn.Module] = LayerNorm
  mlp: Callable[..., nn.Module] = Mlp
  block_layout: Callable[..., Array] | tuple[Callable[..., Array], ...] = pre_norm
  final_norm: bool = True  # pre-norm stacks need one; post-norm stacks end in a norm already
  bias: bool = True
  tie_embeddings: bool = True  # the output head is the embedding
  dropout: float = 0.0
  init_std: float = 0.02
  embed_scale: float = 1.0  # multiplies embeddings; sqrt(d_model) in Vaswani et al. 2017, 3.4
  logit_soft_cap: float | None = None
  # (model, hidden_BTD, table) -> (hidden, OutputHead); None for logits of the vocabulary, or for a
  # linear layer if an encoder has classes (lm/nn/heads.py has others)
  head: Callable[..., tuple[Array, OutputHead]] | None = None
  vocab_multiple: int = 1  # the embedding table has a multiple of this number of rows
  scan_unroll: int = 1  # groups per iteration of the scan, at most all; no parameter depends on it
  remat_policy: Callable | None = None  # of jax.checkpoint_policies; None keeps all activations
  dtype: str = 'float32'

  continues_prompts = True  # whether the model can continue a text without a source
  reads_source = False  # whether an encoder reads a source
  reads_on = False  # whether the model can read rows longer than `context`

  def __post_init__(self) -> None:
    """Checks the sizes.

    Raises:
      UserError: two sizes do not fit together, or a size that must be even is odd.
    """
    super().__post_init__()
    group, positions = len(self._attention_layers()), _as_tuple(self.position)
    for name in ('attention_layer', 'position', 'block_layout'):
      count = len(_as_tuple(getattr(self, name)))
      if count not in (1, group):
        raise UserError(
          f'model.{name} is a tuple of {count}, and another of the model has {group}; give one for '
          'all layers, or one for each of the pattern'
        )
    if self.heads % self.kv_heads:
      raise UserError(f'model.heads={self.heads} is not a multiple of kv_heads={self.kv_heads}')
    for name in ('depth', 'encoder_depth'):
      depth = getattr(self, name, None)
      if depth and depth % group:
        raise UserError(f'model.{name}={depth} is not a multiple of the {group} layers that repeat')
      if depth and depth // group % self._unroll(depth // group):
        raise UserError(
          f'model.scan_unroll={self.scan_unroll} does not divide {depth // group} groups'
        )
    for scheme in positions:
      even = scheme().even
      if even and getattr(self, even) % 2:
        size, name = getattr(self, even), _name(scheme)
        raise UserError(f'model.{even}={size} is odd: {name} needs an even size')

  @nn.nowrap
  def stack(
    self, name: str, depth: int, cross_attention: Callable[..., nn.Module] | None = None
  ) -> 'Scope':
    """Returns `(x, batch, mask, encoder_output, encoder_mask, caches) -> (hidden states, caches)`.

    There, x has the vectors of the tokens, and `batch` is what the input layer may read.

    Args:
      name: name of the subtree of parameters.
      depth: number of layers.
      cross_attention: layer that attends to the encoder output (B, S, D), or None.
    """
    positions = tuple(scheme() for scheme in _as_tuple(self.position))
    blocks, position = self._blocks(positions, depth, cross_attention), positions[0]
    input_layer = self.input_layer()

    def run(
      scope: nn.Module,
      x: Array,
      batch: Batch,
      mask: Mask,
      encoder_output: Array | None = None,
      encoder_mask: Mask | None = None,
      caches: Any = None,
    ) -> tuple[Array, Any]:
      def add_positions(x: Array) -> Array:
        if position.embed is None:
          return x
        return x + position.embed(scope, mask.q_positions, x.shape[-1], self.context)

      x = input_layer.apply(scope, x, batch, add_positions, self.d_model)
      if position.bias is not None:
        mask = mask.replace(bias=position.bias(scope, self.heads, mask.causal))
      x = hook_point(scope, 'embeddings', dropout(scope, x, self.dropout).astype(self.dtype))
      x = with_logical_constraint(x, 'batch', 'length', 'activation_embed')
      args = (mask, encoder_output, encoder_mask)
      if caches is None:
        # The scan receives indices only if something reads them.
        asked = HOOKS.get() is not None or any(
          _asks_index(f)
          for block in blocks
          for f in block.args[:3]  # type: ignore[attr-defined]
        )
        first_N = jnp.arange(0, depth, len(blocks)) if asked else None
        x, _ = self._scanned(blocks, depth)(x, *args, None, first_N)
      else:
        group, new_caches = LayerGroup(blocks, parent=None), []
        groups = _unstack(scope.variables['params']['layers'])
        with _hooks(path=(*scope.path, 'layers')):
          for i, (params, cache) in enumerate(zip(groups, caches, strict=True)):
            x, cache = group.apply({'params': params}, x, *args, cache, i * len(blocks))
            new_caches.append(cache)
        caches = tuple(new_caches)
      x = hook_point(scope, 'stack_output', x)
      if self.final_norm:
        x = self.norm(bias=self.bias, name='final_norm')(x)
      return hook_point(scope, 'hidden', x), caches

    return Scope(run, name=name)

  @nn.nowrap
  def _scanned(self, blocks: tuple[Callable[..., nn.Module], ...], depth: int) -> nn.Module:
    group = LayerGroup
    if self.remat_policy is not None:
      group = nn.remat(LayerGroup, policy=self.remat_policy, prevent_cse=False)
    scanned = nn.scan(
      group,
      # All collections are scanned, so that lm.types.apply_of sees the variables that a layer has
      # besides parameters, and refuses them.
      variable_axes={
        'params': 0,
        HOOKS_COLLECTION: 0,
        nn.DenyList(('params', HOOKS_COLLECTION)): 0,
      },
      split_rngs={'params': True, 'dropout': True},
      in_axes=(*[nn.broadcast] * 4, 0),  # the last argument is the index of the group's first layer
      length=depth // len(blocks),
      unroll=self._unroll(depth // len(blocks)),
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )
    return scanned(blocks, name='layers')

  @nn.nowrap
  def _unroll(self, groups: int) -> int:
    return min(self.scan_unroll, groups)

  @nn.nowrap
  def _blocks(
    self,
    positions: tuple[Position, ...],
    depth: int,
    cross_attention: Callable[..., nn.Module] | None,
  ) -> tuple[Callable[..., nn.Module], ...]:
    """Returns the blocks of a layer group, each without its name."""
    sublayers = depth * (2 if cross_attention is None else 3)
    common = {
      'bias': self.bias,
      'dtype': jnp.dtype(self.dtype),
      'kernel_init': nn.initializers.normal(self.init_std),
      # Scaled down, because each sublayer adds to the residual stream (Radford et al. 2019, 2.3).
      'out_init': nn.initializers.normal(self.init_std / math.sqrt(sublayers)),
    }
    attending = {
      'heads': self.heads,
      'kv_heads': self.kv_heads,
      'head_dim': self.head_dim,
      'attention_fn': self.attention_fn,
      **common,
    }
    # Positions of the source and of x are not comparable: cross-attention rotates nothing.
    across = cross_attention and _partial('cross_attention', cross_attention, attending)
    mlp = _partial('mlp', self.mlp, {'d_mlp': self.d_mlp, **common})
    norm = _partial('norm', self.norm, {'bias': self.bias})
    layers, layouts = self._attention_layers(), _as_tuple(self.block_layout)
    rotations = [position.rotate for position in positions] * (len(layers) // len(positions))
    layouts *= len(layers) // len(layouts)
    return tuple(
      functools.partial(
        Block,
        _partial('attention_layer', layer, {'rotate': rotate, **attending}),
        across,
        mlp,
        norm,
        layout,
        self.dropout,
      )
      for layer, rotate, layout in zip(layers, rotations, layouts, strict=True)
    )

  @nn.nowrap
  def _attention_layers(self) -> tuple[Callable[..., nn.Module], ...]:
    """Returns the attention layers of the pattern, which is as long as the longest tuple."""
    layers, *others = map(_as_tuple, (self.attention_layer, self.position, self.block_layout))
    return layers * max(map(len, others)) if len(layers) == 1 else layers

  def table(self, name: str, batch: Array | None = None) -> EmbeddingTable:
    """Returns an embedding table of the vocabulary, whose vectors (V, D) are a parameter.

    Args:
      name: name of the parameter.
      batch: tokens (B, T) of a training step. A tied table is then all-gathered once on a mesh, for
        the lookup and the logits of the batch; None gathers nothing.
    """
    size = -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple
    init = nn.initializers.normal(self.init_std)
    width = self.input_layer().width or self.d_model
    vectors_VD = self.param(name, with_logical_partitioning(init, *embedding.AXES), (size, width))
    if batch is None or not self.tie_embeddings:
      return EmbeddingTable(vectors_VD)
    return embedding.gather_for_tied(vectors_VD, batch, self.dtype)

  def embed(self, table: EmbeddingTable, tokens_BT: Array) -> Array:
    """Returns the embeddings of tokens (B, T, D)."""
    x_BTD = embedding.embedding_lookup(table, tokens_BT)
    if self.embed_scale == 1:
      return x_BTD
    # In the type of the model, as Gemma was trained: sqrt(640) is 25.25 in bfloat16.
    return x_BTD * float(jnp.dtype(self.dtype).type(self.embed_scale))

  def with_head(self, x: Array, table: EmbeddingTable) -> tuple[Array, OutputHead]:
    """Returns the hidden states of the output, and the map from them to logits."""
    if self.head is not None:
      return self.head(self, x, table)
    return x, self.output_head(table)

  def output_head(self, table: EmbeddingTable) -> OutputHead:
    """Returns the map from hidden states to logits over the vocabulary."""
    table = table if self.tie_embeddings else self.table('unembedding')
    return OutputHead(table, vocab_size=self.vocab_size, soft_cap=self.logit_soft_cap)

  @nn.nowrap
  def _flops(self, params: Params, context: int, stacks: tuple[str, ...], layers: int) -> int:
    """Returns 6 N + 12 `layers` H K T, where N counts the parameters of matmuls and T is `context`.

    N excludes tables for lookup alone: learned positions of `stacks`, the source embedding, and the
    embedding unless it is tied.
    """
    looked_up = [params[name].get(table) for name in stacks for table in ('position', 'types')]
    looked_up += [params.get('source_embedding')]
    looked_up += [] if self.tie_embeddings else [params['embedding']]
    multiplied = sum(x.size for x in jax.tree.leaves(params))
    multiplied -= sum(x.size for x in looked_up if x is not None)
    return 6 * multiplied + 12 * layers * self.heads * self.head_dim * context

  def init_cache(self, batch_size: int, length: int) -> dict[str, Any]:
    """Returns an empty KV cache of `batch_size` rows, with buffers of `length` tokens a row."""
    group = len(self._attention_layers())
    shape = (batch_size, self.kv_heads, length, self.head_dim)

    def layer() -> dict[str, Any]:
      buffers = jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype)
      return {'attention': KVCache(*buffers, jnp.zeros(batch_size, jnp.int32))}

    layers = [{f'layer_{i}': layer() for i in range(group)} for _ in range(self.depth // group)]
    return {
      'layers': tuple(layers),
      'positions': jnp.zeros((batch_size, length), jnp.int32),
      'segments': jnp.zeros((batch_size, length), jnp.int32),
      'lengths': jnp.zeros(batch_size, jnp.int32),
    }

  def reorder_cache(self, cache: Mapping[str, Any], parents_BM: Array) -> dict[str, Any]:
    """Returns a cache of M beams a row; see lm/nn/kv_cache.py."""
    return reorder_cache(cache, parents_BM)


class Decoder(Transformer):
  """A decoder-only language model: `(batch, cache) -> Output`.

  Tokens attend to earlier ones. If the batch has `prefix` (B, T), tokens where it is 1 attend to
  each other in both directions (prefix language model, Raffel et al. 2020, 3.2.1).
  """

  @nn.compact
  def __call__(self, batch: Batch, cache: Any = None) -> Output:
    table = self.table('embedding', batch['inputs'] if cache is None else None)
    rows = batch['inputs'].shape
    batch, mask, cached = _decoder_mask(batch, cache)
    x = self.embed(table, batch['inputs'])
    x, caches = self.stack('decoder', self.depth)(x, batch, mask, caches=cache and cache['layers'])
    new_cache = cache and {**cached, 'layers': caches}
    return Output(*self.with_head(x.reshape(*rows, -1), table), {}, new_cache)

  def flops_per_token(self, params: Params, context: int) -> float:
    """Returns the FLOPs of training on a token of a full row: 6 N + 12 N_layers H K T.

    Source: Chowdhery et al. 2022 (PaLM), appendix B. N counts the parameters of matmuls, without
    tables that serve for lookup alone. Attention counts in full, whether or not the kernel skips
    the upper triangle.
    """
    return self._flops(params, context, ('decoder',), self.depth)

  def separate_layers(self, params: Params) -> Params:
    """Returns the parameters with arrays for each group of layers, to be used with a KV cache.

    A program that receives stacked layers copies each of them before its loop over tokens.
    """
    decoder = dict(params['decoder'])
    groups = range(len(jax.tree.leaves(decoder['layers'])[0]))
    decoder['layers'] = {
      str(i): jax.tree.map(lambda x, i=i: x[i], decoder['layers']) for i in groups
    }
    return {**params, 'decoder': decoder}


class Encoder(Transformer):
  """An encoder with a head, bidirectional unless `causal`: `(batch) -> Output`. It ignores `cache`.

  The logits are (B, T, C), C numbers per token. With `pooling` they are (B, P, C), C numbers for
  each of the P examples of a batch row. If the batch has `masked` (B, M), they are (B, M, C), those
  of the tokens at these indices of the row.
  """

  num_classes: int | None = None  # outputs of the head; None for the vocabulary
  pooling: Callable[..., Array] | None = None  # (hidden_BTD, segments_BT, P) -> (B, P, D)
  causal: bool = False  # whether tokens attend to earlier ones alone, as in a decoder

  continues_prompts = False

  @nn.compact
  def __call__(self, batch: Batch, cache: Any = None) -> Output:
    table = self.table('embedding', batch['inputs'] if self.num_classes is None else None)
    mask = bidirectional_mask(batch['positions'], batch['segments'], is_packed(batch))
    mask = mask.replace(causal=self.causal)
    x, _ = self.stack('encoder', self.depth)(self.embed(table, batch['inputs']), batch, mask)
    if 'masked' in batch:
      x = jnp.take_along_axis(x, batch['masked'][..., None], axis=1)
    if self.pooling is not None:
      x = self.pooling(x, batch['segments'], batch['examples'].shape[1])
    if self.head is None:
      x = dropout(self, x, self.dropout)
    if self.head is not None or self.num_classes is None:
      return Output(*self.with_head(x, table), {})
    head = ClassifierHead(self.num_classes, self.d_model, self.init_std, name='head')()
    return Output(x, head, {})


class EncoderDecoder(Transformer):
  """An encoder of the `source` and a decoder with cross-attention: `(batch, cache) -> Output`.

  With a cache, a call whose batch has `source` encodes it and caches the keys and values of
  cross-attention; later calls have no source.
  """

  encoder_depth: int | None = None  # None for the `depth` of the decoder
  cross_attention: Callable[..., nn.Module] = Attention
  share_embeddings: bool = True  # source and target have one embedding table

  continues_prompts = False
  reads_source = True

  @nn.compact
  def __call__(self, batch: Batch, cache: Any = None) -> Output:
    table = self.table('embedding', batch['inputs'] if cache is None else None)
    rows = batch['inputs'].shape
    batch, mask, cached = _decoder_mask(batch, cache)
    encoder_output = None
    if 'source' in batch:
      source_table = table if self.share_embeddings else self.table('source_embedding')
      cached['source_segments'] = segments = batch['source_segments']
      source_mask = bidirectional_mask(batch['source_positions'], segments, is_packed(batch))
      source = self.embed(source_table, batch['source'])
      encoder = self.stack('encoder', self.encoder_depth or self.depth)
      given = {k.removeprefix('source_'): x for k, x in batch.items() if k.startswith('source_')}
      encoder_output, _ = encoder(source, given, source_mask)
    elif cache is not None:
      cached['source_segments'] = cache['source_segments']
    encoder_mask = Mask(
      mask.q_positions,
      jnp.zeros_like(cached['source_segments']),
      batch['segments'],
      cached['source_segments'],
      causal=False,
      packed=cache is not None or is_packed(batch),
    )
    x = self.embed(table, batch['inputs'])
    decoder = self.stack('decoder', self.depth, self.cross_attention)
    x, caches = decoder(x, batch, mask, encoder_output, encoder_mask, cache and cache['layers'])
    x, head = self.with_head(x.reshape(*rows, -1), table)
    return Output(x, head, {}, cache and {**cached, 'layers': caches})

  def flops_per_token(self, params: Params, context: int) -> float:
    """Returns the training FLOPs per token, a mean over source and target tokens of full rows.

    A source token and a target token together use each parameter once, and a decoder layer attends
    to both texts. The pair costs 6 N + 12 (N_encoder_layers + 2 N_decoder_layers) H K T, counted as
    in Decoder, and a token half of that.
    """
    layers = (self.encoder_depth or self.depth) + 2 * self.depth
    return self._flops(params, context, ('encoder', 'decoder'), layers) / 2


def is_packed(batch: Batch) -> bool:
  """Returns whether rows may hold several segments: not if `examples` (B, P) has P = 1."""
  return 'examples' not in batch or batch['examples'].shape[1] > 1


def _decoder_mask(batch: Batch, cache: Any) -> tuple[Batch, Mask, dict[str, Array]]:
  """Returns the batch with beams unflattened, its causal mask, and the new part of the cache.

  Without a cache, tokens attend to the earlier ones of their segment.
  """
  if cache is not None:
    batch = unflatten_beams(batch, cache)
    return batch, *cached_mask(batch, cache)
  positions, segments = batch['positions'], batch['segments']
  prefix = batch.get('prefix')
  mask = Mask(positions, positions, segments, segments, prefix)
  return batch, mask.replace(ordered=prefix is None, packed=is_packed(batch)), {}


def bidirectional_mask(positions: Array, segments: Array, packed: bool) -> Mask:
  """Returns the mask of tokens that attend to all tokens of their segment."""
  return Mask(positions, positions, segments, segments, causal=False, ordered=True, packed=packed)


def _as_tuple(value: Any) -> tuple[Any, ...]:
  return value if isinstance(value, tuple) else (value,)


def _name(fn: Callable) -> str:
  return getattr(getattr(fn, 'func', fn), '__qualname__', str(fn))


def _asks_index(layer: Callable[..., nn.Module] | None) -> bool:
  return layer is not None and 'layer' in inspect.signature(layer).parameters


def _hooks(**place: Any) -> contextlib.AbstractContextManager[None]:
  """Returns `within(**place)` where hooks are set."""
  return contextlib.nullcontext() if HOOKS.get() is None else within(**place)


def _partial(field: str, fn: Callable[..., nn.Module], kwargs: Mapping[str, Any]) -> Callable:
  """Returns `functools.partial(fn, **kwargs)`.

  Raises:
    UserError: `fn`, the value of a field, does not take one of the arguments.
  """
  try:
    inspect.signature(fn).bind_partial(**kwargs)
  except TypeError as e:
    raise UserError(f'{field}: {_name(fn)} {e}; it must accept {", ".join(kwargs)}') from e
  return functools.partial(fn, **kwargs)


def _unstack(stacked: Any) -> list[Any]:
  """Returns the parameters of each layer group; see `Decoder.separate_layers`."""
  if '0' in stacked:
    return [stacked[str(i)] for i in range(len(stacked))]
  groups = len(jax.tree.leaves(stacked)[0])
  # XLA:CPU copies a slice with a constant index before reading it. For GPT-2, these copies take a
  # third of a decode step. A slice with an unknown index is read in place.
  indices = jax.lax.optimization_barrier(jnp.arange(groups))
  take = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)
  return [jax.tree.map(lambda x, i=i: take(x, indices[i]), stacked) for i in range(groups)]
