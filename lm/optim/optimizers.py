"""Optimizers: a learning-rate schedule and an Optax chain.

`(peak, decay_steps, warmup_steps, final_lr_fraction)` are the arguments of each function that
returns a schedule, `step -> rate`. To add an optimizer, pass an Optax transformation to
`lm.optim.wrappers.wrap_direction`. It adds clipping, weight decay, freezing, and learning-rate
multipliers by parameter path.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lm.errors import UserError
from lm.optim.wrappers import (
  compile_pattern,
  is_stacked,
  path_name,
  stacks,
  wrap_direction,
  wrap_optimizer,
)
from lm.types import Optimizer, Params, Schedule


def constant(
  peak: float, decay_steps: int, warmup_steps: int, final_lr_fraction: float
) -> Schedule:
  """Linear warmup, then `peak` for good."""
  return _after_warmup(peak, warmup_steps, lambda step: jnp.full_like(step, peak))


def cosine(peak: float, decay_steps: int, warmup_steps: int, final_lr_fraction: float) -> Schedule:
  """Linear warmup, then half a cosine down to `final_lr_fraction * peak` at `decay_steps`."""

  def decay(step):
    done = _fraction(step, warmup_steps, decay_steps)
    return peak * (final_lr_fraction + (1 - final_lr_fraction) * 0.5 * (1 + jnp.cos(jnp.pi * done)))

  return _after_warmup(peak, warmup_steps, decay)


def linear(peak: float, decay_steps: int, warmup_steps: int, final_lr_fraction: float) -> Schedule:
  """Linear warmup, then linear decay to `final_lr_fraction * peak` at `decay_steps`."""

  def decay(step):
    return peak * (1 - (1 - final_lr_fraction) * _fraction(step, warmup_steps, decay_steps))

  return _after_warmup(peak, warmup_steps, decay)


def inverse_sqrt(
  peak: float, decay_steps: int, warmup_steps: int, final_lr_fraction: float
) -> Schedule:
  """Linear warmup to `peak`, then peak * sqrt(warmup_steps / step) (Vaswani et al. 2017, eq. 3)."""
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
  """Linear warmup, then `peak`, then linear decay to `final_lr_fraction * peak`.

  The decay takes the last `decay_fraction` of `decay_steps` (Hu et al. 2024, section 4).
  """

  def decay(step):
    done = _fraction(step, decay_steps * (1 - decay_fraction), decay_steps)
    return peak * (1 - (1 - final_lr_fraction) * done)

  return _after_warmup(peak, warmup_steps, decay)


def _after_warmup(peak: float, warmup_steps: int, then: Schedule) -> Schedule:
  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    rising = peak * (step + 1) / max(1, warmup_steps)
    return jnp.where(step < warmup_steps, rising, then(step))

  return schedule


def _fraction(step: jax.Array, start: float, stop: float) -> jax.Array:
  """Returns the fraction of the steps from `start` to `stop` that are done, in [0, 1]."""
  return jnp.clip((step - start) / max(1, stop - start), 0, 1)


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
    weight_decay ... lr_multipliers: as in `lm.optim.wrappers.wrap_direction`.
  """
  rate = schedule(learning_rate, decay_steps, warmup_steps, final_lr_fraction)
  chain = wrap_direction(
    optax.scale_by_adam(b1, b2, eps),
    rate,
    weight_decay,
    weight_decay_mask,
    clip_norm,
    freeze,
    freeze_until,
    layer_decay,
    lr_multipliers,
  )
  return Optimizer(chain, rate)


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

  The update of a matrix is its orthogonalized momentum, scaled to the root mean square of Adam's
  updates (Liu et al. 2025, section 2.2). One learning rate and one weight decay thus serve both.

  Args:
    learning_rate ... lr_multipliers: as in `adamw`.
    momentum: Nesterov momentum of the matrices.
    newton_schulz: iterations of the orthogonalization.
    matrices: regular expression on the paths of the matrices; axis 0 stacks layers.
    two_inputs: likewise, of those with two input axes (heads, head size) instead of one.
    several_outputs: likewise, of those with several output axes (heads, head size).
    experts: likewise, of those whose axis 1 stacks experts, which are separate matrices.

  Raises:
    UserError: a pattern is no regular expression; or, at `init`, a matrix has axes that no pattern
      explains.
  """
  rate = schedule(learning_rate, decay_steps, warmup_steps, final_lr_fraction)
  patterns = {
    'matrices': matrices,
    'two_inputs': two_inputs,
    'several_outputs': several_outputs,
    'experts': experts,
  }
  regexes = {key: compile_pattern(regex, f'optim.{key}') for key, regex in patterns.items()}

  def matches(key: str, path) -> bool:
    return regexes[key].search(path_name(path)) is not None

  def labels(params: Params) -> Params:
    return jax.tree_util.tree_map_with_path(
      lambda path, _: 'muon' if matches('matrices', path) else 'adam', params
    )

  def dimensions(path, x: jax.Array) -> optax.contrib.MuonDimensionNumbers:
    inputs = 2 if matches('two_inputs', path) else 1
    # An axis that is in neither tuple stacks separate matrices: axis 0 those of the layers, and
    # maybe axis 1 those of experts.
    axes = tuple(range(2 if matches('experts', path) else 1, x.ndim))
    return optax.contrib.MuonDimensionNumbers(axes[:inputs], axes[inputs:])

  def check(params: Params) -> None:
    stacked = stacks(params)
    for path, x in jax.tree_util.tree_leaves_with_path(params):
      if not matches('matrices', path):
        continue
      name, outputs = path_name(path), len(dimensions(path, x).output_axis)
      if not is_stacked(name, stacked):
        raise UserError(f'optim.matrices={matrices!r} finds {name}, which has no axis of layers')
      if outputs < 1 or (outputs > 1 and not matches('several_outputs', path)):
        raise UserError(
          f'optim: {name} of shape {x.shape} is no stack of matrices; match it by optim.experts '
          'if axis 1 stacks experts, by optim.two_inputs or optim.several_outputs if inputs or '
          'outputs have several axes, or exclude it from optim.matrices'
        )

  def scale(path, x: jax.Array) -> jax.Array:
    sizes = [math.prod(x.shape[axis] for axis in axes) for axes in dimensions(path, x)]
    return x * 0.2 * math.sqrt(max(sizes))

  orthogonal = optax.chain(
    optax.contrib.scale_by_muon(
      ns_steps=newton_schulz,
      beta=momentum,
      eps=eps,
      weight_dimension_numbers=lambda tree: jax.tree_util.tree_map_with_path(dimensions, tree),
    ),
    optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates)),
  )
  chain = wrap_direction(
    optax.partition({'muon': orthogonal, 'adam': optax.scale_by_adam(b1, b2, eps)}, labels),
    rate,
    weight_decay,
    weight_decay_mask,
    clip_norm,
    freeze,
    freeze_until,
    layer_decay,
    lr_multipliers,
  )

  def init(params: Params):
    check(params)
    return chain.init(params)

  return Optimizer(optax.GradientTransformationExtraArgs(init, chain.update), rate)


def from_optax(
  optimizer: Callable[..., optax.GradientTransformation],
  learning_rate: float,
  schedule: Callable[..., Schedule],
  decay_steps: int,
  warmup_steps: int = 0,
  final_lr_fraction: float = 0.1,
  weight_decay: float = 0.0,
  weight_decay_mask: str = r'(kernel|embedding)$',
  clip_norm: float = math.inf,
  freeze: str | None = None,
  freeze_until: int | None = None,
  layer_decay: float = 1.0,
  lr_multipliers: tuple[str, ...] = (),
  evaluated: Callable[[Any, Params], Params] | None = None,
) -> Optimizer:
  """Any optimizer of `optax` or `optax.contrib`, such as 'optax:lion(b2=0.98)'.

  Args:
    optimizer: takes `learning_rate`, which is the schedule, and maybe `weight_decay`, which is 0.
    learning_rate, schedule, decay_steps, warmup_steps, final_lr_fraction: as in `adamw`.
    weight_decay: coefficient of a decoupled decay, scaled by the rate.
    weight_decay_mask ... lr_multipliers: as in `lm.optim.wrappers.wrap_direction`.
    evaluated: (state of the optimizer, parameters) -> the parameters of evaluations, such as
      'optax.contrib:schedule_free_eval_params'.

  Raises:
    UserError: the optimizer takes no schedule, or has a weight decay of its own; or `evaluated`
      is combined with what changes the updates or the state.
  """
  rate = schedule(learning_rate, decay_steps, warmup_steps, final_lr_fraction)
  parameters = inspect.signature(optimizer).parameters
  if 'learning_rate' not in parameters:
    raise UserError('optim.optimizer takes no learning_rate; wrap it by lm.optim.wrappers')
  for key in ('learning_rate', 'weight_decay'):
    if key in getattr(optimizer, 'keywords', {}):
      raise UserError(f'optim.optimizer: give {key} as optim.{key} and not as an argument')
  if evaluated and (weight_decay or freeze or layer_decay != 1 or lr_multipliers):
    raise UserError(
      'optim.evaluated needs the updates of the optimizer alone: leave weight_decay=0, '
      'freeze=None, layer_decay=1 and lr_multipliers=()'
    )
  own = {'weight_decay': 0.0} if 'weight_decay' in parameters else {}
  try:
    transformation = optimizer(learning_rate=rate, **own)
  except TypeError as e:
    raise UserError(f'optim.optimizer does not take a schedule as learning_rate: {e}') from e
  chain = wrap_optimizer(
    transformation,
    rate,
    weight_decay,
    weight_decay_mask,
    clip_norm,
    freeze,
    freeze_until,
    layer_decay,
    lr_multipliers,
  )
  if evaluated is None:
    return Optimizer(chain, rate)
  return Optimizer(chain, rate, lambda params, state: evaluated(state[1], params))


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
    initial_accumulator_value: initial sum of the squared gradients; GloVe takes 1.
  """
  rate = schedule(learning_rate, decay_steps, warmup_steps, final_lr_fraction)
  chain = optax.chain(
    optax.scale_by_rss(initial_accumulator_value, eps=0.0), optax.scale_by_learning_rate(rate)
  )
  return Optimizer(chain, rate)
