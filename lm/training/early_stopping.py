"""Early stopping: a run ends when a metric has not improved for some evaluations.

Goodfellow et al. 2016 (Deep Learning), algorithm 7.1.

The state is saved with the checkpoints, so that a resumed run stops at the same step as an
uninterrupted one. A step is saved before it is evaluated: its checkpoint has the state before that
evaluation, and a resumed run applies the evaluation again.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from lm.errors import UserError, did_you_mean


class Stopping(NamedTuple):
  """The best value of a metric so far, and the evaluations since."""

  metric: str
  best: float | None = None  # the last value that was an improvement; None before the first one
  best_step: int | None = None
  since: int = 0  # evaluations after it


def check_monitored(config: ConfigDict, directions: Mapping[str, bool | None]) -> None:
  """Raises UserError if a monitored metric does not exist or has no direction.

  Args:
    config: of the run.
    directions: of all metrics of the evaluations, by name.
  """
  monitored = {}
  best = config.checkpoint.monitor
  # A run without sets may have no metric with a direction: then no checkpoint is kept as the best.
  directed = any(direction is not None for direction in directions.values())
  if config.checkpoint.keep_best and (best in directions or config.eval.sets or directed):
    monitored['checkpoint.monitor'] = best
  elif not config.checkpoint.keep_last:
    raise UserError(
      'checkpoint.keep_last=0 keeps no checkpoint, because no metric of this run says which one is '
      'best; set it to 1 or more'
    )
  if config.early_stopping.patience:
    monitored[_key(config)] = _metric(config)
  for key, metric in monitored.items():
    if directions.get(metric) is not None:
      continue
    if metric in directions:
      raise UserError(
        f'{key}={metric!r}: nothing says whether its highest value is the best; the builder of the '
        'metric must declare it: '
        f'Metric(..., higher_is_better={{{metric.rpartition("/")[2]!r}: True}})'
      )
    known = ', '.join(name for name, direction in directions.items() if direction is not None)
    keeps_best = key == 'checkpoint.monitor' and config.checkpoint.keep_best
    remedy = '; checkpoint.keep_best=0 keeps no best one' if keeps_best else ''
    raise UserError(
      f'{key}={metric!r} is no metric of this run{did_you_mean(metric, directions)}; there are '
      f'{known or "none"}{remedy}'
    )


def restore(config: ConfigDict, saved: Mapping[str, Any] | None) -> Stopping | None:
  """Returns the saved state or an initial one; None without early stopping.

  A state that was saved for another metric is ignored.
  """
  if not config.early_stopping.patience:
    return None
  metric = _metric(config)
  return Stopping(**saved) if saved and saved['metric'] == metric else Stopping(metric)


def update(
  seen: Stopping,
  step: int,
  values: Mapping[str, float],
  config: ConfigDict,
  higher_is_better: bool,
) -> Stopping:
  """Returns the state after an evaluation; a value that is not finite is never an improvement.

  Args:
    seen: the state before the evaluation.
    step: the evaluated step.
    values: by name.
    config: of the run.
    higher_is_better: the direction of the metric.

  Raises:
    UserError: the metric is not among the values.
  """
  if seen.metric not in values:
    known = ', '.join(sorted(values))
    raise UserError(
      f'{_key(config)}={seen.metric!r} was not found{did_you_mean(seen.metric, values)}; '
      f'the evaluation has {known}'
    )
  value = float(values[seen.metric])
  if (
    math.isfinite(value) and _gain(seen, value, higher_is_better) > config.early_stopping.min_delta
  ):
    return Stopping(seen.metric, value, step)
  return seen._replace(since=seen.since + 1)


def _gain(seen: Stopping, value: float, higher_is_better: bool) -> float:
  if seen.best is None:
    return math.inf
  return value - seen.best if higher_is_better else seen.best - value


def should_stop(seen: Stopping | None, config: ConfigDict) -> bool:
  """Returns whether the patience is exhausted."""
  return seen is not None and seen.since >= config.early_stopping.patience


def line(seen: Stopping, step: int) -> str:
  """Returns the reason of the stop as one line."""
  best = 'it was never finite'
  if seen.best is not None:
    best = f'its best was {seen.best:.4g} at step {seen.best_step}'
  evaluations = f'{seen.since} evaluations' if seen.since != 1 else '1 evaluation'
  return f'stopped early at step {step}: {seen.metric} is no better since {evaluations}; {best}'


def _metric(config: ConfigDict) -> str:
  return config.early_stopping.metric or config.checkpoint.monitor


def _key(config: ConfigDict) -> str:
  return 'early_stopping.metric' if config.early_stopping.metric else 'checkpoint.monitor'
