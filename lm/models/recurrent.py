"""Stacks of recurrent layers, one way or both, over rows (B, T, I) of several segments."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config import resolve
from lm.errors import UserError
from lm.models.transformer import ClassifierHead
from lm.nn import recurrent
from lm.nn.layers import Linear, dropout, hook_point
from lm.nn.pooling import bidirectional_final_states
from lm.nn.recurrent import AttentionScore, Carry, Cell, Flow, Matmul, Weights, align
from lm.parallel.mesh import with_logical_constraint, with_logical_partitioning
from lm.types import Array, Batch, EmbeddingTable, Output, OutputHead, Params

Kind = TypeVar('Kind')


class Layer(nn.Module):
  """The weights of one layer: called with the width of its inputs."""

  cell: Cell
  d_hidden: int

  @nn.compact
  def __call__(self, width: int) -> Weights:
    G, D = self.cell.gates, self.d_hidden
    # Glorot for what is read, orthogonal for what is remembered (Saxe et al. 2014), a gate at a
    # time, so that a state is not blown up however long a row is.
    glorot = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform', in_axis=0, out_axis=2)
    orthogonal = nn.initializers.orthogonal()
    gates = with_logical_partitioning(glorot, 'embed', None, 'mlp')
    states = with_logical_partitioning(
      lambda key, shape, dtype=jnp.float32: jnp.stack(
        [orthogonal(k, (shape[0], shape[2]), dtype) for k in jax.random.split(key, G)], 1
      ),
      'embed',
      None,
      'mlp',
    )
    zeros = with_logical_partitioning(nn.initializers.zeros, None, 'mlp')
    return Weights(
      self.param('input', gates, (width, G, D)),
      self.param('bias', zeros, (G, D)),
      self.param('state', states, (D, G, D)),
      self.param('state_bias', zeros, (G, D)) if self.cell.apart else None,
    )


def make_layers(fn: Callable[[], Any], kind: type[Kind], key: str) -> Kind:
  """Returns what a function without arguments makes, which is to be of a kind.

  Raises:
    UserError: it needs arguments, or makes something else; `key` names it.
  """
  value = resolve.call(fn, key)
  if not isinstance(value, kind):
    raise UserError(f'{key}: the function makes a {type(value).__name__} and not a {kind.__name__}')
  return value


def empty_state(cell: Cell, batch_size: int, d_hidden: int, dtype: str) -> Carry:
  """Returns what is remembered of rows of which nothing was read."""
  return tuple(jnp.zeros((batch_size, d_hidden), dtype) for _ in range(cell.states))


class Layers(nn.Module):
  """Layers that read from left to right: `(x_BTI, flow, restarts, carries) -> (y_BTD, carries)`.

  Dropout is between layers and not between steps (Zaremba et al. 2014). `restarts` are, a layer,
  the states (T, B, D) of where states begin, or None for zeros; `carries` what is remembered of the
  rows, a layer, or None for nothing.
  """

  cell: Callable[[], Cell]
  d_hidden: int
  depth: int
  dropout: float = 0.0
  scan_unroll: int = 1
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self,
    x_BTI: Array,
    flow: Flow,
    restarts: Sequence[Carry] | None = None,
    carries: Sequence[Carry] | None = None,
  ) -> tuple[Array, tuple[Carry, ...]]:
    cell, after = make_layers(self.cell, Cell, 'model.cell'), []
    x_TBI = x_BTI.swapaxes(0, 1).astype(self.dtype)
    for i in range(self.depth):
      if i:
        x_TBI = dropout(self, x_TBI, self.dropout)
      weights = Layer(cell, self.d_hidden, name=f'layer_{i}')(x_TBI.shape[-1])
      begun = empty_state(cell, len(x_BTI), self.d_hidden, self.dtype)
      x_TBI, carry = recurrent.read(
        cell,
        weights.from_input(x_TBI),
        weights,
        flow,
        begun if carries is None else carries[i],
        None if restarts is None else restarts[i],
        unroll=self.scan_unroll,
      )
      x_TBI = hook_point(self, f'states_{i}', x_TBI)
      after.append(carry)
    x_BTI = with_logical_constraint(x_TBI.swapaxes(0, 1), 'batch', 'length', 'activation_embed')
    return x_BTI, tuple(after)


class Bidirectional(nn.Module):
  """An encoder whose layers read both ways: `(x_BSI, segments, positions) -> (B, S, 2 D)`.

  The features of reading to the right come before those of reading to the left (Schuster and
  Paliwal 1997); each layer reads both of the layer before.
  """

  cell: Callable[[], Cell]
  d_hidden: int  # of each direction
  depth: int = 1
  scan_unroll: int = 1
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x_BSI: Array, segments_BS: Array, positions_BS: Array) -> Array:
    cell = make_layers(self.cell, Cell, 'model.cell')
    begun = empty_state(cell, len(x_BSI), self.d_hidden, self.dtype)
    flows = recurrent.forward(segments_BS, positions_BS), recurrent.backward(segments_BS)
    x_SBI = x_BSI.swapaxes(0, 1).astype(self.dtype)
    for i in range(self.depth):
      if i:
        x_SBI = dropout(self, x_SBI, self.dropout)
      read = []
      for way, flow in zip(('right', 'left'), flows, strict=True):
        weights = Layer(cell, self.d_hidden, name=f'{way}_{i}')(x_SBI.shape[-1])
        y_SBD, _ = recurrent.read(
          cell,
          weights.from_input(x_SBI),
          weights,
          flow,
          begun,
          reverse=way == 'left',
          unroll=self.scan_unroll,
        )
        read.append(y_SBD)
      x_SBI = hook_point(self, f'states_{i}', jnp.concatenate(read, axis=-1))
    return with_logical_constraint(x_SBI.swapaxes(0, 1), 'batch', 'length', 'activation_embed')


class Unidirectional(nn.Module):
  """An encoder that reads from left to right: `(x_BSI, segments, positions) -> (B, S, D)`."""

  cell: Callable[[], Cell]
  d_hidden: int
  depth: int = 1
  scan_unroll: int = 1
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x_BSI: Array, segments_BS: Array, positions_BS: Array) -> Array:
    layers = Layers(
      self.cell,
      self.d_hidden,
      self.depth,
      self.dropout,
      self.scan_unroll,
      self.dtype,
      name='layers',
    )
    return layers(x_BSI, recurrent.forward(segments_BS, positions_BS))[0]


class Memory(NamedTuple):
  """What is attended to."""

  keys: Array  # (B, S, A)
  values: Array  # (B, S, M)
  segments: Array  # (B, S) int32


class Attended(NamedTuple):
  """What comes of attending: y = tanh(W [h; c]), the weights, and c, the values mixed by them."""

  y: Array  # (B, T, O)
  weights: Array  # (B, T, S) float32
  mixed: Array  # (B, T, M)


class Attentive(nn.Module):
  """Layers with attention on top: `(x_BTI, segments, flow, memory, restarts, carry) -> (y, carry)`.

  y_BTO = tanh(W [h; c]), where c is the mean of the memory that the state h of the top layer is
  aligned with (Luong et al. 2015, eq. 5). With `input_feeding` the first layer reads the y of the
  step before beside its input (section 3.3 there), and attention is part of the loop. What is
  remembered is a carry a layer, and the last y. Rows of x may be several for each row of the
  memory, one after the other: the hypotheses of a beam search, of one token each.
  """

  cell: Callable[[], Cell]
  attention_score: Callable[[], AttentionScore]
  d_model: int  # O
  d_hidden: int  # of the layers
  depth: int
  input_feeding: bool
  dropout: float = 0.0
  scan_unroll: int = 1
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self,
    x_BTI: Array,
    segments_BT: Array,
    flow: Flow,
    memory: Memory,
    restarts: Sequence[Carry] | None,
    carry: Any,
  ) -> tuple[Array, Any]:
    B, T, _ = x_BTI.shape
    cell, score = (
      make_layers(self.cell, Cell, 'model.cell'),
      make_layers(self.attention_score, AttentionScore, 'model.attention_score'),
    )
    rows = segments_BT.reshape(len(memory.segments), -1)
    visible_BTS = (rows[:, :, None] == memory.segments[:, None]).reshape(B, T, -1)
    if carry is None:
      begun = empty_state(cell, B, self.d_hidden, self.dtype)
      carry = (begun,) * self.depth, jnp.zeros((B, self.d_model), self.dtype)
    glorot, D = nn.initializers.glorot_uniform(), self.d_hidden
    A, M = memory.keys.shape[-1], memory.values.shape[-1]
    matrices = {
      'query': self.param('query', with_logical_partitioning(glorot, 'embed', 'mlp'), (D, A)),
      'out': self.param(
        'out', with_logical_partitioning(glorot, 'mlp', 'embed'), (D + M, self.d_model)
      ),
    }
    matrices = {name: kernel.astype(self.dtype) for name, kernel in matrices.items()}
    vector_A = None
    if score.vector:
      vector_A = self.param(
        'vector', with_logical_partitioning(nn.initializers.normal(A**-0.5), None), (A,)
      )
    attending = (memory, vector_A)
    run = functools.partial(self._fed, cell) if self.input_feeding else self._apart
    attended, carry = run(score, x_BTI, flow, attending, visible_BTS, matrices, restarts, carry)
    Sites(name='cross_attention')(attended, memory)
    return with_logical_constraint(attended.y, 'batch', 'length', 'activation_embed'), carry

  def _apart(self, score, x_BTI, flow, attending, visible_BTS, matrices, restarts, carry):
    """All states first, and then what they are aligned with."""
    layers = Layers(
      self.cell,
      self.d_hidden,
      self.depth,
      self.dropout,
      self.scan_unroll,
      self.dtype,
      name='layers',
    )
    h_BTD, carries = layers(x_BTI, flow, restarts, carry[0])
    B, T, _ = h_BTD.shape

    def matmul(name: str, x: Array) -> Array:
      return (x.reshape(B * T, -1) @ matrices[name]).reshape(B, T, -1)

    kept = self._kept((B, T, len(matrices['out'])))
    attended = _attend(score, matmul, attending, h_BTD, visible_BTS, kept)
    return attended, (carries, attended.y[:, -1])

  def _fed(self, cell, score, x_BTI, flow, attending, visible_BTS, matrices, restarts, carry):
    """A loop over steps, each of which attends."""
    B, T, I = x_BTI.shape
    x_TBI = x_BTI.swapaxes(0, 1).astype(self.dtype)
    # The first layer's kernel is of x, which is there for all steps, and of what is fed.
    layers = [
      Layer(cell, self.d_hidden, name=f'layer_{i}')(self.d_hidden if i else I + self.d_model)
      for i in range(self.depth)
    ]
    first, *others = layers
    for i, layer in enumerate(layers):
      fed = layer.matrix(slice(None) if i else slice(I, None))
      matrices |= {f'input_{i}': fed.astype(self.dtype), f'state_{i}': layer.state(x_TBI.dtype)}
    biases = [layer.bias_GD for layer in others], [layer.state_bias_GD for layer in layers]
    addends = {'input_0': first.from_input(x_TBI, slice(I))}
    xs = {
      'starts': flow.starts.T,
      'held': flow.held.T,
      'restarts': restarts,
      'visible': visible_BTS.swapaxes(0, 1),
      'kept': [self._kept((T, B, self.d_hidden)) for _ in others],
      'kept_above': self._kept((T, B, len(matrices['out']))),
    }

    def step(matmul: Matmul, constants: Any, carry: Any, x: Any) -> tuple[Any, Attended]:
      return _step(cell, score, matmul, constants, carry, x)

    carry, attended = recurrent.scan(
      step, matrices, addends, (attending, biases), carry, xs, False, self.scan_unroll
    )
    return Attended(*(part.swapaxes(0, 1) for part in attended)), carry

  def _kept(self, shape: tuple[int, ...]) -> Array | None:
    """Returns what dropout multiplies by, for loops cannot draw; None where it drops nothing."""
    if self.dropout == 0 or not self.has_rng('dropout'):
      return None
    return dropout(self, jnp.ones(shape, self.dtype), self.dropout)


class Sites(nn.Module):
  """Sites of lm.nn.hooks, to read and not to edit, named as those of lm.nn.layers.Attention."""

  @nn.compact
  def __call__(self, attended: Attended, memory: Memory) -> None:
    hook_point(self, 'weights', attended.weights[:, None])
    hook_point(self, 'values', memory.values[:, :, None])
    hook_point(self, 'heads', attended.mixed[:, :, None])


def _step(
  cell: Cell, score: AttentionScore, matmul: Matmul, constants: Any, carry: Any, x: Any
) -> tuple[Any, Attended]:
  """Takes a step of all layers, and attends."""
  attending, (biases, state_biases) = constants
  befores, fed_BO = carry
  read_BI = jnp.where(x['starts'][:, None], 0, fed_BO)
  afters = []
  for i, before in enumerate(befores):
    restart = None if x['restarts'] is None else x['restarts'][i]
    before = recurrent.begin(before, x['starts'], restart)
    if i and x['kept'][i - 1] is not None:
      read_BI *= x['kept'][i - 1]
    x_BK = matmul(f'input_{i}', read_BI)
    if i:
      x_BK += biases[i - 1].astype(x_BK.dtype).reshape(1, -1)
    z_BK = matmul(f'state_{i}', before[0])
    after = recurrent.advance(cell, x_BK, z_BK, state_biases[i], before)
    afters.append(recurrent.hold(after, x['held'], before))
    read_BI = afters[-1][0]

  def single(name: str, y_B1I: Array) -> Array:
    return matmul(name, y_B1I[:, 0])[:, None]

  kept = None if x['kept_above'] is None else x['kept_above'][:, None]
  attended = _attend(score, single, attending, read_BI[:, None], x['visible'][:, None], kept)
  attended = Attended(*(part[:, 0] for part in attended))
  fed_BO = jnp.where(x['held'][:, None], fed_BO, attended.y)
  return (tuple(afters), fed_BO), attended


def _attend(
  score: AttentionScore,
  matmul: Matmul,
  attending: tuple[Memory, Array | None],
  h_BTD: Array,
  visible_BTS: Array,
  kept: Array | None,
) -> Attended:
  """Returns what states attend to; rows that share one of the memory are queries side by side."""
  memory, vector_A = attending
  rows, S = memory.segments.shape
  q_BTA = matmul('query', h_BTD)
  vector_A = None if vector_A is None else vector_A.astype(q_BTA.dtype)
  mixed, weights = align(
    score,
    q_BTA.reshape(rows, -1, q_BTA.shape[-1]),
    memory.keys,
    vector_A,
    memory.values,
    visible_BTS.reshape(rows, -1, S),
  )
  B, T, _ = h_BTD.shape
  mixed_BTM, weights_BTS = mixed.reshape(B, T, -1), weights.reshape(B, T, S)
  both = jnp.concatenate([h_BTD, mixed_BTM], axis=-1)
  y_BTO = jnp.tanh(matmul('out', both if kept is None else both * kept))
  return Attended(y_BTO, weights_BTS, mixed_BTM)


class Recurrent(nn.Module):
  """What the architectures have in common."""

  vocab_size: int
  context: int  # longest row that it is trained on; it reads longer ones
  d_model: int  # of embeddings
  tie_embeddings: bool = True  # the output head is the embedding
  dropout: float = 0.0
  init_std: float = 0.1
  vocab_multiple: int = 1  # rows of the table are rounded up to this
  dtype: str = 'float32'

  continues_prompts = False
  reads_on = True  # rows longer than `context` are read all the same

  def table(self, name: str, width: int) -> Array:
    """Returns a parameter (V, width): vectors of the vocabulary."""
    rows = -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple
    init = with_logical_partitioning(nn.initializers.normal(self.init_std), 'vocab', 'embed')
    return self.param(name, init, (rows, width))

  def embed(self, table_VD: Array, tokens_BT: Array) -> Array:
    """Returns the vectors of tokens (B, T, D), some of them dropped."""
    return dropout(self, jnp.take(table_VD, tokens_BT, axis=0), self.dropout).astype(self.dtype)

  def output(self, table_VD: Array, y_BTO: Array, cache: Any) -> Output:
    """Returns states and how they become logits; where O is not d_model they are mapped there."""
    y_BTO = dropout(self, y_BTO, self.dropout)
    if not self.tie_embeddings:
      bias_V = self.param(
        'bias', with_logical_partitioning(nn.initializers.zeros, 'vocab'), (len(table_VD),)
      )
      kernel_VO = self.table('unembedding', y_BTO.shape[-1])
      return Output(
        y_BTO, OutputHead(EmbeddingTable(kernel_VO), bias_V, self.vocab_size), {}, cache
      )
    if y_BTO.shape[-1] != self.d_model:
      y_BTO = Linear(
        (y_BTO.shape[-1], self.d_model),
        ('mlp', 'embed'),
        dtype=jnp.dtype(self.dtype),
        kernel_init=nn.initializers.glorot_uniform(),
        name='out',
      )(y_BTO)
    return Output(
      y_BTO, OutputHead(EmbeddingTable(table_VD), vocab_size=self.vocab_size), {}, cache
    )


class _AutoregressiveRecurrent(Recurrent):
  """A model that continues from its state, whatever the length of the rows."""

  cell: Callable[[], Cell] = recurrent.lstm
  d_hidden: int = 256
  depth: int = 1
  scan_unroll: int = 1

  def init_cache(self, batch_size: int, length: int) -> dict[str, Any]:
    """Returns what is remembered of rows before they are read; `length` does not matter."""
    del length
    begun = empty_state(
      make_layers(self.cell, Cell, 'model.cell'), batch_size, self.d_hidden, self.dtype
    )
    return {'layers': (begun,) * self.depth}

  def reorder_cache(self, cache: Mapping[str, Any], parents_BM: Array) -> dict[str, Any]:
    """Returns a cache of M beams a row, where beam m continues beam `parents_BM[b, m]`.

    The beams are rows of a batch, those of one row in succession. The encoded source is stored
    once.
    """

    def of(state: Array) -> Array:
      states_BND = state.reshape(len(parents_BM), -1, state.shape[-1])
      picked = jnp.take_along_axis(states_BND, parents_BM[:, :, None], axis=1)
      return picked.reshape(-1, state.shape[-1])

    return {**cache, **{k: jax.tree.map(of, cache[k]) for k in ('layers', 'fed') if k in cache}}


class Decoder(_AutoregressiveRecurrent):
  """A recurrent language model: `(batch, cache) -> Output` (Mikolov et al. 2010)."""

  continues_prompts = True

  @nn.compact
  def __call__(self, batch: Batch, cache: Any = None) -> Output:
    table_VD = self.table('embedding', self.d_model)
    layers = Layers(
      self.cell,
      self.d_hidden,
      self.depth,
      self.dropout,
      self.scan_unroll,
      self.dtype,
      name='decoder',
    )
    flow = recurrent.forward(batch['segments'], batch['positions'])
    x_BTD = self.embed(table_VD, batch['inputs'])
    y_BTD, carries = layers(x_BTD, flow, carries=cache and cache['layers'])
    return self.output(table_VD, y_BTD, cache and {'layers': carries})

  def flops_per_token(self, params: Params, context: int) -> float:
    """Returns the FLOPs of training on a token: 6 for each parameter of a matmul."""
    del context
    multiplied = sum(x.size for x in jax.tree.leaves(params) if x.ndim > 1)
    return 6 * (multiplied if self.tie_embeddings else multiplied - params['embedding'].size)


class Encoder(Recurrent):
  """An encoder and a head on what it read: `(batch) -> Output`, as lm.models.transformer.Encoder.

  The logits are one row a token, (B, T, C), or, where there is a `pooling`, one for each of the P
  examples that a row of the batch holds, (B, P, C).
  """

  encoder: Callable[..., nn.Module] | None = None  # (x_BSD, segments, positions) -> (B, S, M)
  num_classes: int | None = None  # outputs of the head; None for the vocabulary
  pooling: Callable[..., Array] | None = None  # (hidden_BTM, segments_BT, P) -> (B, P, M)

  @nn.compact
  def __call__(self, batch: Batch, cache: Any = None) -> Output:
    del cache  # there is nothing that a later call could use
    assert self.encoder is not None
    table_VD = self.table('embedding', self.d_model)
    encoder = self.encoder(dropout=self.dropout, dtype=self.dtype, name='encoder')
    x = encoder(self.embed(table_VD, batch['inputs']), batch['segments'], batch['positions'])
    if self.pooling is not None:
      x = self.pooling(x, batch['segments'], batch['examples'].shape[1])
    if self.num_classes is None:
      return self.output(table_VD, x, None)
    x = dropout(self, x, self.dropout)
    return Output(
      x, ClassifierHead(self.num_classes, x.shape[-1], self.init_std, name='head')(), {}
    )


class EncoderDecoder(_AutoregressiveRecurrent):
  """An encoder of the `source` and a decoder: `(batch, cache) -> Output`.

  The decoder's states begin with tanh(W s) of the `summary` s of the source. With a cache, a call
  whose batch has `source` reads it and keeps what the decoder attends to; later calls go without.
  """

  encoder: Callable[..., nn.Module] | None = None  # (x_BSD, segments, positions) -> (B, S, M)
  attention_score: Callable[[], AttentionScore] | None = (
    None  # None for a decoder that does not attend
  )
  input_feeding: bool = True
  summary: Callable[..., Array] = (
    bidirectional_final_states  # (states_BSM, segments_BS, P) -> (B, P, M)
  )
  share_embeddings: bool = True  # source and target have one table of embeddings

  @nn.compact
  def __call__(self, batch: Batch, cache: Any = None) -> Output:
    table_VD = self.table('embedding', self.d_model)
    memory, restarts = None, None
    if cache is not None:
      memory = cache.get('memory')
    if 'source' in batch:
      source_VD = (
        table_VD if self.share_embeddings else self.table('source_embedding', self.d_model)
      )
      memory, restarts = self._read(source_VD, batch)
    x_BTD = self.embed(table_VD, batch['inputs'])
    flow = recurrent.forward(batch['segments'], batch['positions'])
    if self.attention_score is None:
      layers = Layers(
        self.cell,
        self.d_hidden,
        self.depth,
        self.dropout,
        self.scan_unroll,
        self.dtype,
        name='decoder',
      )
      y, carries = layers(x_BTD, flow, restarts, cache and cache['layers'])
      return self.output(table_VD, y, cache and {'layers': carries})
    attentive = Attentive(
      self.cell,
      self.attention_score,
      self.d_model,
      self.d_hidden,
      self.depth,
      self.input_feeding,
      self.dropout,
      self.scan_unroll,
      self.dtype,
      name='decoder',
    )
    assert memory is not None, 'no source was read'
    carry = cache and (cache['layers'], cache['fed'])
    y, (carries, fed) = attentive(x_BTD, batch['segments'], flow, memory, restarts, carry)
    return self.output(table_VD, y, cache and {'layers': carries, 'fed': fed, 'memory': memory})

  def init_cache(self, batch_size: int, length: int) -> dict[str, Any]:
    cache = super().init_cache(batch_size, length)
    if self.attention_score is not None:
      cache['fed'] = jnp.zeros((batch_size, self.d_model), self.dtype)
    return cache

  def _read(self, table_VD: Array, batch: Batch) -> tuple[Memory | None, list[Carry]]:
    """Returns what the decoder attends to, and the states that it begins with, by step."""
    assert self.encoder is not None
    encoder = self.encoder(dropout=self.dropout, dtype=self.dtype, name='encoder')
    segments_BS = batch['source_segments']
    x_BSD = self.embed(table_VD, batch['source'])
    states_BSM = encoder(x_BSD, segments_BS, batch['source_positions'])
    M, states = states_BSM.shape[-1], make_layers(self.cell, Cell, 'model.cell').states
    P = batch['examples'].shape[1] if 'examples' in batch else 1
    shape = (M, self.depth * states, self.d_hidden)
    linear = self._linear(shape, ('embed', None, 'mlp'), bias=True, name='bridge')
    begin_BPLD = jnp.tanh(linear(self.summary(states_BSM, segments_BS, P)))
    of_T = jnp.maximum(batch['segments'] - 1, 0).T
    rows = jnp.arange(len(segments_BS))[None]
    begin_TBLD = begin_BPLD[rows, of_T]
    begins = [begin_TBLD[:, :, i] for i in range(self.depth * states)]
    restarts = [tuple(begins[i * states : (i + 1) * states]) for i in range(self.depth)]
    if self.attention_score is None:
      return None, restarts
    keys = self._linear((M, self.d_hidden), ('embed', 'mlp'), name='keys')(states_BSM)
    return Memory(keys, states_BSM, segments_BS), restarts

  def _linear(self, shape: tuple[int, ...], axes: tuple[str | None, ...], **kwargs: Any) -> Linear:
    init = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform', in_axis=0, out_axis=-1)
    return Linear(shape, axes, dtype=jnp.dtype(self.dtype), kernel_init=init, **kwargs)
