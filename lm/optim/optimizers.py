"""Optimizers: a learning-rate schedule and an Optax chain.

A schedule is `(peak, steps, warmup, final) -> (step -> rate)`. An optimizer of your own is an Optax
transformation in the public wrappers of `lm/optim/wrappers.py`: weight decay, freezing, and
learning-rate multipliers by parameter path.
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
  lr_multipliers,
  path_mask,
  path_name,
  require_found,
  stacks,
  standard_chain,
)
from lm.types import Params

Schedule = Callable[[jax.Array], jax.Array]


class Optimizer(NamedTuple):
  """An Optax transformation and the learning rate it follows."""

  transformation: optax.GradientTransformation
  schedule: Schedule


def constant(peak: float, steps: int, warmup: int, final: float) -> Schedule:
  """Linear warmup, then `peak` for good."""
  del steps, final
  return _after_warmup(peak, warmup, lambda step: jnp.full_like(step, peak))


def cosine(peak: float, steps: int, warmup: int, final: float) -> Schedule:
  """Linear warmup, then half a cosine from `peak` to `final * peak` at `steps`."""

  def decay(step):
    done = jnp.clip((step - warmup) / max(1, steps - warmup), 0, 1)
    return peak * (final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * done)))

  return _after_warmup(peak, warmup, decay)


def linear(peak: float, steps: int, warmup: int, final: float) -> Schedule:
  """Linear warmup, then a line from `peak` to `final * peak` at `steps`."""

  def decay(step):
    done = jnp.clip((step - warmup) / max(1, steps - warmup), 0, 1)
    return peak * (1 - (1 - final) * done)

  return _after_warmup(peak, warmup, decay)


def inverse_sqrt(peak: float, steps: int, warmup: int, final: float) -> Schedule:
  """Linear warmup to `peak`, then peak * sqrt(warmup / step) (Vaswani et al. 2017, eq. 3)."""
  del steps, final
  if warmup < 1:
    raise UserError(f'optim.warmup={warmup}: the inverse square root needs at least 1')
  return _after_warmup(peak, warmup, lambda step: peak * jnp.sqrt(warmup / jnp.maximum(step, 1)))


def warmup_stable_decay(
  peak: float, steps: int, warmup: int, final: float, decay: float = 0.2
) -> Schedule:
  """Linear warmup, `peak`, and over the last `decay` of the steps a line to `final * peak`.

  Hu et al. 2024 (MiniCPM), section 4.
  """
  start = steps * (1 - decay)

  def stable(step):
    done = jnp.clip((step - start) / max(1.0, steps - start), 0, 1)
    return peak * (1 - (1 - final) * done)

  return _after_warmup(peak, warmup, stable)


def _after_warmup(peak: float, warmup: int, then: Schedule) -> Schedule:
  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    rising = peak * (step + 1) / max(1, warmup)
    return jnp.where(step < warmup, rising, then(step))

  return schedule


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
  chain = standard_chain(direction, rate, weight_decay, decay, clip)
  chain = frozen(chain, freeze, freeze_until)
  return Optimizer(require_found(lr_multipliers(chain, layer_decay, rates), decay=decay), rate)


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
    experts: likewise; axis 1 is that of experts, each a matrix of its own.

  Raises:
    UserError: later, when the state is made: a matrix has axes that no pattern explains.
  """
  rate = schedule(learning_rate, steps, warmup, final)

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
  chain = standard_chain(direction, rate, weight_decay, decay, clip)
  chain = lr_multipliers(frozen(chain, freeze, freeze_until), layer_decay, rates)
  chain = require_found(chain, decay=decay)

  def init(params: Params):
    check(params)
    return chain.init(params)

  return Optimizer(optax.GradientTransformationExtraArgs(init, chain.update), rate)


def sgd(
  learning_rate: float,
  schedule: Callable[..., Schedule],
  steps: int,
  warmup: int = 0,
  final: float = 1e-4,
) -> Optimizer:
  """Stochastic gradient descent.

  Args:
    learning_rate: the peak of the schedule.
    schedule: `(peak, steps, warmup, final) -> (step -> rate)`.
    steps: length of the schedule.
    warmup: steps of linear rise from 0.
    final: the last rate as a fraction of the peak, for the schedules that decay.
  """
  rate = schedule(learning_rate, steps, warmup, final)
  return Optimizer(optax.scale_by_learning_rate(rate), rate)


def adagrad(
  learning_rate: float,
  schedule: Callable[..., Schedule],
  steps: int,
  warmup: int = 0,
  final: float = 1.0,
  begin: float = 1.0,
) -> Optimizer:
  """AdaGrad: the rate of each element falls with its squared gradients (Duchi et al. 2011).

  Args:
    learning_rate, schedule, steps, warmup, final: as in `sgd`.
    begin: what the sum of squares begins with; GloVe takes 1.
  """
  rate = schedule(learning_rate, steps, warmup, final)
  chain = optax.chain(optax.scale_by_rss(begin, eps=0.0), optax.scale_by_learning_rate(rate))
  return Optimizer(chain, rate)
