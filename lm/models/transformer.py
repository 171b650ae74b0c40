"""The three architectures made of the one Transformer stack: decoder, encoder, encoder-decoder.

GPT-2 is a `Decoder` with positions `learned`, norm `LayerNorm`, feed-forward `Mlp`, tied
embeddings and biases; Llama has `rope`, `RMSNorm`, `GatedMlp`, fewer key/value heads, untied, no
biases; BERT is an `Encoder` with residual `post`; the first Transformer (Vaswani et al. 2017) an
`EncoderDecoder` with `sinusoidal` and `post`, T5 one with `relative`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.mesh import named
from lm.models.cache import branch, packed, rows_together, self_mask
from lm.models.heads import ClassTable
from lm.models.stack import Stack
from lm.nn import tables
from lm.nn.attention import dot_product
from lm.nn.cache import Slots
from lm.nn.layers import Attention, Mlp, dropout
from lm.nn.norm import LayerNorm
from lm.nn.position import Position, learned
from lm.nn.residual import pre
from lm.types import Array, Batch, Mask, Output, Params, Table, Unembed


class Transformer(nn.Module):
  """What the architectures have in common: their sizes, and the functions they are made of."""

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
  tied: bool = True  # the unembedding is the embedding
  dropout: float = 0.0
  init_std: float = 0.02
  embed_scale: float = 1.0  # the embeddings times this; sqrt(d_model) in Vaswani et al. 2017, 3.4
  logit_soft_cap: float | None = None
  vocab_multiple: int = 1  # rows of the table are rounded up to this
  unroll: int = 1
  remat: Callable | None = None
  dtype: str = 'float32'

  continues_prompts = True  # whether a text can be gone on with, without a source to read
  reads_on = False  # whether rows longer than `context` can be read

  def stack(self, name: str, **changes: Any) -> Stack:
    """Returns a stack of this model's sizes and functions."""
    own = {f.name for f in dataclasses.fields(self)} - {'parent', 'name'}
    shared = {f.name for f in dataclasses.fields(Stack)} & own
    return Stack(**{field: getattr(self, field) for field in shared} | changes, name=name)

  def table(self, name: str, rows: Array | None = None) -> Table:
    """Returns a table of the vocabulary, whose vectors (V, D) are a parameter.

    Args:
      name: of the parameter.
      rows: a batch whose hidden states become logits by the table, if it is tied.
    """
    size = -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple
    init = named(nn.initializers.normal(self.init_std), *tables.AXES)
    vectors_VD = self.param(name, init, (size, self.d_model))
    if rows is None or not self.tied:
      return Table(vectors_VD)
    return tables.shared(vectors_VD, rows, self.dtype)

  def embed(self, table: Table, tokens_BT: Array) -> Array:
    """Returns the vectors of tokens (B, T, D)."""
    x_BTD = tables.look_up(table, tokens_BT)
    return x_BTD if self.embed_scale == 1 else x_BTD * self.embed_scale

  def unembed(self, table: Table) -> Unembed:
    """Returns how hidden states become logits over the vocabulary."""
    table = table if self.tied else self.table('unembedding')
    return Unembed(table, vocab_size=self.vocab_size, soft_cap=self.logit_soft_cap)

  def init_cache(self, batch_size: int, length: int) -> dict[str, Any]:
    """Returns an empty cache of `length` slots a row, for `batch_size` rows."""
    period = len(self.attention) if isinstance(self.attention, tuple) else 1
    shape = (batch_size, self.kv_heads, length, self.head_dim)

    def layer() -> dict[str, Any]:
      slots = Slots(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype), jnp.int32(0))
      return {'attention': slots}

    layers = [{f'layer_{i}': layer() for i in range(period)} for _ in range(self.depth // period)]
    return {
      'layers': tuple(layers),
      'positions': jnp.zeros((batch_size, length), jnp.int32),
      'segments': jnp.zeros((batch_size, length), jnp.int32),
      'cursor': jnp.zeros((), jnp.int32),
    }

  def branch(self, cache: Mapping[str, Any], parents_BM: Array) -> dict[str, Any]:
    """Returns a cache of M continuations a row, as rows of a batch; see lm/models/cache.py."""
    return branch(cache, parents_BM)


class Decoder(Transformer):
  """A decoder-only language model: `(batch, cache) -> Output`.

  Tokens see those before them. Where the batch has `prefix`, (B, T) and 1 on the tokens of a
  prefix, these see each other both ways (a prefix language model, Raffel et al. 2020, 3.2.1).
  """

  @nn.compact
  def __call__(self, batch: Batch, cache: Any = None) -> Output:
    table = self.table('embedding', batch['inputs'] if cache is None else None)
    rows = batch['inputs'].shape
    batch = rows_together(batch, cache)
    mask, slots = self_mask(batch, cache)
    x = self.embed(table, batch['inputs'])
    x, caches = self.stack('decoder')(x, mask, caches=cache and cache['layers'])
    x = x.reshape(*rows, -1)
    return Output(x, self.unembed(table), {}, cache and {**slots, 'layers': caches})

  def flops_per_token(self, params: Params, context: int) -> float:
    """Returns the FLOPs of training on a token of a full row: 6 N + 12 N_layers H K T.

    Chowdhery et al. 2022 (PaLM), appendix B; N counts what is multiplied, so tables that are only
    looked up are left out. Attention counts whole, whether or not the upper triangle is skipped.
    """
    looked_up = [params['decoder'].get('position')] + ([] if self.tied else [params['embedding']])
    multiplied = sum(x.size for x in jax.tree.leaves(params))
    multiplied -= sum(x.size for x in looked_up if x is not None)
    return 6 * multiplied + 12 * self.depth * self.heads * self.head_dim * context


class Encoder(Transformer):
  """Tokens that see each other both ways, and a head on them: `(batch) -> Output`.

  The logits of the output are one row a token, (B, T, C), or, where there is a `pool`, one row for
  each of the P examples that a row of the batch holds, (B, P, C).
  """

  classes: int | None = None  # outputs of the head; None for the vocabulary
  pool: Callable[..., Array] | None = None  # (hidden_BTD, segments_BT, P) -> (B, P, D)

  continues_prompts = False

  @nn.compact
  def __call__(self, batch: Batch, cache: Any = None) -> Output:
    del cache  # there is nothing that a later call could use
    table = self.table('embedding', batch['inputs'] if self.classes is None else None)
    mask = both_ways(batch['positions'], batch['segments'], packed(batch))
    x, _ = self.stack('encoder')(self.embed(table, batch['inputs']), mask)
    if self.pool is not None:
      x = self.pool(x, batch['segments'], batch['examples'].shape[1])
    x = dropout(self, x, self.dropout)
    if self.classes is None:
      return Output(x, self.unembed(table), {})
    return Output(x, ClassTable(self.classes, self.d_model, self.init_std, name='head')(), {})


class EncoderDecoder(Transformer):
  """An encoder of the `source` and a decoder that attends to it: `(batch, cache) -> Output`.

  With a cache, a call whose batch has `source` reads it and keeps what cross-attention needs of
  it; later calls go without.
  """

  encoder_depth: int | None = None  # None for as many as the decoder's `depth`
  cross_attention: Callable[..., nn.Module] = Attention
  shared: bool = True  # source and target have one table of embeddings

  continues_prompts = False

  @nn.compact
  def __call__(self, batch: Batch, cache: Any = None) -> Output:
    table = self.table('embedding', batch['inputs'] if cache is None else None)
    rows = batch['inputs'].shape
    batch = rows_together(batch, cache)
    mask, slots = self_mask(batch, cache)
    memory = None
    if 'source' in batch:
      source_table = table if self.shared else self.table('source_embedding')
      slots['source_segments'] = batch['source_segments']
      memory = self._encode(source_table, batch)
    elif cache is not None:
      slots['source_segments'] = cache['source_segments']
    memory_mask = Mask(
      mask.q_positions,
      jnp.zeros_like(slots['source_segments']),
      batch['segments'],
      slots['source_segments'],
      causal=False,
      packed=cache is not None or packed(batch),
    )
    x = self.embed(table, batch['inputs'])
    x, caches = self.stack('decoder')(x, mask, memory, memory_mask, cache and cache['layers'])
    x = x.reshape(*rows, -1)
    return Output(x, self.unembed(table), {}, cache and {**slots, 'layers': caches})

  def flops_per_token(self, params: Params, context: int) -> float:
    """Returns the FLOPs of training on a token of full rows, be it of the source or the target.

    It is half of 6 N + 12 (N_encoder + 2 N_decoder) H K T, counted as Decoder does: a token of each
    goes through the parameters once, and a layer of the decoder attends to both texts.
    """
    looked_up = [params[name].get('position') for name in ('encoder', 'decoder')]
    looked_up += [] if self.shared else [params['source_embedding']]
    looked_up += [] if self.tied else [params['embedding']]
    multiplied = sum(x.size for x in jax.tree.leaves(params))
    multiplied -= sum(x.size for x in looked_up if x is not None)
    layers = self._encoder_depth() + 2 * self.depth
    return (6 * multiplied + 12 * layers * self.heads * self.head_dim * context) / 2

  def _encoder_depth(self) -> int:
    return self.depth if self.encoder_depth is None else self.encoder_depth

  def _encode(self, table: Table, batch: Batch) -> Array:
    mask = both_ways(batch['source_positions'], batch['source_segments'], packed(batch))
    encoder = self.stack('encoder', depth=self._encoder_depth(), cross_attention=None)
    return encoder(self.embed(table, batch['source']), mask)[0]


def both_ways(positions: Array, segments: Array, packed: bool) -> Mask:
  """Returns the mask of tokens that see all those of their segment."""
  mask = Mask(positions, positions, segments, segments, causal=False, ordered=True)
  return mask.replace(packed=packed)
