"""A run's directory read back: metrics, events, samples, goodput and results of evaluations."""

import datetime
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.errors import UserError
from lm.workdir import eval_artifacts, files, metrics_writer

_DIRECTIONS = 'metrics.json'
_Event = Mapping[str, Any]


class Series(NamedTuple):
  """A metric over the run: ascending int64 steps (N,) and float64 values (N,), NaN included."""

  steps: np.ndarray
  values: np.ndarray

  def last(self) -> tuple[int, float]:
    """Returns the last step and its value."""
    return int(self.steps[-1]), float(self.values[-1])

  def best(self, higher_is_better: bool | None) -> tuple[int, float] | None:
    """Returns the step and value of the best finite point; None without a direction."""
    finite = np.isfinite(self.values)
    if higher_is_better is None or not finite.any():
      return None
    losses = np.where(finite, -self.values if higher_is_better else self.values, np.inf)
    index = int(np.argmin(losses))
    return int(self.steps[index]), float(self.values[index])


class RunData(NamedTuple):
  """The content of a workdir without checkpoints. Fields of absent files are empty."""

  name: str  # of the experiment, or else of the directory
  config: dict[str, Any]
  series: dict[str, Series]  # by metric name
  events: list[dict[str, Any]]
  samples: list[tuple[int, list[tuple[str, str, str]]]]  # by step: (name, prompt, text) triples
  environment: dict[str, Any]
  source: dict[str, str]  # Python text by file name
  written: datetime.datetime | None  # when the run last wrote metrics or events
  # By set and ascending step.
  predictions: dict[str, dict[int, list[eval_artifacts.EvalExample]]]
  notes: dict[str, str]  # on corpus metrics, by metric name
  attention: dict[str, Any]  # the result of lm.evaluation.attention_maps
  word_map: dict[str, Any]  # the result of lm.evaluation.vectors.word_map
  directions: Mapping[str, bool | None]  # `higher_is_better` by metric name

  @property
  def steps(self) -> int | None:
    """The last step by the config; None if the config has none."""
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
    series=read_series(root),
    events=events,
    samples=_samples(root / 'samples'),
    environment=_json(root / 'environment.json'),
    source=_source(root / 'source'),
    written=None if last is None else datetime.datetime.fromtimestamp(last, datetime.UTC),
    predictions=eval_artifacts.read_predictions(root),
    notes=_json(root / eval_artifacts.NOTES),
    attention=_json(eval_artifacts.newest_file(root / eval_artifacts.ATTENTION)),
    word_map=_json(eval_artifacts.newest_file(root / eval_artifacts.WORD_MAP)),
    directions=read_directions(root),
  )


def read_series(workdir: Path) -> dict[str, Series]:
  """Returns every metric of metrics.jsonl by name; of two lines with one step the later counts."""
  points: dict[str, dict[int, float]] = {}
  for line in metrics_writer.read_lines(workdir / 'metrics.jsonl'):
    step = line.pop('step', None)
    for name, value in line.items() if metrics_writer.is_step(step) else ():
      if (scalar := metrics_writer.to_float(value)) is not None:
        points.setdefault(name, {})[step] = scalar
  series = {name: sorted(values.items()) for name, values in points.items()}
  return {
    name: Series(np.array([s for s, _ in pairs], np.int64), np.array([v for _, v in pairs]))
    for name, pairs in series.items()
  }


def metrics_at(workdir: Path, step: int) -> dict[str, float]:
  """Returns the metrics of a step by name."""
  series = read_series(workdir).items()
  return {name: float(s.values[s.steps == step][0]) for name, s in series if step in s.steps}


def losses_by_step(workdir: Path, metric: str) -> dict[int, float]:
  """Returns a metric by step, without NaN; negated if a higher value is better.

  A metric without a direction in metrics.json ranks no step; the result is then empty.
  """
  higher, series = read_directions(workdir).get(metric), read_series(workdir).get(metric)
  if higher is None or series is None:
    return {}
  losses = zip(series.steps.tolist(), series.values.tolist(), strict=True)
  return {step: -loss if higher else loss for step, loss in losses if not math.isnan(loss)}


def best_step(workdir: Path, steps: Iterable[int], metric: str) -> tuple[int | None, str]:
  """Returns the best of some steps by a metric, None if none has a score; and the reason in words.

  This is the step of every program that receives none; if it is None, they use the newest.
  """
  losses = losses_by_step(workdir, metric)
  scored = [step for step in steps if step in losses]
  if not scored:
    return None, f'the newest, for none has a score by {metric}'
  return min(scored, key=lambda step: (losses[step], step)), f'the best by {metric}'


def write_directions(workdir: Path, directions: Mapping[str, bool | None]) -> None:
  """Writes metrics.json: `higher_is_better` of each metric of the evaluations."""
  files.replace(workdir / _DIRECTIONS, (json.dumps(dict(directions), indent=2) + '\n').encode())


def read_directions(workdir: Path) -> dict[str, bool | None]:
  """Returns the content of metrics.json; empty if the file is absent.

  Raises:
    UserError: the file is damaged.
  """
  found = _json(workdir / _DIRECTIONS)
  for name, value in found.items():
    if value is not None and not isinstance(value, bool):
      raise UserError(f'{workdir / _DIRECTIONS}: {name!r} is {value!r}, not true, false or null')
  return found


def status(run: RunData) -> str:
  """Returns done, stopped (as asked), stopped early, preempted, failed, imported or running."""
  last = run.events[-1]['event'] if run.events else ''
  complete = step(run) >= (run.steps or float('inf'))
  if last == 'done':
    early = len(run.events) > 1 and run.events[-2]['event'] == 'stopped_early'
    return 'stopped early' if early else 'done' if complete else 'stopped'
  if last in ('start', 'restore') and complete:  # started again with no step left
    return 'done'
  if last in ('imported', 'preempted'):
    return last
  return 'failed' if last in ('error', 'nonfinite') else 'running'


def step(run: RunData) -> int:
  """Returns the last step in metrics and events; 0 before the first."""
  known = [int(series.steps[-1]) for series in run.series.values()]
  since_start: list[int] = []
  for event in run.events:
    since_start = [] if event['event'] == 'restore' else since_start
    since_start += [event['step']] if isinstance(event.get('step'), int) else []
  return max(known + since_start, default=0)


def goodput(events: Sequence[_Event]) -> dict[str, float]:
  """Returns the time of a run by use, over all its starts.

  Useful time runs from the first step after a start to the last event with a step. Excluded are the
  `seconds` that training waited for saves and evaluations, and the share of steps that the next
  start had to repeat. The time after the last event of a killed process is unknown and not useful.
  The pause after a start that ended in `done` counts nowhere. Every other pause between two starts
  is lost time.

  Args:
    events: the lines of events.jsonl, in order.

  Returns:
    `starts`; `wall_seconds`; `useful_seconds`; `goodput`, their ratio (0 without events); and the
    losses `startup_seconds` (restore, compile), `save_seconds`, `eval_seconds`, `redone_seconds`
    and `down_seconds` (between starts).
  """
  times = dict.fromkeys(('wall', 'useful', 'startup', 'save', 'eval', 'redone', 'down'), 0.0)
  starts: list[list[_Event]] = []
  none: list[_Event] = []
  for event in events:
    if event['event'] == 'start':
      starts.append([])
    if starts:
      starts[-1].append(event)
  for start, following in itertools.zip_longest(starts, starts[1:], fillvalue=none):
    begin, end = _seconds(start[0]), _seconds(start[-1])
    pause = _seconds(following[0]) - end if following and start[-1]['event'] != 'done' else 0.0
    times['down'] += pause
    times['wall'] += end - begin + pause
    first = next((i for i, e in enumerate(start) if e['event'] == 'first_step'), None)
    times['startup'] += (end if first is None else _seconds(start[first])) - begin
    if first is not None:
      _add_training(times, start[first:], _restored_step(following))
  counts = {f'{name}_seconds': seconds for name, seconds in times.items()}
  ratio = times['useful'] / times['wall'] if times['wall'] > 0 else 0.0
  return {'starts': len(starts), 'goodput': ratio} | counts


def _add_training(times: dict[str, float], events: Sequence[_Event], restored: float) -> None:
  """Adds the time of a start from its first step; the next start repeats from step `restored`."""
  steps = [e for e in events if 'step' in e]
  if not steps:
    return
  training = _seconds(steps[-1]) - _seconds(events[0])
  for kind in ('save', 'eval'):
    waited = sum(float(e.get('seconds', 0)) for e in steps if e['event'] == kind)
    times[kind] += waited
    training -= waited
  training, last = max(training, 0.0), steps[-1]['step']
  done = last - steps[0]['step']
  redone = training * min(max(last - restored, 0) / done, 1.0) if done > 0 else 0.0
  times['redone'] += redone
  times['useful'] += training - redone


def _restored_step(events: Sequence[_Event]) -> float:
  """Returns the step a start resumed from; 0 if it restored none, infinity without a start."""
  if not events:
    return float('inf')
  return max((e['step'] for e in events if e['event'] == 'restore' and 'step' in e), default=0)


def _seconds(event: _Event) -> float:
  return datetime.datetime.fromisoformat(event['time']).timestamp()


def _is_event(entry: _Event) -> bool:
  """Returns whether a line of events.jsonl has the form that `EventLog` writes."""
  try:
    datetime.datetime.fromisoformat(entry['time'])
  except (KeyError, TypeError, ValueError):
    return False
  valid = isinstance(entry.get('event'), str) and metrics_writer.is_step(entry.get('step', 0))
  return valid and metrics_writer.to_float(entry.get('seconds', 0)) is not None


def _source(folder: Path) -> dict[str, str]:
  """Returns the Python text of a folder, by relative path."""
  paths = {p.relative_to(folder).as_posix(): p for p in folder.rglob('*.py') if p.is_file()}
  return {name: paths[name].read_text('utf-8', 'replace') for name in sorted(paths)}


def _samples(directory: Path) -> list[tuple[int, list[tuple[str, str, str]]]]:
  paths = {int(p.stem): p for p in directory.glob('*.txt') if p.stem.isdecimal() and p.is_file()}
  return [(step, metrics_writer.read_samples(paths[step])) for step in sorted(paths)]


def _json(path: Path | None) -> dict[str, Any]:
  if path is None or not path.exists():
    return {}
  try:
    content = json.loads(metrics_writer.read_bytes(path))
  except (ValueError, RecursionError) as e:
    raise UserError(f'{path}: not a JSON file: {e}') from e
  if not isinstance(content, dict):
    raise UserError(f'{path}: holds {type(content).__name__}, not a JSON object')
  return content
