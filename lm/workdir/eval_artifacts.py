"""What evaluations leave in a workdir beside numbers.

predictions/SET-STEP.jsonl holds the outputs of a set, one JSON object an example: `inputs`, the
parts that were read; `output`; `reference`; `scores`, what is to be said of this example alone. The
files of the newest step and of the best one by `checkpoint.best` stay. predictions/notes.json has
what is to be known of corpus metrics, such as sacrebleu's signatures, by the metrics' names.

attention/SET-STEP.json is what lm.evaluation.attention_maps has found at the newest step, and
word_map/embedding-STEP.json what lm.report.word_map has.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lm.workdir import files
from lm.workdir.metrics_writer import number_of, read_lines

_PREDICTIONS, _ATTENTION, _WORD_MAP = 'predictions', 'attention', 'word_map'
_NOTES = 'notes.json'


class EvalExample(NamedTuple):
  """An example with what a model made of it."""

  inputs: list[str]
  output: Any
  reference: Any
  scores: dict[str, float]


def lines(examples: Iterable[EvalExample], **fields: Any) -> bytes:
  """Returns examples as JSON lines, each with `fields` before its own."""
  rows = (fields | _finite(example._asdict()) for example in examples)
  text = ''.join(json.dumps(row, ensure_ascii=False, allow_nan=False) + '\n' for row in rows)
  # The replacement of a lone surrogate is the JSON escape of it.
  return text.encode('utf-8', errors='backslashreplace')


def write_predictions(
  workdir: Path,
  step: int,
  sets: Mapping[str, Iterable[EvalExample]],
  notes: Mapping[str, str],
  best: int | None,
) -> None:
  """Writes the outputs of a step; removes those of all others but the best.

  Those of later steps go too: the run has been taken up before them.

  Args:
    workdir: the run's directory.
    step: that was evaluated.
    sets: the examples of each set by its name.
    notes: by metric name.
    best: the best step up to this one, if that can be said.

  Raises:
    OSError: the disk is full or broken.
  """
  folder = workdir / _PREDICTIONS
  folder.mkdir(exist_ok=True)
  files.replace(folder / _NOTES, json.dumps(dict(notes), indent=2).encode())
  for name, examples in sets.items():
    files.replace(folder / f'{name}-{step}.jsonl', lines(examples))
  for (_, at), path in _files(folder, '.jsonl').items():
    if at not in (step, best):
      path.unlink()


def write_attention(workdir: Path, name: str, step: int, maps: Mapping[str, Any]) -> None:
  """Writes the attention maps of a step in place of older ones.

  Raises:
    OSError: the disk is full or broken.
  """
  _write_newest(workdir / _ATTENTION, name, step, {'set': name, 'step': step} | dict(maps))


def write_word_map(workdir: Path, step: int, found: Mapping[str, Any]) -> None:
  """Writes the map of words of a step in place of older ones.

  Raises:
    OSError: the disk is full or broken.
  """
  _write_newest(workdir / _WORD_MAP, 'embedding', step, {'step': step} | dict(found))


def read_predictions(workdir: Path) -> dict[str, dict[int, list[EvalExample]]]:
  """Returns the examples that a workdir keeps, by set and step in rising order."""
  found: dict[str, dict[int, list[EvalExample]]] = {}
  fields = set(EvalExample._fields)
  for (name, step), path in sorted(_files(workdir / _PREDICTIONS, '.jsonl').items()):
    rows = [EvalExample(**row) for row in read_lines(path) if row.keys() == fields]
    found.setdefault(name, {})[step] = [row for row in rows if _is_right(row)]
  return found


def _is_right(row: EvalExample) -> bool:
  inputs, scores = row.inputs, row.scores
  if not isinstance(inputs, list) or not isinstance(scores, dict) or not scores:
    return False
  texts = all(isinstance(part, str) for part in inputs)
  return texts and all(number_of(score) is not None for score in scores.values())


def notes_file(workdir: Path) -> Path:
  """Returns the place of the notes on corpus metrics."""
  return workdir / _PREDICTIONS / _NOTES


def attention_file(workdir: Path) -> Path | None:
  """Returns the newest file of attention maps, if there is one."""
  return _newest(workdir / _ATTENTION)


def word_map_file(workdir: Path) -> Path | None:
  """Returns the newest map of words, if there is one."""
  return _newest(workdir / _WORD_MAP)


def _write_newest(folder: Path, name: str, step: int, content: Mapping[str, Any]) -> None:
  """Writes JSON as the file NAME-STEP of a folder, and removes all others there."""
  folder.mkdir(exist_ok=True)
  path = folder / f'{name}-{step}.json'
  text = json.dumps(content, ensure_ascii=False)
  files.replace(path, text.encode('utf-8', errors='backslashreplace'))
  for other in set(_files(folder, '.json').values()) - {path}:
    other.unlink()


def _newest(folder: Path) -> Path | None:
  found = _files(folder, '.json')
  return found[max(found, key=lambda key: key[1])] if found else None


def _files(folder: Path, suffix: str) -> dict[tuple[str, int], Path]:
  """Returns the files NAME-STEP of a folder by name and step."""
  found = {}
  for path in folder.glob(f'*-*{suffix}'):
    name, _, step = path.name.removesuffix(suffix).rpartition('-')
    if step.isdecimal() and path.is_file():
      found[name, int(step)] = path
  return found


def _finite(value: Any) -> Any:
  """Returns JSON of a value; what is not finite becomes a string, as in metrics.jsonl."""
  if isinstance(value, Mapping):
    return {key: _finite(entry) for key, entry in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(entry) for entry in value]
  if isinstance(value, float) and not math.isfinite(value):
    return 'NaN' if math.isnan(value) else 'Infinity' if value > 0 else '-Infinity'
  return value
