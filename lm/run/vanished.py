"""Training that trains nothing: no targets, a loss of 0, a gradient of 0."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lm.data import batches
from lm.errors import UserError
from lm.optim.wrappers import multipliers, path_mask, path_name
from lm.run import placement
from lm.run.step import OF_THE_STEP
from lm.types import Array, Batch, Objective, Params

_LOSS = 'loss'  # the name of the loss to `allow_zero`


def check_targets(
  rows: batches.AnyRows, transforms: Sequence[batches.Transform], config: ConfigDict
) -> None:
  """Raises UserError where no target of the first batch counts."""
  first = batches.batch_at(rows, transforms, config.batch_size, config.seed, 0)
  weights = first.get('weights')
  if weights is not None and not np.any(weights) and not _allowed(config, _LOSS):
    raise UserError(
      'data: the weights of all targets in the first batch are 0, so that there is nothing to '
      'train on; see the weights that data.convert gives, data.transforms and data.too_long, or '
      f'{_how(_LOSS)}'
    )


def check_loss(
  step: int,
  values: Mapping[str, float],
  objective: Objective,
  batch: Callable[[], Batch],
  config: ConfigDict,
) -> None:
  """Raises UserError where the loss of a step is exactly 0.

  Args:
    step: its number.
    values: its metrics, of which those that are not of every step are the terms of its loss.
    objective: the run's.
    batch: returns its batch, to find the cause.
    config: the whole configuration.
  """
  terms = [value for name, value in values.items() if name not in OF_THE_STEP]
  if any(terms) or _allowed(config, _LOSS):
    return
  weights = placement.local_copy(dict(objective.normalizers(batch())))
  cause = 'though there are targets that count'
  if not any(float(weight) for weight in weights.values()):
    cause = 'for no target of its batch has a weight above 0'
  raise UserError(f'objective: the loss of step {step} is exactly 0, {cause}; {_how(_LOSS)}')


def check_gradients(params: Params, zeros: Array, config: ConfigDict) -> None:
  """Raises UserError where the gradient of a parameter that is trained is 0 in the first step.

  Args:
    params: of any step.
    zeros: (L,), which of their leaves had a gradient of 0.
    config: the whole configuration, of which optim says what is not trained.
  """
  names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  moves = jax.tree.leaves(_moves(params, config.optim))
  vanished = [
    name
    for name, zero, moved in zip(names, np.asarray(zeros), moves, strict=True)
    if zero and moved and not _allowed(config, name)
  ]
  if vanished:
    more = f' and of {len(vanished) - 1} more' if len(vanished) > 1 else ''
    raise UserError(
      f'model: the gradient of {vanished[0]}{more} is exactly 0 in step 1: the loss does not '
      'depend on it; see how the objective and the model use it, freeze it by optim.freeze, or '
      f'{_how(vanished[0])}'
    )


def _moves(params: Params, optim: ConfigDict) -> Params:
  """Returns a tree of booleans: whether the optimizer changes each parameter."""
  freeze = optim.get('freeze')
  frozen = path_mask(params, freeze, 'freeze') if freeze else jax.tree.map(lambda _: False, params)
  rates = multipliers(params, 1.0, tuple(optim.get('rates') or ()))
  return jax.tree.map(lambda f, rate: bool(np.any(rate)) and not f, frozen, rates)


def _allowed(config: ConfigDict, name: str) -> bool:
  pattern = config.get('allow_zero')  # which older configs lack
  return bool(pattern) and re.search(pattern, name) is not None


def _how(name: str) -> str:
  return f"allow it by --config.allow_zero='{name}'"


def check_pattern(config: ConfigDict) -> None:
  """Raises UserError where `allow_zero` is no regular expression."""
  pattern: Any = config.get('allow_zero') or ''
  try:
    re.compile(pattern)
  except re.error as e:
    raise UserError(f'allow_zero={pattern!r} is no regular expression: {e}') from e
