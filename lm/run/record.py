"""A run's directory, read back: what it measured, said, ran on and went through."""

import datetime
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.errors import UserError
from lm.run import kept, logging

# The last part of a metric's name, where more is better; of all other metrics less is better.
_MORE_IS_BETTER = (
  'accuracy', 'bleu', 'chrf', 'correlation', 'coverage', 'exact_match', 'f1', 'map', 'mrr',
  'pearson', 'precision', 'r2', 'recall', 'rouge1', 'rouge2', 'rougeL', 'spearman',
  'tokens_per_second',
)  # fmt: skip


# Nor is less: they tell of a run, and no value of them is best.
_NO_DIRECTION = ('mean_length',)


def has_best(name: str) -> bool:
  """Returns whether a metric has better and worse values, by the last part of its name."""
  return not name.rpartition('/')[2].endswith(_NO_DIRECTION)


def more_is_better(name: str) -> bool:
  """Returns whether the best value of a metric is the highest, by the last part of its name."""
  return name.rpartition('/')[2].endswith(_MORE_IS_BETTER)


class Series(NamedTuple):
  """A metric over the run: rising int64 steps (N,) and float64 values (N,), NaN included."""

  steps: np.ndarray
  values: np.ndarray

  def last(self) -> tuple[int, float]:
    """Returns the last step and its value."""
    return int(self.steps[-1]), float(self.values[-1])

  def best(self, name: str) -> tuple[int, float] | None:
    """Returns the step and value of the best finite point; `name` tells the direction."""
    finite = np.isfinite(self.values)
    if not finite.any():
      return None
    losses = np.where(finite, -self.values if more_is_better(name) else self.values, np.inf)
    index = int(np.argmin(losses))
    return int(self.steps[index]), float(self.values[index])


class Record(NamedTuple):
  """Everything a workdir holds besides checkpoints. What is not there yet is empty."""

  name: str  # of the experiment, or else of the directory
  config: dict[str, Any]
  series: dict[str, Series]  # by metric name
  events: list[dict[str, Any]]
  samples: list[tuple[int, list[tuple[str, str, str]]]]  # by step: (name, prompt, text) triples
  environment: dict[str, Any]
  source: dict[str, str]  # Python text by file name
  written: datetime.datetime | None  # when the run last wrote metrics or events
  predictions: dict[str, dict[int, list[kept.Evaluated]]]  # by set and step, steps rising
  notes: dict[str, str]  # on corpus metrics, by metric name
  attention: dict[str, Any]  # what lm.run.attention has found
  word_map: dict[str, Any]  # what lm.run.word_map has found


def read(workdir: str | Path) -> Record:
  """Reads a workdir; a run may be writing to it.

  Raises:
    UserError: the directory is missing or holds no run, or one of its JSON files is damaged.
  """
  root = Path(workdir)
  if not root.is_dir():
    raise UserError(f'--workdir={root}: no such directory')
  logs = [path for path in (root / 'metrics.jsonl', root / 'events.jsonl') if path.exists()]
  if not logs and not (root / 'config.json').exists():
    raise UserError(
      f'--workdir={root}: holds no run (no config.json, metrics.jsonl or events.jsonl)'
    )
  events = [e for e in logging.read_lines(root / 'events.jsonl') if {'time', 'event'} <= e.keys()]
  named = [str(e['experiment']) for e in events if 'experiment' in e]
  last = max((path.stat().st_mtime for path in logs), default=None)
  return Record(
    name=named[-1] if named else root.resolve().name,
    config=_json(root / 'config.json'),
    series=collect(logging.read_lines(root / 'metrics.jsonl')),
    events=events,
    samples=_samples(root / 'samples'),
    environment=_json(root / 'environment.json'),
    source={p.name: p.read_text('utf-8', 'replace') for p in sorted(root.glob('source/*.py'))},
    written=None if last is None else datetime.datetime.fromtimestamp(last, datetime.UTC),
    predictions=kept.read_predictions(root),
    notes=_json(kept.notes_file(root)),
    attention=_json(kept.attention_file(root)),
    word_map=_json(kept.word_map_file(root)),
  )


def collect(lines: Iterable[Mapping[str, Any]]) -> dict[str, Series]:
  """Returns the series of every metric in the lines of metrics.jsonl; later lines win."""
  points: dict[str, dict[int, float]] = {}
  for line in lines:
    step = line.get('step')
    if isinstance(step, int):
      for name, value in line.items():
        if name != 'step':
          points.setdefault(name, {})[step] = float(value)
  return {name: _series(values) for name, values in points.items()}


def status(record: Record) -> str:
  """Returns done, stopped (as asked), stopped early, preempted, failed, imported or running."""
  last = record.events[-1]['event'] if record.events else ''
  complete = step(record) >= record.config.get('steps', float('inf'))
  if last == 'done':
    early = len(record.events) > 1 and record.events[-2]['event'] == 'stopped_early'
    return 'stopped early' if early else 'done' if complete else 'stopped'
  if last in ('start', 'restore') and complete:  # started again with nothing left to do
    return 'done'
  if last == 'imported':
    return last
  return {'preempted': 'preempted', 'error': 'failed', 'nonfinite': 'failed'}.get(last, 'running')


def step(record: Record) -> int:
  """Returns the last step of which the record knows; 0 before the first."""
  known = [int(series.steps[-1]) for series in record.series.values()]
  since_start: list[int] = []
  for event in record.events:
    since_start = [] if event['event'] == 'restore' else since_start
    since_start += [event['step']] if isinstance(event.get('step'), int) else []
  return max(known + since_start, default=0)


def _series(points: Mapping[int, float]) -> Series:
  steps = np.array(sorted(points), np.int64)
  return Series(steps, np.array([points[int(s)] for s in steps], np.float64))


def _samples(directory: Path) -> list[tuple[int, list[tuple[str, str, str]]]]:
  paths = [path for path in directory.glob('*.txt') if path.stem.isdecimal()]
  return [(int(p.stem), logging.read_samples(p)) for p in sorted(paths, key=lambda p: int(p.stem))]


def _json(path: Path | None) -> dict[str, Any]:
  if path is None or not path.exists():
    return {}
  try:
    content = json.loads(path.read_bytes())
  except ValueError as e:
    raise UserError(f'{path}: not a JSON file: {e}') from e
  if not isinstance(content, dict):
    raise UserError(f'{path}: holds {type(content).__name__}, not a JSON object')
  return content
