"""A resumed run whose schedule is another: the jump of its learning rate is reported."""

import math
import pathlib

import jax.numpy as jnp
from ml_collections import ConfigDict

from lm.config import resolve
from lm.optim.optimizers import Optimizer
from lm.workdir import experiment


def length_of(workdir: pathlib.Path) -> int | None:
  """Returns `optim.decay_steps` of the config in a workdir; None where there is none yet."""
  file = workdir / 'config.json'
  try:
    return int(experiment.from_json(file.read_text()).optim.decay_steps)
  except (OSError, ValueError, AttributeError, TypeError):
    return None  # of a new run, or damaged, which is reported where the config is compared


def jump(
  config: ConfigDict, optimizer: Optimizer, older: int | None, updates: int
) -> dict[str, float] | None:
  """Returns the rates of the next update by the older schedule and by the new; None if they agree.

  Args:
    config: of the run.
    optimizer: made of it.
    older: the `optim.decay_steps` that the run was trained by so far.
    updates: how many updates were made; skipped steps are none.
  """
  if not updates or older is None or older == config.optim.get('decay_steps'):
    return None
  section = resolve.build_section(ConfigDict({**config.optim, 'decay_steps': older}), 'optim')
  count = jnp.int32(updates)
  before = float(resolve.call(section, 'optim').schedule(count))
  after = float(optimizer.schedule(count))
  return None if math.isclose(before, after, rel_tol=1e-4) else {'before': before, 'after': after}


def line(rates: dict[str, float], older: int | None, newer: int) -> str:
  """Returns the jump as one line."""
  return (
    f'optim.decay_steps={newer} and no longer {older}: the next update has a learning rate of '
    f'{rates["after"]:.3g}, and by the older schedule it would be {rates["before"]:.3g}'
  )
