"""The data of a run in its workdir: metrics, events, samples, goodput and results of evaluations.

Evaluations write these files in addition to metrics:

- metrics.json: the directions of all metrics.
- predictions/SET-STEP.jsonl: a JSON object for each example of a set, with `inputs` (the parts of
  the source), `output`, `reference`, and `scores` (the metrics of this example alone). The files of
  the newest step and of the best step by `checkpoint.monitor` are kept.
- predictions/notes.json: notes on corpus metrics by name, such as the signatures of sacrebleu.
- attention/SET-STEP.json: the result of lm.evaluation.attention_maps at the newest step.
- word_map/embedding-STEP.json: that of lm.evaluation.vectors.word_map.
- fertility/sets-STEP.json: that of lm.evaluation.fertility.
"""

import datetime
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.errors import UserError
from lm.workdir import experiment, files
from lm.workdir.metrics_writer import (
  is_step,
  json_line,
  read_bytes,
  read_lines,
  read_samples,
  sample_files,
  to_float,
)

_DIRECTIONS = 'metrics.json'
_NOTES = 'predictions/notes.json'
_ATTENTION, _WORD_MAP, _PREDICTIONS = 'attention', 'word_map', 'predictions'
_FERTILITY = 'fertility'
_Event = Mapping[str, Any]


class EvalExample(NamedTuple):
  """An example with the output of a model."""

  inputs: list[str]
  output: Any
  reference: Any
  scores: dict[str, float]


class Series(NamedTuple):
  """A metric over the run: ascending int64 steps (N,) and float64 values (N,), which may be NaN."""

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
    losses = -self.values if higher_is_better else self.values
    index = int(np.argmin(np.where(finite, losses, np.inf)))
    return int(self.steps[index]), float(self.values[index])


class RunData(NamedTuple):
  """The content of a workdir except its checkpoints; fields of missing files are empty."""

  name: str  # of the experiment; of the directory if events.jsonl names none
  config: dict[str, Any]
  series: dict[str, Series]  # by metric name
  events: list[dict[str, Any]]
  samples: list[tuple[int, list[tuple[str, str, str]]]]  # by step: (name, prompt, text) triples
  environment: dict[str, Any]
  source: dict[str, str]  # Python text by file name
  written: datetime.datetime | None  # the time of the newest metric or event
  # By set and ascending step.
  predictions: dict[str, dict[int, list[EvalExample]]]
  notes: dict[str, str]  # on corpus metrics, by metric name
  attention: dict[str, Any]  # the result of lm.evaluation.attention_maps
  word_map: dict[str, Any]  # the result of lm.evaluation.vectors.word_map
  fertility: dict[str, Any]  # that of lm.evaluation.fertility, by set
  directions: Mapping[str, bool | None]  # `higher_is_better` by metric name

  @property
  def steps(self) -> int | None:
    """The config's number of steps; None if the config has none."""
    steps = self.config.get('steps')
    return steps if is_step(steps) else None

  def setting(self, key: str) -> str:
    """Returns a string of the config by its dotted key; '' if the key has no string."""
    value = experiment.flatten(self.config).get(key)
    return value if isinstance(value, str) else ''


def read_run(workdir: str | Path) -> RunData:
  """Returns the content of a workdir, also during training.

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
  events = [e for e in read_lines(root / 'events.jsonl') if _is_event(e)]
  named = [str(e['experiment']) for e in events if 'experiment' in e]
  last = max((path.stat().st_mtime for path in logs), default=None)
  return RunData(
    name=named[-1] if named else root.resolve().name,
    config=_json(root / 'config.json'),
    series=read_series(root),
    events=events,
    samples=[
      (step, read_samples(path)) for step, path in sorted(sample_files(root / 'samples').items())
    ],
    environment=_json(root / 'environment.json'),
    source=_source(root / 'source'),
    written=None if last is None else datetime.datetime.fromtimestamp(last, datetime.UTC),
    predictions=read_predictions(root),
    notes=_json(root / _NOTES),
    attention=_json(_newest_file(root / _ATTENTION)),
    word_map=_json(_newest_file(root / _WORD_MAP)),
    fertility=_json(_newest_file(root / _FERTILITY)).get('sets', {}),
    directions=read_directions(root),
  )


def read_series(workdir: Path) -> dict[str, Series]:
  """Returns every metric of metrics.jsonl by name; the last value of a step counts."""
  points: dict[str, dict[int, float]] = {}
  for line in read_lines(workdir / 'metrics.jsonl'):
    step = line.pop('step', None)
    for name, value in line.items() if is_step(step) else ():
      if (scalar := to_float(value)) is not None:
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
  """Returns a metric by step without NaN, negated if a higher value is better.

  The result is empty for a metric without a direction in metrics.json.
  """
  higher, series = read_directions(workdir).get(metric), read_series(workdir).get(metric)
  if higher is None or series is None:
    return {}
  losses = zip(series.steps.tolist(), series.values.tolist(), strict=True)
  return {step: -loss if higher else loss for step, loss in losses if not math.isnan(loss)}


def best_step(workdir: Path, steps: Iterable[int], metric: str) -> tuple[int | None, str]:
  """Returns the best step by a metric, and a phrase for messages that explains the choice.

  Programs use the best step by default. It is None if no step has a score; programs then use the
  newest step, which the phrase says.
  """
  losses, steps = losses_by_step(workdir, metric), list(steps)
  scored = [step for step in steps if step in losses]
  if not scored and len(steps) == 1:
    return None, 'the only one'
  if not scored:
    return None, f'the newest, because none has a score by {metric}'
  return min(scored, key=lambda step: (losses[step], step)), f'the best by {metric}'


def write_directions(workdir: Path, directions: Mapping[str, bool | None]) -> None:
  """Writes metrics.json: `higher_is_better` by name of an evaluation metric."""
  files.replace(workdir / _DIRECTIONS, (json.dumps(dict(directions), indent=2) + '\n').encode())


def read_directions(workdir: Path) -> dict[str, bool | None]:
  """Returns the content of metrics.json; {} for a missing file.

  Raises:
    UserError: the file is damaged.
  """
  found = _json(workdir / _DIRECTIONS)
  for name, value in found.items():
    if value is not None and not isinstance(value, bool):
      raise UserError(f'{workdir / _DIRECTIONS}: {name!r} is {value!r}, not true, false or null')
  return found


def status(run: RunData) -> str:
  """Returns the status: done, stopped, stopped early, preempted, failed, imported or running."""
  last = run.events[-1]['event'] if run.events else ''
  complete = step(run) >= (run.steps or float('inf'))
  if last == 'done':
    early = len(run.events) > 1 and run.events[-2]['event'] == 'stopped_early'
    return 'stopped early' if early else 'done' if complete else 'stopped'
  if last in ('start', 'restore') and complete:  # resumed with no step left
    return 'done'
  if last in ('imported', 'preempted'):
    return last
  return 'failed' if last in ('error', 'nonfinite') else 'running'


def step(run: RunData) -> int:
  """Returns the last step in the metrics and in the events after the last restore, or else 0."""
  restores = [i for i, event in enumerate(run.events) if event['event'] == 'restore']
  steps = [e['step'] for e in run.events[max(restores, default=0) :] if 'step' in e]
  return max(steps + [int(series.steps[-1]) for series in run.series.values()], default=0)


def goodput(events: Sequence[_Event]) -> dict[str, float]:
  """Returns the useful and the lost time of a run, over all its starts.

  The useful time of a start is the time from its first step to its last event with a step, without

  - the `seconds` that training waited for saves and evaluations,
  - the steps that the next start repeated.

  The time after the last event of a killed process is unknown and counts as lost. The pause between
  two starts is lost too, except after `done`.

  Args:
    events: the lines of events.jsonl, in order.

  Returns:
    `starts`; `wall_seconds`; `useful_seconds`; `goodput`, the ratio of these two (0 without
    events); and the lost `startup_seconds` (restore, compile), `save_seconds`, `eval_seconds`,
    `redone_seconds` and `down_seconds` (between starts).
  """
  times = dict.fromkeys(('wall', 'useful', 'startup', 'save', 'eval', 'redone', 'down'), 0.0)
  bounds = [i for i, event in enumerate(events) if event['event'] == 'start'] + [len(events)]
  starts = [events[begin:end] for begin, end in itertools.pairwise(bounds)]
  for start, following in zip(starts, [*starts, []][1:], strict=True):
    begin, end = _seconds(start[0]), _seconds(start[-1])
    pause = _seconds(following[0]) - end if following and start[-1]['event'] != 'done' else 0.0
    times['down'] += pause
    times['wall'] += end - begin + pause
    # The next start repeats all steps after `restored`.
    restores = (e['step'] for e in following if e['event'] == 'restore' and 'step' in e)
    restored = max(restores, default=0 if following else math.inf)
    first = next((i for i, e in enumerate(start) if e['event'] == 'first_step'), None)
    times['startup'] += (end if first is None else _seconds(start[first])) - begin
    if first is not None:
      _add_training(times, start[first:], restored)
  counts = {f'{name}_seconds': seconds for name, seconds in times.items()}
  ratio = times['useful'] / times['wall'] if times['wall'] > 0 else 0.0
  return {'starts': len(starts), 'goodput': ratio} | counts


def _add_training(times: dict[str, float], events: Sequence[_Event], restored: float) -> None:
  """Adds the times of a start, from its first step on.

  Args:
    times: seconds by kind, changed in place.
    events: those of the start, from its first step on.
    restored: the step that the next start resumed from.
  """
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


def _seconds(event: _Event) -> float:
  return datetime.datetime.fromisoformat(event['time']).timestamp()


def _is_event(entry: _Event) -> bool:
  """Returns whether a line of events.jsonl is intact."""
  try:
    datetime.datetime.fromisoformat(entry['time'])
  except (KeyError, TypeError, ValueError):
    return False
  valid = isinstance(entry.get('event'), str) and is_step(entry.get('step', 0))
  return valid and to_float(entry.get('seconds', 0)) is not None


def _source(folder: Path) -> dict[str, str]:
  """Returns the Python text of a folder, by relative path."""
  paths = {p.relative_to(folder).as_posix(): p for p in folder.rglob('*.py') if p.is_file()}
  return {name: paths[name].read_text('utf-8', 'replace') for name in sorted(paths)}


def _json(path: Path | None) -> dict[str, Any]:
  if path is None or not path.exists():
    return {}
  try:
    content = json.loads(read_bytes(path))
  except (ValueError, RecursionError) as e:
    raise UserError(f'{path}: not a JSON file: {e}') from e
  if not isinstance(content, dict):
    raise UserError(f'{path}: holds {type(content).__name__}, not a JSON object')
  return content


def example_lines(examples: Iterable[EvalExample], **fields: Any) -> bytes:
  """Returns examples as JSON lines; each begins with `fields`."""
  return b''.join(json_line(fields | example._asdict()) for example in examples)


def write_predictions(
  workdir: Path,
  step: int,
  sets: Mapping[str, Iterable[EvalExample]],
  notes: Mapping[str, str],
  best: int | None,
) -> None:
  """Writes the outputs of a step, and removes those of all steps but this and the best.

  Args:
    workdir: the run's directory.
    step: the evaluated step.
    sets: the examples by set.
    notes: the notes by metric.
    best: the best step so far; None without a score.

  Raises:
    OSError: the disk is full or broken.
  """
  folder = workdir / _PREDICTIONS
  folder.mkdir(exist_ok=True)
  files.replace(workdir / _NOTES, json.dumps(dict(notes), indent=2).encode())
  for name, examples in sets.items():
    files.replace(folder / f'{name}-{step}.jsonl', example_lines(examples))
  for (_, other), path in _files(folder, '.jsonl').items():
    if other not in (step, best):
      path.unlink()


def write_newest(workdir: Path, name: str, step: int, content: Mapping[str, Any]) -> None:
  """Writes FOLDER/NAME-STEP.json and removes the files of other names and steps in the folder.

  Args:
    workdir: the run's directory.
    name: 'FOLDER/NAME'.
    step: the evaluated step.
    content: JSON values; the file also has `step`.

  Raises:
    OSError: the disk is full or broken.
  """
  path = workdir / f'{name}-{step}.json'
  path.parent.mkdir(exist_ok=True)
  text = json.dumps({'step': step} | dict(content), ensure_ascii=False)
  files.replace(path, text.encode('utf-8', errors='backslashreplace'))
  for other in set(_files(path.parent, '.json').values()) - {path}:
    other.unlink()


def read_predictions(workdir: Path) -> dict[str, dict[int, list[EvalExample]]]:
  """Returns the examples by set and ascending step, without damaged lines."""
  found: dict[str, dict[int, list[EvalExample]]] = {}
  fields = set(EvalExample._fields)
  for (name, step), path in sorted(_files(workdir / _PREDICTIONS, '.jsonl').items()):
    rows = [EvalExample(**row) for row in read_lines(path) if row.keys() == fields]
    found.setdefault(name, {})[step] = [row for row in rows if _is_valid(row)]
  return found


def _is_valid(row: EvalExample) -> bool:
  if not isinstance(row.inputs, list) or not isinstance(row.scores, dict) or not row.scores:
    return False
  scores = [to_float(score) for score in row.scores.values()]
  return all(isinstance(part, str) for part in row.inputs) and None not in scores


def _newest_file(folder: Path) -> Path | None:
  """Returns the file of the latest step in a folder; None for an empty folder."""
  found = _files(folder, '.json')
  return found[max(found, key=lambda key: key[1])] if found else None


def _files(folder: Path, suffix: str) -> dict[tuple[str, int], Path]:
  """Returns the files NAME-STEP of a folder by name and step."""
  parts = {p: p.name.removesuffix(suffix).rpartition('-') for p in folder.glob(f'*-*{suffix}')}
  return {
    (name, int(step)): path
    for path, (name, _, step) in parts.items()
    if step.isdecimal() and path.is_file()
  }
