"""Files that evaluations leave in a workdir in addition to metrics.

predictions/SET-STEP.jsonl holds the outputs for a set, one JSON object for each example: `inputs`,
the parts of the source; `output`; `reference`; `scores`, of this example alone. The files of the
newest step and of the best one by `checkpoint.monitor` are kept. predictions/notes.json holds notes
on corpus metrics by name, such as the signatures of sacrebleu.

attention/SET-STEP.json holds the result of lm.evaluation.attention_maps at the newest step, and
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
  """Returns examples as JSON lines, each with `fields` before its own."""
  return b''.join(json_line(fields | example._asdict()) for example in examples)


def write_predictions(
  workdir: Path,
  step: int,
  sets: Mapping[str, Iterable[EvalExample]],
  notes: Mapping[str, str],
  best: int | None,
) -> None:
  """Writes the outputs of a step and removes those of all other steps but the best.

  Files of later steps, which remain when a run resumes before them, are removed too.

  Args:
    workdir: the run's directory.
    step: the evaluated step.
    sets: the examples of each set by its name.
    notes: by metric name.
    best: the best step up to this one, if it is known.

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
  """Writes JSON as the file 'FOLDER/NAME-STEP.json', and removes all others of the folder.

  Args:
    workdir: the run's directory.
    name: 'FOLDER/NAME'.
    step: the evaluated step.
    content: JSON values; `step` is added.

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
  """Returns the stored examples by set and ascending step; damaged lines are left out."""
  found: dict[str, dict[int, list[EvalExample]]] = {}
  fields = set(EvalExample._fields)
  for (name, step), path in sorted(_files(workdir / _PREDICTIONS, '.jsonl').items()):
    rows = [EvalExample(**row) for row in read_lines(path) if row.keys() == fields]
    found.setdefault(name, {})[step] = [row for row in rows if _is_valid(row)]
  return found


def _is_valid(row: EvalExample) -> bool:
  if not isinstance(row.inputs, list) or not isinstance(row.scores, dict) or not row.scores:
    return False
  texts = all(isinstance(part, str) for part in row.inputs)
  return texts and all(to_float(score) is not None for score in row.scores.values())


def newest_file(folder: Path) -> Path | None:
  """Returns the file of the latest step in `attention` or `word_map`, if there is one."""
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
