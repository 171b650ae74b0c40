"""Metric series as the panels of a report: grouped, thinned, and ready for JSON."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lm.workdir.run_data import Series

_MAX_POINTS = 2000


def panels(series: Mapping[str, Series]) -> list[dict[str, Any]]:
  """Returns groups of panels of lines.

  The loss of training and of every evaluation set share the first panel; its unit is that of the
  objective. Then evaluation comes, a
  panel for each metric with a line for each set, then training, then the other prefixes.

  Returns:
    [{'title', 'panels': [{'title', 'lines': [{'name', 'noisy', 'x', 'y', 'bad'}]}]}], where y is
    null at the steps in `bad`, whose values are not finite.
  """
  groups: dict[str, dict[str, list[dict[str, Any]]]] = {'Loss': {}, 'eval': {}, 'train': {}}
  for name, points in series.items():
    prefix, _, rest = name.rpartition('/')
    group = prefix.partition('/')[0] or 'other'
    dataset = prefix.partition('/')[2]
    if group in ('train', 'eval') and rest == 'loss':
      line = _line(dataset or group, points, noisy=group == 'train')
      groups['Loss'].setdefault('loss', []).append(line)
    else:
      noisy = group == 'train' and rest not in ('learning_rate', 'epoch')
      line = _line(dataset or rest, points, noisy)
      groups.setdefault(group, {}).setdefault(rest.replace('_', ' '), []).append(line)
  titles = {'eval': 'Evaluation', 'train': 'Training'}
  return [
    {
      'title': titles.get(group, group),
      'panels': [{'title': title, 'lines': lines} for title, lines in members.items()],
    }
    for group, members in groups.items()
    if members
  ]


def thin(points: Series, most: int = _MAX_POINTS) -> Series:
  """Keeps at most `most` points: the ends, and the extremes of equal runs of points.

  A run also keeps one of its points that are not finite, so that no spike and no gap is lost.
  """
  count = len(points.steps)
  if count <= most:
    return points
  keep = {0, count - 1}
  for run in np.array_split(np.arange(count), (most - 2) // 3):
    finite = np.isfinite(points.values[run])
    if finite.any():
      values = points.values[run]
      keep.add(int(run[np.where(finite, values, np.inf).argmin()]))
      keep.add(int(run[np.where(finite, values, -np.inf).argmax()]))
    if not finite.all():
      keep.add(int(run[finite.argmin()]))
  index = np.array(sorted(keep))
  return Series(points.steps[index], points.values[index])


def _line(name: str, points: Series, noisy: bool) -> dict[str, Any]:
  few = thin(points)
  steps = few.steps.tolist()
  # Six digits are finer than a pixel and halve the size of the page.
  values = [float(f'{v:.6g}') if math.isfinite(v) else None for v in few.values.tolist()]
  bad = [s for s, v in zip(steps, values, strict=True) if v is None]
  return {'name': name, 'noisy': noisy, 'x': steps, 'y': values, 'bad': bad}
