"""Recurrent models: stacks of recurrent layers over rows (B, T, I) of several segments."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config import resolve
from lm.errors import UserError
from lm.nn import recurrent
from lm.nn.layers import ClassifierHead, Linear, dropout, hook_point
from lm.nn.pooling import bidirectional_final_states
from lm.nn.recurrent import AttentionScore, Carry, Cell, Matmul, ResetMask, Weights, align
from lm.parallel.mesh import with_logical_constraint, with_logical_partitioning
from lm.types import Array, Batch, EmbeddingTable, Output, OutputHead, Params

Kind = TypeVar('Kind')


def build(fn: Callable[[], Any], kind: type[Kind], key: str) -> Kind:
  """Returns `fn()`, which must be an instance of `kind`.

  Raises:
    UserError: the function needs arguments, or returns another type. The message names `key`.
  """
  value = resolve.call(fn, key)
  if not isinstance(value, kind):
    raise UserError(f'{key}: the function makes a {type(value).__name__} and not a {kind.__name__}')
  return value


class Layer(nn.Module):
  """The parameters of one layer, given the width of its inputs."""

  cell: Cell
  d_hidden: int

  @nn.compact
  def __call__(self, width: int) -> Weights:
    G, D = self.cell.gates, self.d_hidden
    # Glorot for the inputs. Orthogonal for the state (Saxe et al. 2014), by gate, so that the state
    # does not grow over a long row.
    glorot = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform', in_axis=0, out_axis=2)
    orthogonal = nn.initializers.orthogonal()

    def by_gate(key, shape, dtype=jnp.float32):
      keys = jax.random.split(key, G)
      return jnp.stack([orthogonal(k, (shape[0], shape[2]), dtype) for k in keys], 1)

    zeros = with_logical_partitioning(nn.initializers.zeros, None, 'mlp')
    axes = ('embed', None, 'mlp')
    return Weights(
      self.param('input', with_logical_partitioning(glorot, *axes), (width, G, D)),
      self.param('bias', zeros, (G, D)),
      self.param('state', with_logical_partitioning(by_gate, *axes), (D, G, D)),
      self.param('state_bias', zeros, (G, D)) if self.cell.separate else None,
    )


class Stack(nn.Module, kw_only=True):
  """The fields of a stack of recurrent layers.

  Dropout applies between layers and not between steps (Zaremba et al. 2014).
  """

  cell: Callable[[], Cell]
  d_hidden: int
  depth: int = 1
  scan_unroll: int = 1
  dropout: float = 0.0
  dtype: str = 'float32'

  def build_cell(self) -> Cell:
    """Returns the cell; raises UserError if `cell` is not a function that returns one."""
    return build(self.cell, Cell, 'model.cell')

  def empty_state(self, batch_size: int) -> Carry:
    """Returns the carry of a layer before the first token, zeros."""
    states = self.build_cell().states
    return tuple(jnp.zeros((batch_size, self.d_hidden), self.dtype) for _ in range(states))

  def like(self, kind: type[nn.Module], name: str, **fields: Any) -> Any:
    """Returns a stack of another kind with the same fields, and with some more."""
    shared = ('cell', 'd_hidden', 'depth', 'scan_unroll', 'dropout', 'dtype')
    return kind(**{field: getattr(self, field) for field in shared}, **fields, name=name)


class Layers(Stack):
  """Layers that read left to right: `(x_BTI, resets, initial, carries) -> (y_BTD, carries)`.

  `initial` has arrays (T, B, D) for each layer: a reset at step t sets the carry to their values at
  t. `carries` has the carry of each layer before the first step. None stands for zeros in both.
  """

  @nn.compact
  def __call__(
    self,
    x_BTI: Array,
    resets: ResetMask,
    initial: Sequence[Carry] | None = None,
    carries: Sequence[Carry] | None = None,
  ) -> tuple[Array, tuple[Carry, ...]]:
    cell, after = self.build_cell(), []
    x_TBI = x_BTI.swapaxes(0, 1).astype(self.dtype)
    for i in range(self.depth):
      if i:
        x_TBI = dropout(self, x_TBI, self.dropout)
      weights = Layer(cell, self.d_hidden, name=f'layer_{i}')(x_TBI.shape[-1])
      zeros = self.empty_state(len(x_BTI))
      x_TBI, carry = recurrent.run_layer(
        cell,
        x_TBI,
        weights,
        resets,
        zeros if carries is None else carries[i],
        None if initial is None else initial[i],
        unroll=self.scan_unroll,
      )
      x_TBI = hook_point(self, f'states_{i}', x_TBI)
      after.append(carry)
    x_BTI = with_logical_constraint(x_TBI.swapaxes(0, 1), 'batch', 'length', 'activation_embed')
    return x_BTI, tuple(after)


class Bidirectional(Stack):
  """An encoder whose layers read both ways: `(x_BSI, segments, positions) -> (B, S, 2 D)`.

  The states of reading left to right come before those of reading right to left (Schuster and
  Paliwal 1997). The input of a layer is both states of the layer below, concatenated. `d_hidden` is
  the width of the states of one direction.
  """

  @nn.compact
  def __call__(self, x_BSI: Array, segments_BS: Array, positions_BS: Array) -> Array:
    cell, zeros = self.build_cell(), self.empty_state(len(x_BSI))
    directions = {
      'right': recurrent.forward_resets(segments_BS, positions_BS),
      'left': recurrent.backward_resets(segments_BS),
    }
    x_SBI = x_BSI.swapaxes(0, 1).astype(self.dtype)
    for i in range(self.depth):
      if i:
        x_SBI = dropout(self, x_SBI, self.dropout)
      states = []
      for direction, resets in directions.items():
        weights = Layer(cell, self.d_hidden, name=f'{direction}_{i}')(x_SBI.shape[-1])
        reverse = direction == 'left'
        y_SBD, _ = recurrent.run_layer(
          cell, x_SBI, weights, resets, zeros, reverse=reverse, unroll=self.scan_unroll
        )
        states.append(y_SBD)
      x_SBI = hook_point(self, f'states_{i}', jnp.concatenate(states, axis=-1))
    return with_logical_constraint(x_SBI.swapaxes(0, 1), 'batch', 'length', 'activation_embed')


class Unidirectional(Stack):
  """An encoder that reads left to right: `(x_BSI, segments, positions) -> (B, S, D)`."""

  @nn.compact
  def __call__(self, x_BSI: Array, segments_BS: Array, positions_BS: Array) -> Array:
    layers = self.like(Layers, 'layers')
    return layers(x_BSI, recurrent.forward_resets(segments_BS, positions_BS))[0]


class EncodedSource(NamedTuple):
  """The source that a decoder attends to."""

  keys: Array  # (B, S, A)
  values: Array  # (B, S, M)
  segments: Array  # (B, S) int32
  vector_A: Array | None = None  # the parameter of the attention score, if it has one


class Attended(NamedTuple):
  """The result of attention: y = tanh(W [h; c]), the weights, and c, the weighted values."""

  y: Array  # (B, T, O)
  weights: Array  # (B, T, S) float32
  mixed: Array  # (B, T, M)


class AttentionDecoder(Stack):
  """Layers with attention on top of them.

  The call is `(x_BTI, segments, resets, source, initial, carry) -> (y, carry)`.
  y_BTO = tanh(W [h; c]), where h is the state of the top layer and c the mean of the source under
  its attention weights (Luong et al. 2015, eq. 5). With `input_feeding` the input of the first
  layer includes the y of the previous step (section 3.3 there), and attention is part of the loop.
  The carry is a pair: the carries of the layers, and the last y. In beam search x has a one-token
  row per beam, and the beams of a source row are consecutive rows.
  """

  attention_score: Callable[[], AttentionScore]
  d_model: int  # O
  input_feeding: bool

  @nn.compact
  def __call__(
    self,
    x_BTI: Array,
    segments_BT: Array,
    resets: ResetMask,
    source: EncodedSource,
    initial: Sequence[Carry] | None,
    carry: Any,
  ) -> tuple[Array, Any]:
    B, T, _ = x_BTI.shape
    score = build(self.attention_score, AttentionScore, 'model.attention_score')
    rows = segments_BT.reshape(len(source.segments), -1)
    visible_BTS = (rows[:, :, None] == source.segments[:, None]).reshape(B, T, -1)
    if carry is None:
      zeros = self.empty_state(B)
      carry = (zeros,) * self.depth, jnp.zeros((B, self.d_model), self.dtype)
    D, A, M = self.d_hidden, source.keys.shape[-1], source.values.shape[-1]

    def param(name: str, init: Callable[..., Array], *axes: str | None, shape: tuple) -> Array:
      return self.param(name, with_logical_partitioning(init, *axes), shape)

    glorot = nn.initializers.glorot_uniform()
    matrices = {
      'query': param('query', glorot, 'embed', 'mlp', shape=(D, A)),
      'out': param('out', glorot, 'mlp', 'embed', shape=(D + M, self.d_model)),
    }
    matrices = {name: kernel.astype(self.dtype) for name, kernel in matrices.items()}
    if score.vector:
      vector_A = param('vector', nn.initializers.normal(A**-0.5), None, shape=(A,))
      source = source._replace(vector_A=vector_A)
    run = self._with_feeding if self.input_feeding else self._without_feeding
    attended, carry = run(score, x_BTI, resets, source, visible_BTS, matrices, initial, carry)
    HookPoints(name='cross_attention')(attended, source)
    return with_logical_constraint(attended.y, 'batch', 'length', 'activation_embed'), carry

  def _without_feeding(self, score, x_BTI, resets, source, visible_BTS, matrices, initial, carry):
    """Computes the states of all steps, and then their attention together."""
    h_BTD, carries = self.like(Layers, 'layers')(x_BTI, resets, initial, carry[0])
    B, T, _ = h_BTD.shape

    def matmul(name: str, x: Array) -> Array:
      return (x.reshape(B * T, -1) @ matrices[name]).reshape(B, T, -1)

    mask = self._dropout_mask((B, T, len(matrices['out'])))
    attended = _attend(score, matmul, source, h_BTD, visible_BTS, mask)
    return attended, (carries, attended.y[:, -1])

  def _with_feeding(self, score, x_BTI, resets, source, visible_BTS, matrices, initial, carry):
    """Runs a loop over steps, each of which attends."""
    B, T, I = x_BTI.shape
    cell, x_TBI = self.build_cell(), x_BTI.swapaxes(0, 1).astype(self.dtype)
    # The first layer's kernel has two parts. Rows [0, I) multiply x, which is known for all steps.
    # The other rows multiply the y of the previous step.
    layers = [
      Layer(cell, self.d_hidden, name=f'layer_{i}')(self.d_hidden if i else I + self.d_model)
      for i in range(self.depth)
    ]
    for i, layer in enumerate(layers):
      kernel = layer.matrix(slice(None) if i else slice(I, None))
      matrices |= {f'input_{i}': kernel.astype(self.dtype), f'state_{i}': layer.state(x_TBI.dtype)}
    biases = [layer.bias_GD for layer in layers[1:]], [layer.state_bias_GD for layer in layers]
    addends = {'input_0': layers[0].from_input(x_TBI, slice(I))}
    reset_TB, padding_TB, visible_TBS = (x.swapaxes(0, 1) for x in (*resets, visible_BTS))
    masks = [self._dropout_mask((T, B, self.d_hidden)) for _ in layers[1:]]
    mask_above = self._dropout_mask((T, B, len(matrices['out'])))
    xs = (padding_TB, masks, mask_above, initial, reset_TB, visible_TBS)

    def step(matmul: Matmul, constants: Any, carry: Any, x: Any) -> tuple[Any, Attended]:
      source, (biases, state_biases) = constants
      padding_B, masks, mask_above, initial, reset_B, visible_BS = x
      befores, fed_BO = carry
      x_BI, afters = jnp.where(reset_B[:, None], 0, fed_BO), []
      for i, before in enumerate(befores):
        before = recurrent.reset_carry(before, reset_B, initial and initial[i])
        if i and masks[i - 1] is not None:
          x_BI *= masks[i - 1]
        x_BK = matmul(f'input_{i}', x_BI)
        if i:
          x_BK += biases[i - 1].astype(x_BK.dtype).reshape(1, -1)
        z_BK = matmul(f'state_{i}', before[0])
        after = recurrent.step_cell(cell, x_BK, z_BK, state_biases[i], before)
        afters.append(recurrent.freeze_carry(after, padding_B, before))
        x_BI = afters[-1][0]

      def matmul_of_one(name: str, y_B1I: Array) -> Array:
        return matmul(name, y_B1I[:, 0])[:, None]

      mask = None if mask_above is None else mask_above[:, None]
      attended = _attend(score, matmul_of_one, source, x_BI[:, None], visible_BS[:, None], mask)
      attended = Attended(*(part[:, 0] for part in attended))
      fed_BO = jnp.where(padding_B[:, None], fed_BO, attended.y)
      return (tuple(afters), fed_BO), attended

    carry, attended = recurrent.scan(
      step, matrices, addends, (source, biases), carry, xs, False, self.scan_unroll
    )
    return Attended(*(part.swapaxes(0, 1) for part in attended)), carry

  def _dropout_mask(self, shape: tuple[int, ...]) -> Array | None:
    """Returns the factors of dropout, which a scan cannot sample; None without dropout."""
    if self.dropout == 0 or not self.has_rng('dropout'):
      return None
    return dropout(self, jnp.ones(shape, self.dtype), self.dropout)


class HookPoints(nn.Module):
  """Read-only hook points (see lm.nn.hooks), with the names of those in lm.nn.layers.Attention."""

  @nn.compact
  def __call__(self, attended: Attended, source: EncodedSource) -> None:
    hook_point(self, 'weights', attended.weights[:, None])
    hook_point(self, 'values', source.values[:, :, None])
    hook_point(self, 'heads', attended.mixed[:, :, None])


def _attend(
  score: AttentionScore,
  matmul: Matmul,
  source: EncodedSource,
  h_BTD: Array,
  visible_BTS: Array,
  mask: Array | None,
) -> Attended:
  """Returns the attention of the states to the source.

  A source row may serve several rows of states, such as beams: their queries attend to it together.
  `mask` has the factors of dropout, or is None.
  """
  (B, T, _), (rows, S) = h_BTD.shape, source.segments.shape
  q_BTA = matmul('query', h_BTD)
  mixed, weights = align(
    score,
    q_BTA.reshape(rows, -1, q_BTA.shape[-1]),
    source.keys,
    None if source.vector_A is None else source.vector_A.astype(q_BTA.dtype),
    source.values,
    visible_BTS.reshape(rows, -1, S),
  )
  mixed_BTM, weights_BTS = mixed.reshape(B, T, -1), weights.reshape(B, T, S)
  both = jnp.concatenate([h_BTD, mixed_BTM], axis=-1)
  y_BTO = jnp.tanh(matmul('out', both if mask is None else both * mask))
  return Attended(y_BTO, weights_BTS, mixed_BTM)


class Recurrent(nn.Module, kw_only=True):
  """The fields and methods that all recurrent models share."""

  vocab_size: int
  context: int  # longest row in training; the model can read longer rows
  d_model: int  # of embeddings
  tie_embeddings: bool = True  # the output head is the embedding
  dropout: float = 0.0
  init_std: float = 0.1
  vocab_multiple: int = 1  # the embedding table has a multiple of this number of rows
  dtype: str = 'float32'

  continues_prompts = False
  reads_source = False
  reads_on = True  # the model can read rows longer than `context`

  def table(self, name: str, width: int) -> Array:
    """Returns a parameter (V, width): vectors of the vocabulary."""
    rows = -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple
    init = with_logical_partitioning(nn.initializers.normal(self.init_std), 'vocab', 'embed')
    return self.param(name, init, (rows, width))

  def embed(self, table_VD: Array, tokens_BT: Array) -> Array:
    """Returns the embeddings of tokens (B, T, D), with dropout."""
    return dropout(self, jnp.take(table_VD, tokens_BT, axis=0), self.dropout).astype(self.dtype)

  def encode(self, encoder: Callable[..., nn.Module] | None, *inputs: Array) -> Array:
    """Returns the states (B, S, M) of an encoder; `inputs` are embeddings, segments, positions."""
    assert encoder is not None
    return encoder(dropout=self.dropout, dtype=self.dtype, name='encoder')(*inputs)

  def output(self, table_VD: Array, y_BTO: Array, cache: Any) -> Output:
    """Returns hidden states and head; a tied head needs a projection where O is not d_model."""
    y_BTO, bias_V = dropout(self, y_BTO, self.dropout), None
    if not self.tie_embeddings:
      zeros = with_logical_partitioning(nn.initializers.zeros, 'vocab')
      bias_V = self.param('bias', zeros, (len(table_VD),))
      table_VD = self.table('unembedding', y_BTO.shape[-1])
    elif y_BTO.shape[-1] != self.d_model:
      y_BTO = self.linear((y_BTO.shape[-1], self.d_model), ('mlp', 'embed'), name='out')(y_BTO)
    head = OutputHead(EmbeddingTable(table_VD), bias_V, self.vocab_size)
    return Output(y_BTO, head, {}, cache)

  def linear(self, shape: tuple[int, ...], axes: tuple[str | None, ...], **fields: Any) -> Linear:
    """Returns a linear map of one axis, with Glorot's initial values."""
    init = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform', in_axis=0, out_axis=-1)
    return Linear(shape, axes, dtype=jnp.dtype(self.dtype), kernel_init=init, **fields)


class _AutoregressiveRecurrent(Recurrent, Stack):
  """A model that continues rows of any length from its state."""

  cell: Callable[[], Cell] = recurrent.lstm
  d_hidden: int = 256

  def init_cache(self, batch_size: int, length: int) -> dict[str, Any]:
    """Returns the carries of empty rows; `length` has no effect."""
    return {'layers': (self.empty_state(batch_size),) * self.depth}

  def reorder_cache(self, cache: Mapping[str, Any], parents_BM: Array) -> dict[str, Any]:
    """Returns a cache of M beams a row, where beam m continues beam `parents_BM[b, m]`.

    Beams are rows of a batch; those of one source row follow each other. The encoded source is
    stored once.
    """

    def reorder(state: Array) -> Array:
      states_BND = state.reshape(len(parents_BM), -1, state.shape[-1])
      picked = jnp.take_along_axis(states_BND, parents_BM[:, :, None], axis=1)
      return picked.reshape(-1, state.shape[-1])

    own = {name: cache[name] for name in ('layers', 'fed') if name in cache}
    return {**cache, **jax.tree.map(reorder, own)}


class Decoder(_AutoregressiveRecurrent):
  """A recurrent language model: `(batch, cache) -> Output` (Mikolov et al. 2010)."""

  continues_prompts = True

  @nn.compact
  def __call__(self, batch: Batch, cache: Any = None) -> Output:
    table_VD = self.table('embedding', self.d_model)
    resets = recurrent.forward_resets(batch['segments'], batch['positions'])
    x_BTD = self.embed(table_VD, batch['inputs'])
    layers = self.like(Layers, 'decoder')
    y_BTD, carries = layers(x_BTD, resets, carries=cache and cache['layers'])
    return self.output(table_VD, y_BTD, cache and {'layers': carries})

  def flops_per_token(self, params: Params, context: int) -> float:
    """Returns the FLOPs of training on a token: 6 for each parameter of a matmul."""
    multiplied = sum(x.size for x in jax.tree.leaves(params) if x.ndim > 1)
    return 6 * (multiplied if self.tie_embeddings else multiplied - params['embedding'].size)


class Encoder(Recurrent):
  """An encoder with a head: `(batch) -> Output`, as lm.models.transformer.Encoder.

  The logits are (B, T, C), C numbers per token. With `pooling` they are (B, P, C), C numbers for
  each of the P examples of a batch row.
  """

  encoder: Callable[..., nn.Module] | None = None  # (x_BSD, segments, positions) -> (B, S, M)
  num_classes: int | None = None  # outputs of the head; None for the vocabulary
  pooling: Callable[..., Array] | None = None  # (hidden_BTM, segments_BT, P) -> (B, P, M)
  head: Callable[..., tuple[Array, OutputHead]] | None = None  # to classes, of lm.nn.heads

  @nn.compact
  def __call__(self, batch: Batch, cache: Any = None) -> Output:
    table_VD = self.table('embedding', self.d_model)
    x_BTD = self.embed(table_VD, batch['inputs'])
    x = self.encode(self.encoder, x_BTD, batch['segments'], batch['positions'])
    if self.pooling is not None:
      x = self.pooling(x, batch['segments'], batch['examples'].shape[1])
    if self.head is not None:
      return Output(*self.head(self, x, EmbeddingTable(table_VD)), {})
    if self.num_classes is None:
      return self.output(table_VD, x, None)
    x = dropout(self, x, self.dropout)
    head = ClassifierHead(self.num_classes, x.shape[-1], self.init_std, name='head')()
    return Output(x, head, {})


class EncoderDecoder(_AutoregressiveRecurrent):
  """An encoder of the `source` and a decoder: `(batch, cache) -> Output`.

  The decoder's states start as tanh(W s) of the `summary` s of the source. With a cache, a call
  whose batch has `source` encodes it and caches the result; later calls have no source.
  """

  encoder: Callable[..., nn.Module] | None = None  # (x_BSD, segments, positions) -> (B, S, M)
  attention_score: Callable[[], AttentionScore] | None = None  # None for no attention
  input_feeding: bool = True
  # (states_BSM, segments_BS, P) -> (B, P, M)
  summary: Callable[..., Array] = bidirectional_final_states
  share_embeddings: bool = True  # source and target have one embedding table

  reads_source = True

  @nn.compact
  def __call__(self, batch: Batch, cache: Any = None) -> Output:
    table_VD = self.table('embedding', self.d_model)
    source, initial = (cache or {}).get('source'), None
    if 'source' in batch:
      own = not self.share_embeddings
      source_VD = self.table('source_embedding', self.d_model) if own else table_VD
      source, initial = self._encode(source_VD, batch)
    x_BTD = self.embed(table_VD, batch['inputs'])
    resets = recurrent.forward_resets(batch['segments'], batch['positions'])
    if self.attention_score is None:
      layers = self.like(Layers, 'decoder')
      y, carries = layers(x_BTD, resets, initial, cache and cache['layers'])
      return self.output(table_VD, y, cache and {'layers': carries})
    fields = ('attention_score', 'd_model', 'input_feeding')
    decoder = self.like(AttentionDecoder, 'decoder', **{x: getattr(self, x) for x in fields})
    assert source is not None, 'neither the batch nor the cache has a source'
    carry = cache and (cache['layers'], cache['fed'])
    y, (carries, fed) = decoder(x_BTD, batch['segments'], resets, source, initial, carry)
    return self.output(table_VD, y, cache and {'layers': carries, 'fed': fed, 'source': source})

  def init_cache(self, batch_size: int, length: int) -> dict[str, Any]:
    cache = super().init_cache(batch_size, length)
    if self.attention_score is not None:
      cache['fed'] = jnp.zeros((batch_size, self.d_model), self.dtype)
    return cache

  def _encode(self, table_VD: Array, batch: Batch) -> tuple[EncodedSource | None, list[Carry]]:
    """Returns the source that the decoder attends to, and `initial` (see `Layers`)."""
    segments_BS = batch['source_segments']
    x_BSD = self.embed(table_VD, batch['source'])
    states_BSM = self.encode(self.encoder, x_BSD, segments_BS, batch['source_positions'])
    M, states = states_BSM.shape[-1], self.build_cell().states
    P = batch['examples'].shape[1] if 'examples' in batch else 1
    shape = (M, self.depth * states, self.d_hidden)
    linear = self.linear(shape, ('embed', None, 'mlp'), bias=True, name='bridge')
    initial_BPLD = jnp.tanh(linear(self.summary(states_BSM, segments_BS, P)))
    of_T = jnp.maximum(batch['segments'] - 1, 0).T
    initial_TBLD = initial_BPLD[jnp.arange(len(segments_BS))[None], of_T]
    arrays = [initial_TBLD[:, :, i] for i in range(self.depth * states)]
    initial = [tuple(arrays[i * states : (i + 1) * states]) for i in range(self.depth)]
    if self.attention_score is None:
      return None, initial
    keys = self.linear((M, self.d_hidden), ('embed', 'mlp'), name='keys')(states_BSM)
    return EncodedSource(keys, states_BSM, segments_BS), initial
