"""Stacks of recurrent layers, one way or both, over rows (B, T, I) of several segments."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import spec
from lm.errors import UserError
from lm.mesh import constrain, named
from lm.nn import recurrent
from lm.nn.layers import dropout
from lm.nn.recurrent import Carry, Cell, Flow, Weights
from lm.nn.tap import tap
from lm.types import Array

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
    gates = named(glorot, 'embed', None, 'mlp')
    states = named(
      lambda key, shape, dtype=jnp.float32: jnp.stack(
        [orthogonal(k, (shape[0], shape[2]), dtype) for k in jax.random.split(key, G)], 1
      ),
      'embed',
      None,
      'mlp',
    )
    zeros = named(nn.initializers.zeros, None, 'mlp')
    return Weights(
      self.param('input', gates, (width, G, D)),
      self.param('bias', zeros, (G, D)),
      self.param('state', states, (D, G, D)),
      self.param('state_bias', zeros, (G, D)) if self.cell.apart else None,
    )


def made(fn: Callable[[], Any], kind: type[Kind], key: str) -> Kind:
  """Returns what a function without arguments makes, which is to be of a kind.

  Raises:
    UserError: it needs arguments, or makes something else; `key` names it.
  """
  value = spec.call(fn, key)
  if not isinstance(value, kind):
    raise UserError(f'{key}: the function makes a {type(value).__name__} and not a {kind.__name__}')
  return value


def nothing(cell: Cell, batch_size: int, d_hidden: int, dtype: str) -> Carry:
  """Returns what is remembered of rows of which nothing was read."""
  return tuple(jnp.zeros((batch_size, d_hidden), dtype) for _ in range(cell.states))


class Layers(nn.Module):
  """Layers that read from left to right: `(x_BTI, flow, restarts, carries) -> (y_BTD, carries)`.

  Dropout lies between layers and not between steps (Zaremba et al. 2014). `restarts` are, a layer,
  the states (T, B, D) of where states begin, or None for zeros; `carries` what is remembered of the
  rows, a layer, or None for nothing.
  """

  cell: Callable[[], Cell]
  d_hidden: int
  depth: int
  dropout: float = 0.0
  unroll: int = 1
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self,
    x_BTI: Array,
    flow: Flow,
    restarts: Sequence[Carry] | None = None,
    carries: Sequence[Carry] | None = None,
  ) -> tuple[Array, tuple[Carry, ...]]:
    cell, after = made(self.cell, Cell, 'model.cell'), []
    x_TBI = x_BTI.swapaxes(0, 1).astype(self.dtype)
    for i in range(self.depth):
      if i:
        x_TBI = dropout(self, x_TBI, self.dropout)
      weights = Layer(cell, self.d_hidden, name=f'layer_{i}')(x_TBI.shape[-1])
      begun = nothing(cell, len(x_BTI), self.d_hidden, self.dtype)
      x_TBI, carry = recurrent.read(
        cell,
        weights.from_input(x_TBI),
        weights,
        flow,
        begun if carries is None else carries[i],
        None if restarts is None else restarts[i],
        unroll=self.unroll,
      )
      x_TBI = tap(self, f'states_{i}', x_TBI)
      after.append(carry)
    return constrain(x_TBI.swapaxes(0, 1), 'batch', 'time', 'width'), tuple(after)


class Bidirectional(nn.Module):
  """An encoder whose layers read both ways: `(x_BSI, segments, positions) -> (B, S, 2 D)`.

  The features of reading to the right come before those of reading to the left (Schuster and
  Paliwal 1997); each layer reads both of the layer before.
  """

  cell: Callable[[], Cell]
  d_hidden: int  # of each direction
  depth: int = 1
  unroll: int = 1
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x_BSI: Array, segments_BS: Array, positions_BS: Array) -> Array:
    cell = made(self.cell, Cell, 'model.cell')
    begun = nothing(cell, len(x_BSI), self.d_hidden, self.dtype)
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
          unroll=self.unroll,
        )
        read.append(y_SBD)
      x_SBI = tap(self, f'states_{i}', jnp.concatenate(read, axis=-1))
    return constrain(x_SBI.swapaxes(0, 1), 'batch', 'time', 'width')


class Unidirectional(nn.Module):
  """An encoder that reads from left to right: `(x_BSI, segments, positions) -> (B, S, D)`."""

  cell: Callable[[], Cell]
  d_hidden: int
  depth: int = 1
  unroll: int = 1
  dropout: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x_BSI: Array, segments_BS: Array, positions_BS: Array) -> Array:
    layers = Layers(
      self.cell, self.d_hidden, self.depth, self.dropout, self.unroll, self.dtype, name='layers'
    )
    return layers(x_BSI, recurrent.forward(segments_BS, positions_BS))[0]
