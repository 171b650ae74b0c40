"""Optimizers: a schedule, an Optax chain, and masks by regular expression on parameter paths."""

import math
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
  clip: float = 1.0,
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
    clip: largest global norm of the gradient; inf clips nothing.
    freeze: regular expression on parameter paths; those it finds stay as they are.
  """
  rate = schedule(learning_rate, steps, warmup, final)
  direction = optax.scale_by_adam(b1, b2, eps)
  return Optimizer(_decayed(direction, rate, weight_decay, decay, clip, freeze), rate)


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
  momentum: float = 0.95,
  newton_schulz: int = 5,
  matrices: str = r'/layers/.*kernel$',
  two_inputs: str = r'/out/kernel$',
) -> Optimizer:
  """Muon for the matrices of the layers, AdamW for everything else (Jordan et al. 2024).

  A matrix moves along its momentum made orthogonal, scaled so that its entries have the size of
  Adam's (Liu et al. 2025, section 2.2): one learning rate and one decay serve both.

  Args:
    learning_rate, schedule, steps, warmup, final, b1, b2, eps: as in `adamw`.
    weight_decay, decay, clip, freeze: as in `adamw`.
    momentum: of the matrices, Nesterov's.
    newton_schulz: iterations that make it orthogonal.
    matrices: regular expression on parameter paths; those it finds are stacked on axis 0.
    two_inputs: likewise; matrices whose input is two axes (heads, head size) and not one.
  """
  rate = schedule(learning_rate, steps, warmup, final)

  def labels(params: Params) -> Params:
    found = find(params, matrices, 'matrices')
    return jax.tree.map(lambda f: 'muon' if f else 'adam', found)

  def axes(updates: Params) -> Params:
    def leaf(two: bool, x: jax.Array) -> optax.contrib.MuonDimensionNumbers:
      inputs = 2 if two else 1
      every = tuple(range(1, x.ndim))  # axis 0 is that of the stacked layers
      return optax.contrib.MuonDimensionNumbers(every[:inputs], every[inputs:])

    return jax.tree.map(leaf, find(updates, two_inputs, 'two_inputs'), updates)

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
  return Optimizer(_decayed(direction, rate, weight_decay, decay, clip, freeze), rate)


def _decayed(
  direction: optax.GradientTransformation,
  rate: Schedule,
  weight_decay: float,
  decay: str,
  clip: float,
  freeze: str | None,
) -> optax.GradientTransformationExtraArgs:
  """Returns the chain that every optimizer is: clip, direction, decoupled decay, rate."""
  trained = optax.chain(
    clip_by_norm(clip),
    direction,
    optax.add_decayed_weights(weight_decay, mask=lambda params: find(params, decay, 'decay')),
    optax.scale_by_learning_rate(rate),
  )
  whole = trained if freeze is None else _partly_frozen(trained, freeze)

  def init(params: Params):
    # Here and not in the chain, which never sees the frozen parameters: they may be all it finds.
    _check_found(find(params, decay, 'decay'), decay, 'decay')
    return whole.init(params)

  return optax.GradientTransformationExtraArgs(init, whole.update)


def _partly_frozen(
  trained: optax.GradientTransformation, freeze: str
) -> optax.GradientTransformationExtraArgs:
  def labels(params: Params) -> Params:
    frozen = find(params, freeze, 'freeze')
    _check_found(frozen, freeze, 'freeze')
    return jax.tree.map(lambda f: 'frozen' if f else 'trained', frozen)

  parts = optax.partition({'trained': trained, 'frozen': optax.set_to_zero()}, labels)

  def update(grads, state, params=None, **_):
    # Without the norm of all gradients: what is frozen must not clip what is trained.
    return parts.update(grads, state, params)

  return optax.GradientTransformationExtraArgs(parts.init, update)


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


def find(params: Params, pattern: str, key: str) -> Params:
  """Returns a tree of booleans: whether `pattern` is found in each parameter's path.

  Raises:
    UserError: the pattern is no regular expression; `key` is the leaf of `optim` that holds it.
  """
  try:
    regex = re.compile(pattern)
  except re.error as e:
    raise UserError(f'optim.{key}={pattern!r} is no regular expression: {e}') from e
  return jax.tree_util.tree_map_with_path(
    lambda path, _: regex.search(path_name(path)) is not None, params
  )


def _check_found(found: Params, pattern: str, key: str) -> None:
  if not any(jax.tree.leaves(found)):
    raise UserError(f'optim.{key}={pattern!r} is found in no parameter path')


def path_name(path) -> str:
  """Returns a tree path as 'decoder/layers/layer_0/mlp/up/kernel'."""
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
