"""Files that evaluations write into a workdir in addition to metrics.

predictions/SET-STEP.jsonl has a JSON object for each example of a set: `inputs`, the parts of the
source; `output`; `reference`; `scores`, of this example alone. The files of the newest step and of
the best step by `checkpoint.monitor` are kept. predictions/notes.json has notes on corpus metrics
by name, such as the signatures of sacrebleu.

attention/SET-STEP.json is the result of lm.evaluation.attention_maps at the newest step, and
word_map/embedding-STEP.json that of lm.evaluation.vectors.word_map.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lm.workdir import files
from lm.workdir.metrics_writer import json_line, read_lines, to_float

NOTES = 'predictions/notes.json'
ATTENTION, WORD_MAP, _PREDICTIONS = 'attention', 'word_map', 'predictions'


class EvalExample(NamedTuple):
  """An example with the output of a model."""

  inputs: list[str]
  output: Any
  reference: Any
  scores: dict[str, float]


def lines(examples: Iterable[EvalExample], **fields: Any) -> bytes:
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
  files.replace(workdir / NOTES, json.dumps(dict(notes), indent=2).encode())
  for name, examples in sets.items():
    files.replace(folder / f'{name}-{step}.jsonl', lines(examples))
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


def newest_file(folder: Path) -> Path | None:
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
