"""A recurrent decoder that attends to the states of an encoder."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from lm.mesh import constrain, named
from lm.models.recurrent_layers import Layer, Layers, made, nothing
from lm.nn import recurrent
from lm.nn.alignment import Score, align
from lm.nn.layers import dropout
from lm.nn.recurrent import Carry, Cell, Flow, Product
from lm.nn.tap import tap
from lm.types import Array


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
  score: Callable[[], Score]
  d_model: int  # O
  d_hidden: int  # of the layers
  depth: int
  input_feeding: bool
  dropout: float = 0.0
  unroll: int = 1
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
    cell, score = made(self.cell, Cell, 'model.cell'), made(self.score, Score, 'model.score')
    rows = segments_BT.reshape(len(memory.segments), -1)
    visible_BTS = (rows[:, :, None] == memory.segments[:, None]).reshape(B, T, -1)
    if carry is None:
      begun = nothing(cell, B, self.d_hidden, self.dtype)
      carry = (begun,) * self.depth, jnp.zeros((B, self.d_model), self.dtype)
    glorot, D = nn.initializers.glorot_uniform(), self.d_hidden
    A, M = memory.keys.shape[-1], memory.values.shape[-1]
    matrices = {
      'query': self.param('query', named(glorot, 'embed', 'mlp'), (D, A)),
      'out': self.param('out', named(glorot, 'mlp', 'embed'), (D + M, self.d_model)),
    }
    matrices = {name: kernel.astype(self.dtype) for name, kernel in matrices.items()}
    vector_A = None
    if score.vector:
      vector_A = self.param('vector', named(nn.initializers.normal(A**-0.5), None), (A,))
    attending = (memory, vector_A)
    run = functools.partial(self._fed, cell) if self.input_feeding else self._apart
    attended, carry = run(score, x_BTI, flow, attending, visible_BTS, matrices, restarts, carry)
    Sites(name='cross_attention')(attended, memory)
    return constrain(attended.y, 'batch', 'time', 'width'), carry

  def _apart(self, score, x_BTI, flow, attending, visible_BTS, matrices, restarts, carry):
    """All states first, and then what they are aligned with."""
    layers = Layers(
      self.cell, self.d_hidden, self.depth, self.dropout, self.unroll, self.dtype, name='layers'
    )
    h_BTD, carries = layers(x_BTI, flow, restarts, carry[0])
    B, T, _ = h_BTD.shape

    def product(name: str, x: Array) -> Array:
      return (x.reshape(B * T, -1) @ matrices[name]).reshape(B, T, -1)

    kept = self._kept((B, T, len(matrices['out'])))
    attended = _attend(score, product, attending, h_BTD, visible_BTS, kept)
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

    def step(product: Product, constants: Any, carry: Any, x: Any) -> tuple[Any, Attended]:
      return _step(cell, score, product, constants, carry, x)

    carry, attended = recurrent.scan(
      step, matrices, addends, (attending, biases), carry, xs, False, self.unroll
    )
    return Attended(*(part.swapaxes(0, 1) for part in attended)), carry

  def _kept(self, shape: tuple[int, ...]) -> Array | None:
    """Returns what dropout multiplies by, for loops cannot draw; None where it drops nothing."""
    if self.dropout == 0 or not self.has_rng('dropout'):
      return None
    return dropout(self, jnp.ones(shape, self.dtype), self.dropout)


class Sites(nn.Module):
  """Sites of lm.nn.tap, to read and not to edit, named as those of lm.nn.layers.Attention."""

  @nn.compact
  def __call__(self, attended: Attended, memory: Memory) -> None:
    tap(self, 'weights', attended.weights[:, None])
    tap(self, 'values', memory.values[:, :, None])
    tap(self, 'heads', attended.mixed[:, :, None])


def _step(
  cell: Cell, score: Score, product: Product, constants: Any, carry: Any, x: Any
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
    x_BK = product(f'input_{i}', read_BI)
    if i:
      x_BK += biases[i - 1].astype(x_BK.dtype).reshape(1, -1)
    z_BK = product(f'state_{i}', before[0])
    after = recurrent.advance(cell, x_BK, z_BK, state_biases[i], before)
    afters.append(recurrent.hold(after, x['held'], before))
    read_BI = afters[-1][0]

  def single(name: str, y_B1I: Array) -> Array:
    return product(name, y_B1I[:, 0])[:, None]

  kept = None if x['kept_above'] is None else x['kept_above'][:, None]
  attended = _attend(score, single, attending, read_BI[:, None], x['visible'][:, None], kept)
  attended = Attended(*(part[:, 0] for part in attended))
  fed_BO = jnp.where(x['held'][:, None], fed_BO, attended.y)
  return (tuple(afters), fed_BO), attended


def _attend(
  score: Score,
  product: Product,
  attending: tuple[Memory, Array | None],
  h_BTD: Array,
  visible_BTS: Array,
  kept: Array | None,
) -> Attended:
  """Returns what states attend to; rows that share one of the memory are queries side by side."""
  memory, vector_A = attending
  rows, S = memory.segments.shape
  q_BTA = product('query', h_BTD)
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
  y_BTO = jnp.tanh(product('out', both if kept is None else both * kept))
  return Attended(y_BTO, weights_BTS, mixed_BTM)
