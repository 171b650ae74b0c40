"""Recurrent networks: a language model, an encoder with a head, and an encoder-decoder.

Without a `score` the encoder-decoder is that of Sutskever et al. 2014: the decoder begins with a
summary of the source, a vector of fixed size, and sees nothing else of it. With one it attends to
all states of the encoder (Bahdanau et al. 2015, Luong et al. 2015).
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.mesh import named
from lm.models.attentive import Attentive, Memory
from lm.models.heads import ClassTable
from lm.models.recurrent_layers import Layers, made, nothing
from lm.nn import recurrent
from lm.nn.alignment import Score
from lm.nn.layers import Linear, dropout
from lm.nn.pooling import ends
from lm.nn.recurrent import Carry, Cell
from lm.types import Array, Batch, Output, Params, Table, Unembed


class Recurrent(nn.Module):
  """What the architectures have in common."""

  vocab_size: int
  context: int  # longest row that it is trained on; it reads longer ones
  d_model: int  # of embeddings
  tied: bool = True  # the unembedding is the embedding
  dropout: float = 0.0
  init_std: float = 0.1
  vocab_multiple: int = 1  # rows of the table are rounded up to this
  dtype: str = 'float32'

  continues_prompts = False
  reads_on = True  # rows longer than `context` are read all the same

  def table(self, name: str, width: int) -> Array:
    """Returns a parameter (V, width): vectors of the vocabulary."""
    rows = -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple
    init = named(nn.initializers.normal(self.init_std), 'vocab', 'embed')
    return self.param(name, init, (rows, width))

  def embed(self, table_VD: Array, tokens_BT: Array) -> Array:
    """Returns the vectors of tokens (B, T, D), some of them dropped."""
    return dropout(self, jnp.take(table_VD, tokens_BT, axis=0), self.dropout).astype(self.dtype)

  def output(self, table_VD: Array, y_BTO: Array, cache: Any) -> Output:
    """Returns states and how they become logits; where O is not d_model they are mapped there."""
    y_BTO = dropout(self, y_BTO, self.dropout)
    if not self.tied:
      bias_V = self.param('bias', named(nn.initializers.zeros, 'vocab'), (len(table_VD),))
      kernel_VO = self.table('unembedding', y_BTO.shape[-1])
      return Output(y_BTO, Unembed(Table(kernel_VO), bias_V, self.vocab_size), {}, cache)
    if y_BTO.shape[-1] != self.d_model:
      y_BTO = Linear(
        (y_BTO.shape[-1], self.d_model),
        ('mlp', 'embed'),
        dtype=jnp.dtype(self.dtype),
        kernel_init=nn.initializers.glorot_uniform(),
        name='out',
      )(y_BTO)
    return Output(y_BTO, Unembed(Table(table_VD), vocab_size=self.vocab_size), {}, cache)


class _Decoding(Recurrent):
  """A model that goes on from what it remembers of rows, however long they were."""

  cell: Callable[[], Cell] = recurrent.lstm
  d_hidden: int = 256
  depth: int = 1
  unroll: int = 1

  def init_cache(self, batch_size: int, length: int) -> dict[str, Any]:
    """Returns what is remembered of rows before they are read; `length` does not matter."""
    del length
    begun = nothing(made(self.cell, Cell, 'model.cell'), batch_size, self.d_hidden, self.dtype)
    return {'layers': (begun,) * self.depth}

  def branch(self, cache: Mapping[str, Any], parents_BM: Array) -> dict[str, Any]:
    """Returns a cache of M continuations a row; the m-th goes on from `parents[b, m]`.

    They are rows of a batch, those of a row one after the other. What is kept of a source is there
    once.
    """

    def of(state: Array) -> Array:
      states_BND = state.reshape(len(parents_BM), -1, state.shape[-1])
      picked = jnp.take_along_axis(states_BND, parents_BM[:, :, None], axis=1)
      return picked.reshape(-1, state.shape[-1])

    return {**cache, **{k: jax.tree.map(of, cache[k]) for k in ('layers', 'fed') if k in cache}}


class Decoder(_Decoding):
  """A recurrent language model: `(batch, cache) -> Output` (Mikolov et al. 2010)."""

  continues_prompts = True

  @nn.compact
  def __call__(self, batch: Batch, cache: Any = None) -> Output:
    table_VD = self.table('embedding', self.d_model)
    layers = Layers(
      self.cell, self.d_hidden, self.depth, self.dropout, self.unroll, self.dtype, name='decoder'
    )
    flow = recurrent.forward(batch['segments'], batch['positions'])
    x_BTD = self.embed(table_VD, batch['inputs'])
    y_BTD, carries = layers(x_BTD, flow, carries=cache and cache['layers'])
    return self.output(table_VD, y_BTD, cache and {'layers': carries})

  def flops_per_token(self, params: Params, context: int) -> float:
    """Returns the FLOPs of training on a token: 6 for each number that is multiplied."""
    del context
    multiplied = sum(x.size for x in jax.tree.leaves(params) if x.ndim > 1)
    return 6 * (multiplied if self.tied else multiplied - params['embedding'].size)


class Encoder(Recurrent):
  """An encoder and a head on what it read: `(batch) -> Output`, as lm.models.transformer.Encoder.

  The logits are one row a token, (B, T, C), or, where there is a `pool`, one for each of the P
  examples that a row of the batch holds, (B, P, C).
  """

  encoder: Callable[..., nn.Module] | None = None  # (x_BSD, segments, positions) -> (B, S, M)
  classes: int | None = None  # outputs of the head; None for the vocabulary
  pool: Callable[..., Array] | None = None  # (hidden_BTM, segments_BT, P) -> (B, P, M)

  @nn.compact
  def __call__(self, batch: Batch, cache: Any = None) -> Output:
    del cache  # there is nothing that a later call could use
    assert self.encoder is not None
    table_VD = self.table('embedding', self.d_model)
    encoder = self.encoder(dropout=self.dropout, dtype=self.dtype, name='encoder')
    x = encoder(self.embed(table_VD, batch['inputs']), batch['segments'], batch['positions'])
    if self.pool is not None:
      x = self.pool(x, batch['segments'], batch['examples'].shape[1])
    if self.classes is None:
      return self.output(table_VD, x, None)
    x = dropout(self, x, self.dropout)
    return Output(x, ClassTable(self.classes, x.shape[-1], self.init_std, name='head')(), {})


class EncoderDecoder(_Decoding):
  """An encoder of the `source` and a decoder: `(batch, cache) -> Output`.

  The decoder's states begin with tanh(W s) of the `summary` s of the source. With a cache, a call
  whose batch has `source` reads it and keeps what the decoder attends to; later calls go without.
  """

  encoder: Callable[..., nn.Module] | None = None  # (x_BSD, segments, positions) -> (B, S, M)
  score: Callable[[], Score] | None = None  # None for a decoder that does not attend
  input_feeding: bool = True
  summary: Callable[..., Array] = ends  # (states_BSM, segments_BS, P) -> (B, P, M)
  shared: bool = True  # source and target have one table of embeddings

  @nn.compact
  def __call__(self, batch: Batch, cache: Any = None) -> Output:
    table_VD = self.table('embedding', self.d_model)
    memory, restarts = None, None
    if cache is not None:
      memory = cache.get('memory')
    if 'source' in batch:
      source_VD = table_VD if self.shared else self.table('source_embedding', self.d_model)
      memory, restarts = self._read(source_VD, batch)
    x_BTD = self.embed(table_VD, batch['inputs'])
    flow = recurrent.forward(batch['segments'], batch['positions'])
    if self.score is None:
      layers = Layers(
        self.cell, self.d_hidden, self.depth, self.dropout, self.unroll, self.dtype, name='decoder'
      )
      y, carries = layers(x_BTD, flow, restarts, cache and cache['layers'])
      return self.output(table_VD, y, cache and {'layers': carries})
    attentive = Attentive(
      self.cell,
      self.score,
      self.d_model,
      self.d_hidden,
      self.depth,
      self.input_feeding,
      self.dropout,
      self.unroll,
      self.dtype,
      name='decoder',
    )
    assert memory is not None, 'no source was read'
    carry = cache and (cache['layers'], cache['fed'])
    y, (carries, fed) = attentive(x_BTD, batch['segments'], flow, memory, restarts, carry)
    return self.output(table_VD, y, cache and {'layers': carries, 'fed': fed, 'memory': memory})

  def init_cache(self, batch_size: int, length: int) -> dict[str, Any]:
    cache = super().init_cache(batch_size, length)
    if self.score is not None:
      cache['fed'] = jnp.zeros((batch_size, self.d_model), self.dtype)
    return cache

  def _read(self, table_VD: Array, batch: Batch) -> tuple[Memory | None, list[Carry]]:
    """Returns what the decoder attends to, and the states that it begins with, by step."""
    assert self.encoder is not None
    encoder = self.encoder(dropout=self.dropout, dtype=self.dtype, name='encoder')
    segments_BS = batch['source_segments']
    x_BSD = self.embed(table_VD, batch['source'])
    states_BSM = encoder(x_BSD, segments_BS, batch['source_positions'])
    M, states = states_BSM.shape[-1], made(self.cell, Cell, 'model.cell').states
    P = batch['examples'].shape[1] if 'examples' in batch else 1
    shape = (M, self.depth * states, self.d_hidden)
    linear = self._linear(shape, ('embed', None, 'mlp'), bias=True, name='bridge')
    begin_BPLD = jnp.tanh(linear(self.summary(states_BSM, segments_BS, P)))
    of_T = jnp.maximum(batch['segments'] - 1, 0).T
    rows = jnp.arange(len(segments_BS))[None]
    begin_TBLD = begin_BPLD[rows, of_T]
    begins = [begin_TBLD[:, :, i] for i in range(self.depth * states)]
    restarts = [tuple(begins[i * states : (i + 1) * states]) for i in range(self.depth)]
    if self.score is None:
      return None, restarts
    keys = self._linear((M, self.d_hidden), ('embed', 'mlp'), name='keys')(states_BSM)
    return Memory(keys, states_BSM, segments_BS), restarts

  def _linear(self, shape: tuple[int, ...], axes: tuple[str | None, ...], **kwargs: Any) -> Linear:
    init = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform', in_axis=0, out_axis=-1)
    return Linear(shape, axes, dtype=jnp.dtype(self.dtype), kernel_init=init, **kwargs)
