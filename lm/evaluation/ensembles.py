"""Opens the model that a program names by flags: a checkpoint, a mean of some, or an ensemble."""

import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from lm.config import resolve
from lm.config.base import WORD_VECTORS
from lm.data import features
from lm.errors import UserError
from lm.models import ensemble
from lm.models.embeddings import Embeddings
from lm.parallel import mesh as meshes
from lm.text.files import expand_path
from lm.text.tokenizers import vocabulary_size
from lm.types import apply_of
from lm.workdir import files
from lm.workdir.load import Loaded, Run, open_run, restore

Member = tuple[pathlib.Path, int | None]  # workdir and step; None for the default step


def parse_members(workdirs: str, steps: str | None) -> list[Member]:
  """Returns the members that the flags --workdir=A,B and --step=N,M name.

  One workdir combines with each of several steps, and one step with each of several workdirs.

  Raises:
    UserError: a step is not an integer, the counts differ, or a member is named twice.
  """
  # The name of one directory may contain a comma.
  folders = [workdirs] if expand_path(workdirs, '--workdir').is_dir() else workdirs.split(',')
  if '' in folders:
    raise UserError(f'--workdir={workdirs}: there is nothing before or after one of the commas')
  parts: list[str | None] = [None] if steps is None else [*steps.split(',')]
  if not all(part is None or part.isdecimal() for part in parts):
    raise UserError(f'--step={steps} must be a step, or several separated by commas: 500,750')
  count = max(len(folders), len(parts))
  if len(folders) not in (1, count) or len(parts) not in (1, count):
    raise UserError(
      f'--step={steps} names {len(parts)} steps for the {len(folders)} directories of '
      f'--workdir={workdirs}; give one step, or one for each directory'
    )
  members: list[Member] = []
  for _, folder, part in zip(range(count), itertools.cycle(folders), itertools.cycle(parts)):
    member = files.workdir(folder), None if part is None else int(part)
    if member in members:
      which = '' if part is None else f' at --step={part}'
      raise UserError(f'--workdir={folder}{which} is named twice; members of an ensemble differ')
    members.append(member)
  return members


def open_runs(
  workdirs: str,
  steps: str | None = None,
  average: int = 1,
  devices: Any = None,
  trusted: bool = True,
  mean: str | None = None,
) -> Loaded:
  """Opens the runs of --workdir, --step and --average_checkpoints; several form one ensemble.

  An ensemble has the config of its first member, with the shortest context of all members. It has
  no word vectors, because those of different runs share no space; a note says so.

  Args:
    workdirs: directories separated by commas.
    steps: steps separated by commas; None for the default of `lm.workdir.load.load`. The `notes` of
      the result then say which step it is.
    average: how many of the newest checkpoints of each run are averaged; 1 for none.
    devices: the parameters are sharded over these, on one mesh (`lm.parallel.mesh.spread`); None
      for the first device alone.
    trusted: whether the code of all these workdirs may run, as in `lm.workdir.load.load`.
    mean: the import path of `mean(logits_MBTV) -> logits_BTV` of an ensemble; None for the mean
      probability, or for what the converter of the task says.

  Raises:
    UserError: a run or step does not exist, two runs cannot form an ensemble, or `mean` is wrong.
  """
  if average < 1:
    raise UserError(f'--average_checkpoints={average} is not a positive number of checkpoints')
  if average > 1 and steps is not None:
    raise UserError(
      f'--average_checkpoints={average} takes the newest checkpoints, and --step={steps} names '
      'others; give only one of the two flags'
    )
  members = parse_members(workdirs, steps)
  runs = [open_run(folder, trusted) for folder, _ in members]
  for run in runs[1:]:
    _check_compatible(runs[0], run)
  rules = meshes.logical_axis_rules(runs[0].config.mesh.rules)
  mesh = None if devices is None else meshes.spread([run.boxed for run in runs], rules, devices)
  loaded = [
    restore(run, step, mesh, rules, average) for run, (_, step) in zip(runs, members, strict=True)
  ]
  if len(loaded) > 1:
    return _as_ensemble(loaded, mean)
  if mean is not None:
    raise UserError(f'--mean={mean} needs an ensemble: several directories or steps')
  return loaded[0]


def _as_ensemble(loaded: Sequence[Loaded], path: str | None = None) -> Loaded:
  first, config = loaded[0], loaded[0].config
  for key in ('seq_len', 'source_len'):
    config.data[key] = min(each.config.data[key] for each in loaded)
  if config.eval.vector_metrics:
    ignored = f'note: eval.vector_metrics={tuple(config.eval.vector_metrics)!r} is ignored'
    print(f'{ignored}: an ensemble has no word vectors of its own', file=sys.stderr)
    config.eval.vector_metrics = ()
  config.eval.evaluators = tuple(
    path for path in config.eval.evaluators if not path.startswith(WORD_VECTORS)
  )
  mean: ensemble.Mean = ensemble.probabilities
  if path is not None:
    mean = resolve.resolve(path, '--mean')
  elif config.data.task is not None:
    with first.modules():
      _, converter = features.build_task(config.data)
    mean = ensemble.logits if converter.mean_of_logits else mean
  model = ensemble.make_ensemble([each.model for each in loaded], mean)
  return dataclasses.replace(
    first,
    params=ensemble.stack_params([each.params for each in loaded]),
    apply=apply_of(model),
    model=model,
    steps=tuple(itertools.chain.from_iterable(each.steps for each in loaded)),
    notes=tuple(itertools.chain.from_iterable(each.notes for each in loaded)),
  )


def _check_compatible(first: Run, other: Run) -> None:
  """Raises UserError unless two runs can be members of one ensemble."""
  both = f'--workdir: {first.workdir} and {other.workdir} form no ensemble'
  for run in (first, other):
    if isinstance(run.model, Embeddings):
      raise UserError(f'{both}: {run.workdir} has word vectors, which share no space with others')
  for key in ('task', 'converter', 'labels'):
    expected, found = first.config.data[key], other.config.data[key]
    if expected != found:
      raise UserError(f'{both}: data.{key} differs: {expected!r} and {found!r}')
  if first.tokenizer.to_str() != other.tokenizer.to_str():
    raise UserError(
      f'{both}: their tokenizers differ (of {vocabulary_size(first.tokenizer)} and '
      f'{vocabulary_size(other.tokenizer)} entries); train them on one data.source with one '
      'data.tokenizer'
    )
  for name in ('continues_prompts', 'num_classes'):
    expected, found = (getattr(run.model, name, None) for run in (first, other))
    if expected != found:
      raise UserError(
        f'{both}: model.fn={first.config.model.fn!r} and {other.config.model.fn!r} differ in '
        f'{name}: {expected!r} and {found!r}'
      )
