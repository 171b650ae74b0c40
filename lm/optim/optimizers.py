"""Optimizers: a learning-rate schedule and an Optax chain.

A schedule is `(peak, decay_steps, warmup_steps, final_lr_fraction) -> (step -> rate)`. An
optimizer of your own is an Optax transformation in the public wrappers of `lm/optim/wrappers.py`:
weight decay, freezing, and learning-rate multipliers by parameter path.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm.errors import UserError
from lm.optim.wrappers import freeze as frozen
from lm.optim.wrappers import (
  is_stacked,
  path_mask,
  path_name,
  require_found,
  scale_lr,
  stacks,
  standard_chain,
)
from lm.types import Params

Schedule = Callable[[jax.Array], jax.Array]


class Optimizer(NamedTuple):
  """An Optax transformation and the learning rate it follows."""

  transformation: optax.GradientTransformation
  schedule: Schedule


def constant(
  peak: float, decay_steps: int, warmup_steps: int, final_lr_fraction: float
) -> Schedule:
  """Linear warmup, then `peak` for good."""
  del decay_steps, final_lr_fraction
  return _after_warmup(peak, warmup_steps, lambda step: jnp.full_like(step, peak))


def cosine(peak: float, decay_steps: int, warmup_steps: int, final_lr_fraction: float) -> Schedule:
  """Linear warmup, then half a cosine down to `final_lr_fraction * peak` at `decay_steps`."""

  def decay(step):
    done = jnp.clip((step - warmup_steps) / max(1, decay_steps - warmup_steps), 0, 1)
    return peak * (final_lr_fraction + (1 - final_lr_fraction) * 0.5 * (1 + jnp.cos(jnp.pi * done)))

  return _after_warmup(peak, warmup_steps, decay)


def linear(peak: float, decay_steps: int, warmup_steps: int, final_lr_fraction: float) -> Schedule:
  """Linear warmup, then a line down to `final_lr_fraction * peak` at `decay_steps`."""

  def decay(step):
    done = jnp.clip((step - warmup_steps) / max(1, decay_steps - warmup_steps), 0, 1)
    return peak * (1 - (1 - final_lr_fraction) * done)

  return _after_warmup(peak, warmup_steps, decay)


def inverse_sqrt(
  peak: float, decay_steps: int, warmup_steps: int, final_lr_fraction: float
) -> Schedule:
  """Linear warmup to `peak`, then peak * sqrt(warmup_steps / step) (Vaswani et al. 2017, eq. 3)."""
  del decay_steps, final_lr_fraction
  if warmup_steps < 1:
    raise UserError(f'optim.warmup_steps={warmup_steps}: the inverse square root needs at least 1')
  return _after_warmup(
    peak, warmup_steps, lambda step: peak * jnp.sqrt(warmup_steps / jnp.maximum(step, 1))
  )


def warmup_stable_decay(
  peak: float,
  decay_steps: int,
  warmup_steps: int,
  final_lr_fraction: float,
  decay_fraction: float = 0.2,
) -> Schedule:
  """Linear warmup, `peak`, then a line down to `final_lr_fraction * peak`.

  The line takes the last `decay_fraction` of the steps (Hu et al. 2024, section 4).
  """
  start = decay_steps * (1 - decay_fraction)

  def stable(step):
    done = jnp.clip((step - start) / max(1.0, decay_steps - start), 0, 1)
    return peak * (1 - (1 - final_lr_fraction) * done)

  return _after_warmup(peak, warmup_steps, stable)


def _after_warmup(peak: float, warmup_steps: int, then: Schedule) -> Schedule:
  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    rising = peak * (step + 1) / max(1, warmup_steps)
    return jnp.where(step < warmup_steps, rising, then(step))

  return schedule


def adamw(
  learning_rate: float,
  schedule: Callable[..., Schedule],
  decay_steps: int,
  warmup_steps: int = 0,
  final_lr_fraction: float = 0.1,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  weight_decay: float = 0.1,
  weight_decay_mask: str = r'(kernel|embedding)$',
  clip_norm: float = 1.0,
  freeze: str | None = None,
  freeze_until: int | None = None,
  layer_decay: float = 1.0,
  lr_multipliers: tuple[str, ...] = (),
) -> Optimizer:
  """AdamW with decoupled decay (Loshchilov and Hutter 2019).

  Args:
    learning_rate: the peak of the schedule.
    schedule: `(peak, decay_steps, warmup_steps, final_lr_fraction) -> (step -> rate)`.
    decay_steps: length of the schedule.
    warmup_steps: steps of linear rise from 0.
    final_lr_fraction: the last rate as a fraction of the peak, for the schedules that decay.
    b1, b2, eps: Adam's.
    weight_decay: coefficient of the decay, scaled by the rate.
    weight_decay_mask: regular expression on parameter paths; those it finds are decayed.
    clip_norm: largest global norm of the gradient; inf clips nothing.
    freeze: regular expression on parameter paths; those it finds stay as they are.
    freeze_until: the number of steps they stay for; None for good. Until then they have moments,
      but neither move nor count in the norm that is clipped.
    layer_decay: the rate falls by this factor from each layer to the one below, see `multipliers`.
    lr_multipliers: 'PATTERN -> MULTIPLIER' of the rate, see `multipliers`.
  """
  rate = schedule(learning_rate, decay_steps, warmup_steps, final_lr_fraction)
  direction = optax.scale_by_adam(b1, b2, eps)
  chain = standard_chain(direction, rate, weight_decay, weight_decay_mask, clip_norm)
  chain = frozen(chain, freeze, freeze_until)
  return Optimizer(
    require_found(
      scale_lr(chain, layer_decay, lr_multipliers), weight_decay_mask=weight_decay_mask
    ),
    rate,
  )


def muon(
  learning_rate: float,
  schedule: Callable[..., Schedule],
  decay_steps: int,
  warmup_steps: int = 0,
  final_lr_fraction: float = 0.1,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  weight_decay: float = 0.1,
  weight_decay_mask: str = r'(kernel|embedding)$',
  clip_norm: float = 1.0,
  freeze: str | None = None,
  freeze_until: int | None = None,
  layer_decay: float = 1.0,
  lr_multipliers: tuple[str, ...] = (),
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
    learning_rate ... lr_multipliers: as in `adamw`.
    momentum: of the matrices, Nesterov's.
    newton_schulz: iterations that make it orthogonal.
    matrices: regular expression on parameter paths; those it finds are stacked on axis 0.
    two_inputs: likewise; matrices whose input is two axes (heads, head size) and not one.
    several_outputs: likewise; matrices whose output is several axes (heads, head size).
    experts: likewise; axis 1 is that of experts, each a matrix of its own.

  Raises:
    UserError: later, when the state is made: a matrix has axes that no pattern explains.
  """
  rate = schedule(learning_rate, decay_steps, warmup_steps, final_lr_fraction)

  def labels(params: Params) -> Params:
    found = path_mask(params, matrices, 'matrices')
    return jax.tree.map(lambda f: 'muon' if f else 'adam', found)

  def axes(updates: Params) -> Params:
    def leaf(two: bool, expert: bool, x: jax.Array) -> optax.contrib.MuonDimensionNumbers:
      inputs = 2 if two else 1
      # Axis 0 is that of the stacked layers; axes in neither tuple are of separate matrices.
      every = tuple(range(2 if expert else 1, x.ndim))
      return optax.contrib.MuonDimensionNumbers(every[:inputs], every[inputs:])

    two, of_experts = (
      path_mask(updates, two_inputs, 'two_inputs'),
      path_mask(updates, experts, 'experts'),
    )
    return jax.tree.map(leaf, two, of_experts, updates)

  def check(params: Params) -> None:
    many = path_mask(params, several_outputs, 'several_outputs')
    trees = (path_mask(params, matrices, 'matrices'), many, axes(params), params)
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
  chain = standard_chain(direction, rate, weight_decay, weight_decay_mask, clip_norm)
  chain = scale_lr(frozen(chain, freeze, freeze_until), layer_decay, lr_multipliers)
  chain = require_found(chain, weight_decay_mask=weight_decay_mask)

  def init(params: Params):
    check(params)
    return chain.init(params)

  return Optimizer(optax.GradientTransformationExtraArgs(init, chain.update), rate)


def sgd(
  learning_rate: float,
  schedule: Callable[..., Schedule],
  decay_steps: int,
  warmup_steps: int = 0,
  final_lr_fraction: float = 1e-4,
) -> Optimizer:
  """Stochastic gradient descent.

  Args:
    learning_rate: the peak of the schedule.
    schedule: `(peak, decay_steps, warmup_steps, final_lr_fraction) -> (step -> rate)`.
    decay_steps: length of the schedule.
    warmup_steps: steps of linear rise from 0.
    final_lr_fraction: the last rate as a fraction of the peak, for the schedules that decay.
  """
  rate = schedule(learning_rate, decay_steps, warmup_steps, final_lr_fraction)
  return Optimizer(optax.scale_by_learning_rate(rate), rate)


def adagrad(
  learning_rate: float,
  schedule: Callable[..., Schedule],
  decay_steps: int,
  warmup_steps: int = 0,
  final_lr_fraction: float = 1.0,
  initial_accumulator_value: float = 1.0,
) -> Optimizer:
  """AdaGrad: the rate of each element falls with its squared gradients (Duchi et al. 2011).

  Args:
    learning_rate, schedule, decay_steps, warmup_steps, final_lr_fraction: as in `sgd`.
    initial_accumulator_value: what the sum of squares begins with; GloVe takes 1.
  """
  rate = schedule(learning_rate, decay_steps, warmup_steps, final_lr_fraction)
  chain = optax.chain(
    optax.scale_by_rss(initial_accumulator_value, eps=0.0), optax.scale_by_learning_rate(rate)
  )
  return Optimizer(chain, rate)
