"""Recurrent cells, the loop that runs them, and the attention of recurrent decoders.

An attention score is a pure function of queries and keys that are projected to one width A.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.nn.attention import MASKED
from lm.types import Array


class AttentionScore(NamedTuple):
  """A score of queries (B, T, A) and keys (B, S, A): `fn(q, k, vector_A) -> (B, T, S)`.

  With `vector`, the score has a parameter `vector_A`; otherwise that argument is None.
  """

  fn: Callable[[Array, Array, Array | None], Array]
  vector: bool


def additive() -> AttentionScore:
  """v tanh(W q + U k) (Bahdanau et al. 2015, appendix A.1.2), given W q and U k."""

  def score(q_BTA: Array, k_BSA: Array, vector_A: Array | None) -> Array:
    assert vector_A is not None

    # One query at a time, because the sums (B, T, S, A) would take too much memory.
    @jax.checkpoint
    def score_one(q_BA: Array) -> Array:
      return jnp.tanh(q_BA[:, None] + k_BSA) @ vector_A

    return jax.lax.map(score_one, q_BTA.swapaxes(0, 1)).swapaxes(0, 1)

  return AttentionScore(score, vector=True)


def multiplicative() -> AttentionScore:
  """q k, the `general` score of Luong et al. 2015 if queries and keys are projected."""

  def score(q_BTA: Array, k_BSA: Array, vector_A: Array | None) -> Array:
    return jnp.einsum('bta,bsa->bts', q_BTA, k_BSA)

  return AttentionScore(score, vector=False)


def align(
  score: AttentionScore,
  q_BTA: Array,
  k_BSA: Array,
  vector_A: Array | None,
  values_BSM: Array,
  visible_BTS: Array,
) -> tuple[Array, Array]:
  """Returns the weighted values for each query (B, T, M), and the weights (B, T, S) float32.

  The result of a query without any visible key (padding) is finite.
  """
  scores_BTS = score.fn(q_BTA, k_BSA, vector_A).astype(jnp.float32)
  weights_BTS = jax.nn.softmax(jnp.where(visible_BTS, scores_BTS, MASKED), axis=-1)
  mixed_BTM = jnp.einsum('bts,bsm->btm', weights_BTS.astype(values_BSM.dtype), values_BSM)
  return mixed_BTM, weights_BTS


# The state of a cell, arrays (B, D); the first one is the output of the cell.
Carry = tuple[Array, ...]


class Cell(NamedTuple):
  """One step of a recurrence: `step(sums_BGD, carry) -> carry`, with an axis G of gates.

  `sums_BGD` are W x + U h + b, the inputs of the nonlinearities. With `separate`, the step is
  `step(from_input_BGD, from_state_BGD, carry) -> carry`. It receives W x + b and U h + c as two
  arrays, where c is a second bias.
  """

  gates: int
  states: int  # the count of arrays in a carry
  step: Callable[..., Carry]
  separate: bool = False


def elman(activation: Callable[[Array], Array] = jnp.tanh) -> Cell:
  """h' = activation(W x + U h + b) (Elman 1990); textbooks often take `jax.nn:sigmoid`."""

  def step(sums_BGD: Array, carry: Carry) -> Carry:
    return (activation(sums_BGD)[:, 0],)

  return Cell(gates=1, states=1, step=step)


def lstm(forget_bias: float = 1.0) -> Cell:
  """Long short-term memory with a forget gate (Hochreiter and Schmidhuber 1997, Gers et al. 2000).

  The gates are in the order input, forget, candidate, output.

  Args:
    forget_bias: added to the forget gate, so that a new network remembers (Jozefowicz et al. 2015).
  """

  def step(sums_BGD: Array, carry: Carry) -> Carry:
    i, f, g, o = (sums_BGD[:, k] for k in range(4))
    c_BD = jax.nn.sigmoid(f + forget_bias) * carry[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c_BD), c_BD

  return Cell(gates=4, states=2, step=step)


def gru() -> Cell:
  """Gated recurrent unit (Cho et al. 2014), reset after the matmul as in cuDNN and PyTorch.

  The gates are in the order reset, update, candidate.
  """

  def step(x_BGD: Array, z_BGD: Array, carry: Carry) -> Carry:
    (h_BD,) = carry
    reset = jax.nn.sigmoid(x_BGD[:, 0] + z_BGD[:, 0])
    update = jax.nn.sigmoid(x_BGD[:, 1] + z_BGD[:, 1])
    candidate = jnp.tanh(x_BGD[:, 2] + reset * z_BGD[:, 2])
    return ((1 - update) * candidate + update * h_BD,)

  return Cell(gates=3, states=1, step=step, separate=True)


class Weights(NamedTuple):
  """The parameters of a layer with G gates and inputs of width I; K below is G * D."""

  input_IGD: Array
  bias_GD: Array
  state_DGD: Array
  state_bias_GD: Array | None = None  # for cells with `separate`

  def from_input(self, x: Array, rows: slice = slice(None)) -> Array:
    """Returns W x + b, (..., K), of inputs (..., I) that multiply `rows` of the kernel W."""
    y = x.reshape(-1, x.shape[-1]) @ self.matrix(rows).astype(x.dtype)
    y += self.bias_GD.astype(x.dtype).reshape(1, -1)
    return y.reshape(*x.shape[:-1], -1)

  def matrix(self, rows: slice = slice(None)) -> Array:
    """Returns `rows` of the input kernel as a matrix (I, K)."""
    kernel_IGD = self.input_IGD[rows]
    return kernel_IGD.reshape(len(kernel_IGD), -1)

  def state(self, dtype: Any) -> Array:
    """Returns the kernel of the state as a matrix (D, K)."""
    return self.state_DGD.reshape(self.state_DGD.shape[0], -1).astype(dtype)


class ResetMask(NamedTuple):
  """The steps at which a state is reset, and the padding, which leaves the state as it is.

  Segments of a row are thus independent, and the last state is that of the last token.
  """

  reset: Array  # (B, T) bool
  padding: Array  # (B, T) bool


def forward_resets(segments_BT: Array, positions_BT: Array) -> ResetMask:
  """Returns the resets of reading from left to right, at position 0."""
  return ResetMask((positions_BT == 0) & (segments_BT > 0), segments_BT == 0)


def backward_resets(segments_BT: Array) -> ResetMask:
  """Returns the resets of reading from right to left, at the last token of each segment."""
  after_BT = jnp.pad(segments_BT, ((0, 0), (0, 1)))[:, 1:]
  return ResetMask(segments_BT != after_BT, segments_BT == 0)


def reset_carry(carry: Carry, reset_B: Array, initial: Carry | None) -> Carry:
  """Returns the carry, with the rows where `reset_B` is True set to `initial`, or to zeros."""
  initial = tuple(map(jnp.zeros_like, carry)) if initial is None else initial
  return freeze_carry(carry, reset_B, initial)


def freeze_carry(carry: Carry, padding_B: Array, before: Carry) -> Carry:
  """Returns the carry, with the rows where `padding_B` is True taken from `before`."""
  return tuple(jnp.where(padding_B[:, None], b, s) for b, s in zip(before, carry, strict=True))


def step_cell(
  cell: Cell, x_BK: Array | None, z_BK: Array, bias_GD: Array | None, carry: Carry
) -> Carry:
  """Returns the carry after a step.

  Args:
    cell: of the layer.
    x_BK: the matmul of the input; None where `z_BK` includes it.
    z_BK: the matmul of the state.
    bias_GD: added to `z_BK`, for cells with `separate`.
    carry: before the step.
  """

  def gates(y_BK: Array) -> Array:
    return y_BK.reshape(len(y_BK), cell.gates, -1)

  if not cell.separate:
    return cell.step(gates(z_BK if x_BK is None else x_BK + z_BK), carry)
  assert x_BK is not None and bias_GD is not None
  return cell.step(gates(x_BK), gates(z_BK) + bias_GD.astype(z_BK.dtype)[None], carry)


def run_layer(
  cell: Cell,
  x_TBI: Array,
  weights: Weights,
  resets: ResetMask,
  carry: Carry,
  initial: Carry | None = None,
  reverse: bool = False,
  unroll: int = 1,
) -> tuple[Array, Carry]:
  """Runs a layer over rows step by step.

  Args:
    cell: of the layer.
    x_TBI: the inputs of all steps.
    weights: of the layer; cast to the dtype of x.
    resets: the steps at which states are reset, and padding.
    carry: before the first step.
    initial: arrays (T, B, D): a reset at step t sets the carry to their values at t; None resets
      to zeros.
    reverse: whether to read from the last step to the first.
    unroll: steps per iteration of the loop; changes no result.

  Returns:
    The states (T, B, D) after each step, and the carry after the last.
  """

  def step(matmul, bias_GD, carry, xs):
    x_BK, reset_B, padding_B, initial = xs
    before = reset_carry(carry, reset_B, initial)
    after = step_cell(cell, x_BK, matmul('state', before[0]), bias_GD, before)
    after = freeze_carry(after, padding_B, before)
    return after, after[0]

  x_TBK = weights.from_input(x_TBI)
  matrices = {'state': weights.state(x_TBK.dtype)}
  addends = {} if cell.separate else {'state': x_TBK}
  xs = (x_TBK if cell.separate else None, resets.reset.T, resets.padding.T, initial)
  carry, y_TBD = scan(step, matrices, addends, weights.state_bias_GD, carry, xs, reverse, unroll)
  return y_TBD, carry


# matmul(name, x_BI) -> x_BI @ weights[name] + addends[name], where the latter exist, and
# step(matmul, constants, carry, x) -> (carry, y)
Matmul = Callable[[str, Array], Array]
Step = Callable[[Matmul, Any, Any, Any], tuple[Any, Any]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 6, 7))
def scan(
  step: Step,
  weights: dict[str, Array],
  addends: dict[str, Array],
  constants: Any,
  carry: Any,
  xs: Any,
  reverse: bool = False,
  unroll: int = 1,
) -> tuple[Any, Any]:
  """Runs `jax.lax.scan` of a step whose matmuls have names, each used once per step.

  The gradient of a kernel W used as y_t = x_t W + a_t is the sum over t of x_t^T da_t. The backward
  loop returns the da_t, and the sum is one matmul after it.

  Args:
    step: closes over no traced array.
    weights: matrices (I, O) by name.
    addends: by the same names, addends of some of the matmuls: (steps, B, O).
    constants: arrays that are the same in all steps.
    carry: the carry before the first step.
    xs: arrays with the steps along axis 0.
    reverse: whether to go from the last step to the first.
    unroll: steps per iteration of the loop.

  Raises:
    ValueError: a step uses one matrix twice.
  """
  after, _ = _scan(step, weights, addends, constants, carry, xs, reverse, unroll, record=False)
  return after


def _scan(step, weights, addends, constants, carry, xs, reverse, unroll, record: bool):
  """Returns the results of `scan`, and, with `record`, the inputs (steps, B, I) of each matmul."""

  def body(carry, x_and_addends):
    x, added = x_and_addends
    inputs = {}

    def matmul(name: str, x_BI: Array) -> Array:
      if name in inputs:
        raise ValueError(f'a step multiplies by {name!r} twice; give each matmul its own name')
      inputs[name] = x_BI
      y_BO = x_BI @ weights[name]
      return y_BO + added[name] if name in added else y_BO

    carry, y = step(matmul, constants, carry, x)
    return carry, (y, inputs if record else None)

  carry, (ys, inputs) = jax.lax.scan(body, carry, (xs, addends), reverse=reverse, unroll=unroll)
  return (carry, ys), inputs


def _scan_fwd(step, weights, addends, constants, carry, xs, reverse, unroll):
  def run(addends, constants, carry, xs):
    return _scan(step, weights, addends, constants, carry, xs, reverse, unroll, record=True)

  shapes = {}

  def matmul(name: str, x_BI: Array) -> Array:
    y_BO = x_BI @ weights[name]
    shapes[name] = (len(jax.tree.leaves(xs)[0]), *y_BO.shape)
    return y_BO

  # The gradient of a matmul's result is the gradient of its addend. Matmuls without an addend get
  # zeros as one.
  first = jax.tree.map(lambda x: x[0], xs)
  jax.eval_shape(functools.partial(step, matmul), constants, carry, first)
  zeros = {
    name: jnp.zeros(shape, weights[name].dtype)
    for name, shape in shapes.items()
    if name not in addends
  }
  out, backward, inputs = jax.vjp(run, addends | zeros, constants, carry, xs, has_aux=True)
  return out, (backward, inputs, weights, {name: None for name in addends})


def _scan_bwd(step, reverse, unroll, residuals, cotangents):
  backward, inputs, weights, addends = residuals
  errors, constants, carry, xs = backward(cotangents)
  kernels = {
    name: jnp.einsum('tbi,tbo->io', inputs[name], errors[name]).astype(weight.dtype)
    for name, weight in weights.items()
  }
  return kernels, {name: errors[name] for name in addends}, constants, carry, xs


scan.defvjp(_scan_fwd, _scan_bwd)
