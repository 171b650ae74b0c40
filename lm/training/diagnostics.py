"""Diagnostics of a run: non-finite steps, losses and gradients of 0, jumps of the learning rate."""

import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lm.components import Components
from lm.config import resolve
from lm.data import batches
from lm.data.packed_rows import Rows
from lm.errors import UserError
from lm.optim.wrappers import multipliers, path_mask, path_name
from lm.parallel import mesh, multihost
from lm.parallel.mesh import with_mesh
from lm.training.train_step import OF_THE_STEP, draw_key, for_objective, gradients
from lm.types import Array, Batch, Objective, Optimizer, Params, TrainState
from lm.workdir import experiment


def write_nonfinite(
  workdir: pathlib.Path,
  step: int,
  values: Mapping[str, float],
  functions: Components,
  seed: int,
  state: TrainState,
  batch: Batch,
) -> pathlib.Path:
  """Writes workdir/nonfinite/STEP.json and the batch as STEP.npz; returns the first.

  The file has the metrics, and the count of non-finite elements of each parameter and gradient.
  The gradient of the batch is computed again for it.

  Args:
    workdir: the run's directory.
    step: the last of the non-finite steps in a row.
    values: its metrics.
    functions: of the run.
    seed: of the run.
    state: after the step, or a few steps later, since earlier states were donated. The file has the
      number of its steps as `parameters_after_step`.
    batch: of the step.
  """
  folder = workdir / 'nonfinite'
  arrays: dict[str, Any] = {k: np.asarray(x) for k, x in mesh.gather_to_local_device(batch).items()}
  key = draw_key(jax.random.fold_in(jax.random.key(seed), step - 1))
  sample = functions.objective.sample
  batch = batch if sample is None else sample(batch, key)
  found = with_mesh(gradients, functions.mesh, functions.rules)

  @jax.jit
  def again(params: Params, frozen: Params, batch: Batch) -> tuple[Params, dict[str, Array]]:
    apply, join = for_objective(functions, frozen)
    return found(functions.objective, apply, params, batch, None, join=join)

  grads, terms = again(state.params, state.frozen, batch)
  record = {
    'step': step,
    'parameters_after_step': int(state.step),
    'metrics': {name: repr(value) for name, value in values.items()},
    'terms_without_dropout': {name: repr(float(value)) for name, value in terms.items()},
    'parameters': _not_finite(state.params),
    'gradients': _not_finite(grads),
  }
  file = folder / f'{step}.json'
  if multihost.is_primary():
    folder.mkdir(exist_ok=True)
    np.savez(folder / f'{step}.npz', **arrays)
    file.write_text(json.dumps(record, indent=2) + '\n')
  return file


def _not_finite(tree) -> dict[str, int]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  count = jax.jit(lambda x: jnp.sum(~jnp.isfinite(x)))  # a leaf may be sharded over hosts
  counts = {path_name(path): int(count(x)) for path, x in leaves}
  return {name: count for name, count in counts.items() if count}


_LOSS = 'loss'  # the name by which the pattern `allow_zero` allows a loss of 0


def check_targets(rows: Rows, transforms: Sequence[batches.Transform], config: ConfigDict) -> None:
  """Raises UserError if all targets of the first batch have weight 0."""
  first = batches.batch_at(rows, transforms, config.batch_size, config.seed, 0)
  weights = first.get('weights')
  if weights is not None and not np.any(weights) and not _allowed(config, _LOSS):
    raise UserError(
      'data: all targets in the first batch have weight 0, so there is nothing to train on; '
      'check the weights from data.converter, then data.transforms and data.too_long, or '
      f'{_how_to_allow(_LOSS)}'
    )


def check_loss(
  step: int,
  values: Mapping[str, float],
  objective: Objective,
  batch: Callable[[], Batch],
  config: ConfigDict,
) -> None:
  """Raises UserError if the loss of a step is exactly 0.

  Args:
    step: counted from 1.
    values: the metrics of the step; those outside OF_THE_STEP are terms of its loss.
    objective: of the run.
    batch: returns the batch of the step, to find the cause.
    config: of the run.
  """
  terms = [value for name, value in values.items() if name not in OF_THE_STEP]
  if any(terms) or _allowed(config, _LOSS):
    return
  weights = mesh.gather_to_local_device(dict(objective.normalizers(batch())))
  cause = 'though targets have weights above 0'
  if not any(float(weight) for weight in weights.values()):
    cause = 'because no target of its batch has a weight above 0'
  raise UserError(
    f'objective: the loss of step {step} is exactly 0, {cause}; {_how_to_allow(_LOSS)}'
  )


def check_gradients(params: Params, zeros: Array, config: ConfigDict) -> None:
  """Raises UserError if the gradient of a trained parameter is 0 in the first step.

  Args:
    params: of any step.
    zeros: (L,) 1 for each leaf with a gradient of 0.
    config: of the run; its `optim` section says which parameters are frozen.
  """
  names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  trained = jax.tree.leaves(_trained(params, config.optim))
  vanished = [
    name
    for name, zero, is_trained in zip(names, np.asarray(zeros), trained, strict=True)
    if zero and is_trained and not _allowed(config, name)
  ]
  if vanished:
    more = f' and of {len(vanished) - 1} more' if len(vanished) > 1 else ''
    raise UserError(
      f'model: the gradient of {vanished[0]}{more} is exactly 0 in step 1: the loss does not '
      'depend on it; see how the objective and the model use it, freeze it by optim.freeze, or '
      f'{_how_to_allow(vanished[0])}'
    )


def _trained(params: Params, optim: ConfigDict) -> Params:
  """Returns a tree of booleans: whether the optimizer changes each parameter."""
  freeze = optim.get('freeze')
  frozen = path_mask(params, freeze, 'freeze') if freeze else jax.tree.map(lambda _: False, params)
  rates = multipliers(params, 1.0, tuple(optim.get('lr_multipliers') or ()))
  return jax.tree.map(lambda f, rate: bool(np.any(rate)) and not f, frozen, rates)


def _allowed(config: ConfigDict, name: str) -> bool:
  pattern = config.get('allow_zero')  # which older configs lack
  return bool(pattern) and re.search(pattern, name) is not None


def _how_to_allow(name: str) -> str:
  return f"allow it by --config.allow_zero='{name}'"


def check_pattern(config: ConfigDict) -> None:
  """Raises UserError if `allow_zero` is no regular expression."""
  pattern: Any = config.get('allow_zero') or ''
  try:
    re.compile(pattern)
  except re.error as e:
    raise UserError(f'allow_zero={pattern!r} is no regular expression: {e}') from e


def schedule_length(workdir: pathlib.Path) -> int | None:
  """Returns `optim.decay_steps` of the config in a workdir; None where there is none yet."""
  file = workdir / 'config.json'
  try:
    return int(experiment.from_json(file.read_text()).optim.decay_steps)
  except (OSError, ValueError, AttributeError, TypeError):
    return None  # a new run has no file; a damaged one is reported when configs are compared


def schedule_jump(
  config: ConfigDict, optimizer: Optimizer, older: int | None, updates: int
) -> dict[str, float] | None:
  """Returns the learning rate of the next update by the old and new schedule; None if equal.

  Args:
    config: of the run.
    optimizer: of the config.
    older: `optim.decay_steps` of the run before it was resumed.
    updates: count of updates so far, without skipped steps.
  """
  if not updates or older is None or older == config.optim.get('decay_steps'):
    return None
  section = resolve.build_section(ConfigDict({**config.optim, 'decay_steps': older}), 'optim')
  count = jnp.int32(updates)
  before = float(resolve.call(section, 'optim').schedule(count))
  after = float(optimizer.schedule(count))
  return None if math.isclose(before, after, rel_tol=1e-4) else {'before': before, 'after': after}


def schedule_jump_line(rates: dict[str, float], older: int | None, newer: int) -> str:
  """Returns the jump as one line."""
  return (
    f'optim.decay_steps={newer} and no longer {older}: the next update has a learning rate of '
    f'{rates["after"]:.3g}, and by the older schedule it would be {rates["before"]:.3g}'
  )
