"""Optimizers: a schedule, an Optax chain, and masks by regular expression on parameter paths."""

import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm.errors import UserError
from lm.types import Params

Schedule = Callable[[jax.Array], jax.Array]


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
  clip: float | None = 1.0,
  freeze: str | None = None,
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
    clip: largest global norm of the gradient, or None.
    freeze: regular expression on parameter paths; those it finds stay as they are.
  """
  rate = schedule(learning_rate, steps, warmup, final)
  chain = [
    optax.identity() if clip is None else clip_by_norm(clip),
    optax.scale_by_adam(b1, b2, eps),
    optax.add_decayed_weights(weight_decay, mask=lambda params: select(params, decay, 'decay')),
    optax.scale_by_learning_rate(rate),
  ]
  transformation = optax.with_extra_args_support(optax.chain(*chain))
  if freeze is None:
    return Optimizer(transformation, rate)

  def labels(params: Params) -> Params:
    frozen = select(params, freeze, 'freeze')
    return jax.tree.map(lambda f: 'frozen' if f else 'trained', frozen)

  parts = optax.partition({'trained': transformation, 'frozen': optax.set_to_zero()}, labels)

  def update(grads, state, params=None):
    # Without the norm of all gradients: what is frozen must not clip what is trained.
    return parts.update(grads, state, params)

  return Optimizer(optax.GradientTransformation(parts.init, update), rate)


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


def select(params: Params, pattern: str, key: str) -> Params:
  """Returns a tree of booleans: whether `pattern` is found in each parameter's path.

  Raises:
    UserError: the pattern is no regular expression, or finds no parameter.
  """
  try:
    regex = re.compile(pattern)
  except re.error as e:
    raise UserError(f'optim.{key}={pattern!r} is no regular expression: {e}') from e
  found = jax.tree_util.tree_map_with_path(
    lambda path, _: regex.search(path_name(path)) is not None, params
  )
  if not any(jax.tree.leaves(found)):
    raise UserError(f'optim.{key}={pattern!r} is found in no parameter path')
  return found


def path_name(path) -> str:
  """Returns a tree path as 'layers/layer_0/mlp/up/kernel'."""
  # Boxes of partitioning metadata add an attribute to the path that is no part of the name.
  return '/'.join(str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey))


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
