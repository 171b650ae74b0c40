"""Optimizers: a schedule, an Optax chain, and masks by regular expression on parameter paths."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm.errors import UserError
from lm.optim.paths import (
  check_found,
  find,
  is_stacked,
  multipliers,
  parse_rules,
  path_name,
  stacks,
)
from lm.optim.schedules import (
  Schedule,
  constant,
  cosine,
  inverse_sqrt,
  linear,
  warmup_stable_decay,
)
from lm.types import Array, Params

__all__ = [
  'Optimizer',
  'Schedule',
  'adamw',
  'clip_by_norm',
  'constant',
  'cosine',
  'find',
  'inverse_sqrt',
  'linear',
  'multipliers',
  'muon',
  'parse_rules',
  'path_name',
  'warmup_stable_decay',
]


class Optimizer(NamedTuple):
  """An Optax transformation and the learning rate it follows."""

  transformation: optax.GradientTransformation
  schedule: Schedule


def adamw(
  learning_rate: float,
  schedule: Callable[..., Schedule],
  steps: int,
  warmup: int = 0,
  final: float = 0.1,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  weight_decay: float = 0.1,
  decay: str = r'(kernel|embedding)$',
  clip: float = 1.0,
  freeze: str | None = None,
  freeze_until: int | None = None,
  layer_decay: float = 1.0,
  rates: tuple[str, ...] = (),
) -> Optimizer:
  """AdamW with decoupled decay (Loshchilov and Hutter 2019).

  Args:
    learning_rate: the peak of the schedule.
    schedule: `(peak, steps, warmup, final) -> (step -> rate)`.
    steps: length of the schedule.
    warmup: steps of linear rise from 0.
    final: the last rate as a fraction of the peak, for the schedules that decay.
    b1, b2, eps: Adam's.
    weight_decay: coefficient of the decay, scaled by the rate.
    decay: regular expression on parameter paths; those it finds are decayed.
    clip: largest global norm of the gradient; inf clips nothing.
    freeze: regular expression on parameter paths; those it finds stay as they are.
    freeze_until: the number of steps they stay for; None for good. Until then they have moments,
      but neither move nor count in the norm that is clipped.
    layer_decay: the rate falls by this factor from each layer to the one below, see `multipliers`.
    rates: 'PATTERN -> MULTIPLIER' of the rate, see `multipliers`.
  """
  rate = schedule(learning_rate, steps, warmup, final)
  direction = optax.scale_by_adam(b1, b2, eps)
  chain = _decayed(direction, rate, weight_decay, decay, clip)
  whole = _frozen(chain, freeze, freeze_until)
  return Optimizer(_at_rates(whole, decay, layer_decay, rates), rate)


def muon(
  learning_rate: float,
  schedule: Callable[..., Schedule],
  steps: int,
  warmup: int = 0,
  final: float = 0.1,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  weight_decay: float = 0.1,
  decay: str = r'(kernel|embedding)$',
  clip: float = 1.0,
  freeze: str | None = None,
  freeze_until: int | None = None,
  layer_decay: float = 1.0,
  rates: tuple[str, ...] = (),
  momentum: float = 0.95,
  newton_schulz: int = 5,
  matrices: str = r'/layers/.*kernel$',
  two_inputs: str = r'/out/kernel$',
  several_outputs: str = r'/(q|k|v|kv|qkv)/kernel$',
  experts: str = r'/experts?[_/]',
) -> Optimizer:
  """Muon for the matrices of the layers, AdamW for everything else (Jordan et al. 2024).

  A matrix moves along its momentum made orthogonal, scaled so that its entries have the size of
  Adam's (Liu et al. 2025, section 2.2): one learning rate and one decay serve both.

  Args:
    learning_rate, schedule, steps, warmup, final, b1, b2, eps: as in `adamw`.
    weight_decay, decay, clip, freeze, freeze_until, layer_decay, rates: as in `adamw`.
    momentum: of the matrices, Nesterov's.
    newton_schulz: iterations that make it orthogonal.
    matrices: regular expression on parameter paths; those it finds are stacked on axis 0.
    two_inputs: likewise; matrices whose input is two axes (heads, head size) and not one.
    several_outputs: likewise; matrices whose output is several axes (heads, head size).
    experts: likewise; on axis 1 lie experts, of which each is a matrix of its own.

  Raises:
    UserError: later, when the state is made: a matrix has axes that no pattern explains.
  """
  rate = schedule(learning_rate, steps, warmup, final)

  def labels(params: Params) -> Params:
    found = find(params, matrices, 'matrices')
    return jax.tree.map(lambda f: 'muon' if f else 'adam', found)

  def axes(updates: Params) -> Params:
    def leaf(two: bool, expert: bool, x: jax.Array) -> optax.contrib.MuonDimensionNumbers:
      inputs = 2 if two else 1
      # Axis 0 is that of the stacked layers; axes in neither tuple are of separate matrices.
      every = tuple(range(2 if expert else 1, x.ndim))
      return optax.contrib.MuonDimensionNumbers(every[:inputs], every[inputs:])

    two, of_experts = find(updates, two_inputs, 'two_inputs'), find(updates, experts, 'experts')
    return jax.tree.map(leaf, two, of_experts, updates)

  def check(params: Params) -> None:
    many = find(params, several_outputs, 'several_outputs')
    trees = (find(params, matrices, 'matrices'), many, axes(params), params)
    stacked = stacks(params)

    def leaf(path, chosen: bool, many: bool, numbers: Any, x: jax.Array) -> None:
      if not chosen:
        return
      name, outputs = path_name(path), len(numbers.output_axis)
      if not is_stacked(name, stacked):
        raise UserError(f'optim.matrices={matrices!r} finds {name}, which has no axis of layers')
      if outputs < 1 or (outputs > 1 and not many):
        raise UserError(
          f'optim: {name} of shape {x.shape} is no stack of matrices; say by optim.experts that '
          'axis 1 is of experts, by optim.two_inputs or optim.several_outputs that a side has '
          'several axes, or leave it out of optim.matrices'
        )

    jax.tree_util.tree_map_with_path(leaf, *trees)

  def scaled(x: jax.Array, numbers: optax.contrib.MuonDimensionNumbers) -> jax.Array:
    sides = [math.prod(x.shape[axis] for axis in side) for side in numbers]
    return x * 0.2 * math.sqrt(max(sides))

  orthogonal = optax.chain(
    optax.contrib.scale_by_muon(
      ns_steps=newton_schulz, beta=momentum, eps=eps, weight_dimension_numbers=axes
    ),
    optax.stateless(lambda updates, _: jax.tree.map(scaled, updates, axes(updates))),
  )
  direction = optax.partition(
    {'muon': orthogonal, 'adam': optax.scale_by_adam(b1, b2, eps)}, labels
  )
  chain = _decayed(direction, rate, weight_decay, decay, clip)
  whole = _at_rates(_frozen(chain, freeze, freeze_until), decay, layer_decay, rates)

  def init(params: Params):
    check(params)
    return whole.init(params)

  return Optimizer(optax.GradientTransformationExtraArgs(init, whole.update), rate)


def _decayed(
  direction: optax.GradientTransformation,
  rate: Schedule,
  weight_decay: float,
  decay: str,
  clip: float,
) -> optax.GradientTransformationExtraArgs:
  """Returns the chain that every optimizer is: clip, direction, decoupled decay, rate."""
  chain = optax.chain(
    clip_by_norm(clip),
    direction,
    optax.add_decayed_weights(weight_decay, mask=lambda params: find(params, decay, 'decay')),
    optax.scale_by_learning_rate(rate),
  )
  return optax.with_extra_args_support(chain)


def _frozen(
  chain: optax.GradientTransformationExtraArgs, freeze: str | None, until: int | None
) -> optax.GradientTransformationExtraArgs:
  if freeze is None:
    if until is not None:
      raise UserError(f'optim.freeze_until={until}: optim.freeze says what, and it is empty')
    return chain
  return _partly_frozen(chain, freeze) if until is None else _thawing(chain, freeze, until)


def _partly_frozen(
  chain: optax.GradientTransformation, freeze: str
) -> optax.GradientTransformationExtraArgs:
  def labels(params: Params) -> Params:
    frozen = find(params, freeze, 'freeze')
    check_found(frozen, freeze, 'freeze')
    return jax.tree.map(lambda f: 'frozen' if f else 'trained', frozen)

  parts = optax.partition({'trained': chain, 'frozen': optax.set_to_zero()}, labels)

  def update(grads, state, params=None, **_):
    # Without the norm of all gradients: what is frozen must not clip what is trained.
    return parts.update(grads, state, params)

  return optax.GradientTransformationExtraArgs(parts.init, update)


class Thawing(NamedTuple):
  """The state of an optimizer that does not train everything from the start."""

  updates: Array  # () int32, how many were made
  chain: Any  # the state of the optimizer itself


def _thawing(
  chain: optax.GradientTransformationExtraArgs, freeze: str, until: int
) -> optax.GradientTransformationExtraArgs:
  if until < 1:
    raise UserError(f'optim.freeze_until={until} is not a positive number of steps')

  def init(params: Params) -> Thawing:
    check_found(find(params, freeze, 'freeze'), freeze, 'freeze')
    return Thawing(jnp.zeros((), jnp.int32), chain.init(params))

  def update(grads, state, params=None, **_):
    def without_frozen(tree: Params) -> Params:
      thawed = state.updates >= until
      return jax.tree.map(
        lambda f, x: jnp.where(thawed, x, jnp.zeros_like(x)) if f else x,
        find(tree, freeze, 'freeze'),
        tree,
      )

    # The moments see every gradient: Adam's, begun at the thaw without the correction for a first
    # step, would make steps several times too long.
    norm = optax.tree.norm(without_frozen(grads))
    updates, inner = chain.update(grads, state.chain, params, gradient_norm=norm)
    return without_frozen(updates), Thawing(state.updates + 1, inner)

  return optax.GradientTransformationExtraArgs(init, update)


def _at_rates(
  whole: optax.GradientTransformationExtraArgs,
  decay: str,
  layer_decay: float,
  rates: Iterable[str],
) -> optax.GradientTransformationExtraArgs:
  """Returns an optimizer with its patterns checked and its updates at rates of their own."""
  if not 0 < layer_decay <= 1:
    raise UserError(f'optim.layer_decay={layer_decay} is not above 0 and at most 1')
  rates = tuple(rates)

  def init(params: Params):
    # Here and not in the chain, which never sees the frozen parameters: they may be all it finds.
    check_found(find(params, decay, 'decay'), decay, 'decay')
    multipliers(params, layer_decay, rates)  # raises what is wrong with them
    return whole.init(params)

  def update(grads, state, params=None, **extra):
    updates, state = whole.update(grads, state, params, **extra)
    if layer_decay != 1 or rates:
      by = multipliers(updates, layer_decay, rates)
      updates = jax.tree.map(lambda u, m: u * jnp.asarray(m, u.dtype), updates, by)
    return updates, state

  return optax.GradientTransformationExtraArgs(init, update)


def clip_by_norm(largest: float) -> optax.GradientTransformationExtraArgs:
  """Returns optax.clip_by_global_norm as a product with one scalar.

  Optax chooses leaf by leaf, which keeps XLA from fusing it with what follows: at 124M parameters
  on a CPU that costs as much as the rest of AdamW. `update` takes the global norm of the
  gradients as `gradient_norm` from whoever knows it.
  """

  def update(grads, state, params=None, *, gradient_norm=None, **_):
    del params
    norm = optax.tree.norm(grads) if gradient_norm is None else gradient_norm
    scale = jnp.where(norm < largest, 1.0, largest / norm)
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads), state

  return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
