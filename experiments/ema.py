"""A variant: evaluations and programs use an exponential moving average of the parameters.

  python -m lm.train --config=experiments/ema.py --workdir=runs/ema

The average forgets 1 % in a step and starts at 0; dividing by 1 - 0.99^t corrects that (Kingma and
Ba 2015, section 3, for moments). It is in the optimizer's state, and training does not see it. Text
and sizes are those of the quickstart. Two CPU cores; the time is not measured.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm.config.base import base, select_variant, smoke
from lm.optim import optimizers
from lm.types import Array, Optimizer, Params, Schedule


class Averaged(NamedTuple):
  """The state of AdamW, and the average of the parameters after each update."""

  count: Array
  average: Params
  inner: Any


def ema(schedule: Callable[..., Schedule], decay: float = 0.99, **arguments) -> Optimizer:
  """Returns AdamW with these arguments, whose evaluated parameters are an average."""
  chain, rate, _ = optimizers.adamw(schedule=schedule, **arguments)

  def init(params):
    average = jax.tree.map(jnp.zeros_like, params)
    return Averaged(jnp.zeros((), jnp.int32), average, chain.init(params))

  def update(grads, state, params, **extra):
    updates, inner = chain.update(grads, state.inner, params, **extra)
    after = optax.apply_updates(params, updates)
    average = optax.incremental_update(after, state.average, 1 - decay)
    return updates, Averaged(state.count + 1, average, inner)

  def evaluated(params, state):
    total = 1 - decay ** jnp.maximum(state.count, 1)
    mean = jax.tree.map(lambda x: x / total, state.average)
    return jax.tree.map(lambda m, x: jnp.where(state.count > 0, m, x), mean, params)

  return Optimizer(optax.GradientTransformationExtraArgs(init, update), rate, evaluated)


def get_config(arg=''):
  config = base()
  with config.unlocked():
    config.optim.update({'fn': 'ema:ema', 'decay': 0.99})
  return select_variant(config, arg, smoke=smoke)
