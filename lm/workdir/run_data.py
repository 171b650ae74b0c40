"""A run's directory, read back: what it measured, said, ran on and went through."""

import datetime
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.errors import UserError
from lm.workdir import eval_artifacts, files, metrics_writer

_DIRECTIONS = 'metrics.json'


class Series(NamedTuple):
  """A metric over the run: rising int64 steps (N,) and float64 values (N,), NaN included."""

  steps: np.ndarray
  values: np.ndarray

  def last(self) -> tuple[int, float]:
    """Returns the last step and its value."""
    return int(self.steps[-1]), float(self.values[-1])

  def best(self, higher_is_better: bool | None) -> tuple[int, float] | None:
    """Returns the step and value of the best finite point; None where no value is better."""
    finite = np.isfinite(self.values)
    if higher_is_better is None or not finite.any():
      return None
    losses = np.where(finite, -self.values if higher_is_better else self.values, np.inf)
    index = int(np.argmin(losses))
    return int(self.steps[index]), float(self.values[index])


class RunData(NamedTuple):
  """Everything a workdir holds besides checkpoints. What is not there yet is empty."""

  name: str  # of the experiment, or else of the directory
  config: dict[str, Any]
  series: dict[str, Series]  # by metric name
  events: list[dict[str, Any]]
  samples: list[tuple[int, list[tuple[str, str, str]]]]  # by step: (name, prompt, text) triples
  environment: dict[str, Any]
  source: dict[str, str]  # Python text by file name
  written: datetime.datetime | None  # when the run last wrote metrics or events
  predictions: dict[
    str, dict[int, list[eval_artifacts.EvalExample]]
  ]  # by set and step, steps rising
  notes: dict[str, str]  # on corpus metrics, by metric name
  attention: dict[str, Any]  # what lm.evaluation.attention_maps has found
  word_map: dict[str, Any]  # what lm.report.word_map has found
  directions: Mapping[str, bool | None]  # of the metrics of evaluations, by name

  @property
  def steps(self) -> int | None:
    """The step at which the run ends, where its config says it."""
    steps = self.config.get('steps')
    return steps if metrics_writer.is_step(steps) else None

  def setting(self, key: str) -> str:
    """Returns a string of the config by its dotted key, '' where there is none."""
    value: Any = self.config
    for part in key.split('.'):
      value = value.get(part) if isinstance(value, dict) else None
    return value if isinstance(value, str) else ''


def read_run(workdir: str | Path) -> RunData:
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
  events = [e for e in metrics_writer.read_lines(root / 'events.jsonl') if _is_event(e)]
  named = [str(e['experiment']) for e in events if 'experiment' in e]
  last = max((path.stat().st_mtime for path in logs), default=None)
  return RunData(
    name=named[-1] if named else root.resolve().name,
    config=_json(root / 'config.json'),
    series=collect(metrics_writer.read_lines(root / 'metrics.jsonl')),
    events=events,
    samples=_samples(root / 'samples'),
    environment=_json(root / 'environment.json'),
    source=_source(root / 'source'),
    written=None if last is None else datetime.datetime.fromtimestamp(last, datetime.UTC),
    predictions=eval_artifacts.read_predictions(root),
    notes=_json(eval_artifacts.notes_file(root)),
    attention=_json(eval_artifacts.attention_file(root)),
    word_map=_json(eval_artifacts.word_map_file(root)),
    directions=read_directions(root),
  )


def write_directions(workdir: Path, directions: Mapping[str, bool | None]) -> None:
  """Writes metrics.json: for each metric of the evaluations whether its highest value is best."""
  files.replace(workdir / _DIRECTIONS, (json.dumps(dict(directions), indent=2) + '\n').encode())


def read_directions(workdir: Path) -> dict[str, bool | None]:
  """Returns what `write_directions` wrote; nothing for a workdir without that file.

  Raises:
    UserError: the file is damaged.
  """
  found = _json(workdir / _DIRECTIONS)
  for name, value in found.items():
    if value is not None and not isinstance(value, bool):
      raise UserError(f'{workdir / _DIRECTIONS}: {name!r} is {value!r}, not true, false or null')
  return found


def collect(lines: Iterable[Mapping[str, Any]]) -> dict[str, Series]:
  """Returns the series of every metric in the lines of metrics.jsonl; later lines win."""
  points: dict[str, dict[int, float]] = {}
  for line in lines:
    step = line.get('step')
    if step is None or not metrics_writer.is_step(step):
      continue
    for name, value in line.items():
      number = metrics_writer.number_of(value)
      if name != 'step' and number is not None:
        points.setdefault(name, {})[step] = number
  return {name: _series(values) for name, values in points.items()}


def status(record: RunData) -> str:
  """Returns done, stopped (as asked), stopped early, preempted, failed, imported or running."""
  last = record.events[-1]['event'] if record.events else ''
  complete = step(record) >= (record.steps or float('inf'))
  if last == 'done':
    early = len(record.events) > 1 and record.events[-2]['event'] == 'stopped_early'
    return 'stopped early' if early else 'done' if complete else 'stopped'
  if last in ('start', 'restore') and complete:  # started again with nothing left to do
    return 'done'
  if last == 'imported':
    return last
  return {'preempted': 'preempted', 'error': 'failed', 'nonfinite': 'failed'}.get(last, 'running')


def step(record: RunData) -> int:
  """Returns the last step of which the record knows; 0 before the first."""
  known = [int(series.steps[-1]) for series in record.series.values()]
  since_start: list[int] = []
  for event in record.events:
    since_start = [] if event['event'] == 'restore' else since_start
    since_start += [event['step']] if isinstance(event.get('step'), int) else []
  return max(known + since_start, default=0)


def values_at(workdir: Path, step: int) -> dict[str, float]:
  """Returns the metrics of a step by name, as metrics.jsonl has them."""
  lines = metrics_writer.read_lines(workdir / 'metrics.jsonl')
  series = collect(line for line in lines if line.get('step') == step)
  return {name: points.last()[1] for name, points in series.items()}


def _is_event(entry: Mapping[str, Any]) -> bool:
  """Returns whether a line of events.jsonl is an event as `EventLog` writes them."""
  try:
    datetime.datetime.fromisoformat(entry['time'])
  except (KeyError, TypeError, ValueError):
    return False
  right = isinstance(entry.get('event'), str) and metrics_writer.is_step(entry.get('step', 0))
  return right and metrics_writer.number_of(entry.get('seconds', 0)) is not None


def _source(folder: Path) -> dict[str, str]:
  """Returns the Python text of a folder, by relative path."""
  files = {p.relative_to(folder).as_posix(): p for p in folder.rglob('*.py') if p.is_file()}
  return {name: files[name].read_text('utf-8', 'replace') for name in sorted(files)}


def _series(points: Mapping[int, float]) -> Series:
  steps = np.array(sorted(points), np.int64)
  return Series(steps, np.array([points[int(s)] for s in steps], np.float64))


def _samples(directory: Path) -> list[tuple[int, list[tuple[str, str, str]]]]:
  paths = [p for p in directory.glob('*.txt') if p.stem.isdecimal() and p.is_file()]
  return [
    (int(p.stem), metrics_writer.read_samples(p)) for p in sorted(paths, key=lambda p: int(p.stem))
  ]


def _json(path: Path | None) -> dict[str, Any]:
  if path is None or not path.exists():
    return {}
  try:
    content = json.loads(path.read_bytes())
  except OSError as e:
    raise UserError(f'{path} cannot be read: {e.strerror}') from e
  except (ValueError, RecursionError) as e:
    raise UserError(f'{path}: not a JSON file: {e}') from e
  if not isinstance(content, dict):
    raise UserError(f'{path}: holds {type(content).__name__}, not a JSON object')
  return content
