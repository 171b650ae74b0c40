"""What programs open: a run, the mean of its last checkpoints, or an ensemble of several."""

import itertools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from lm.config import resolve
from lm.errors import UserError
from lm.models import ensemble
from lm.models.embeddings import Embeddings
from lm.parallel import mesh as meshes
from lm.tasks import find, spans
from lm.text.files import expand
from lm.text.tokenizers import vocabulary_size
from lm.types import apply_of
from lm.workdir import files
from lm.workdir.load import Loaded, Run, open_run, restore

Member = tuple[pathlib.Path, int | None]  # workdir and step; None for the one that is taken unasked

# What is found there is no distribution over the outputs of the model.
_NO_DISTRIBUTION = (find.number, spans.spans)
_ALIKE = ('task', 'convert', 'labels')


def parse_members(workdirs: str, steps: str | None) -> list[Member]:
  """Returns what the flags --workdir=A,B and --step=N,M name.

  One workdir goes with each of many steps, and one step with each of many workdirs.

  Raises:
    UserError: a step is no number, they are not as many, or one is named twice.
  """
  # The name of one directory may have a comma in it.
  folders = [workdirs] if expand(workdirs, '--workdir').is_dir() else workdirs.split(',')
  if '' in folders:
    raise UserError(f'--workdir={workdirs}: there is nothing before or after one of the commas')
  numbers: list[int | None] = [None]
  if steps is not None:
    parts = steps.split(',')
    if not all(part.isdecimal() for part in parts):
      raise UserError(
        f'--step={steps} is no step, nor several with commas between, such as 500,750'
      )
    numbers = [int(part) for part in parts]
  count = max(len(folders), len(numbers))
  for several in (folders, numbers):
    if len(several) not in (1, count):
      raise UserError(
        f'--step={steps} names {len(numbers)} steps for the {len(folders)} directories of '
        f'--workdir={workdirs}; give one step, or as many'
      )
  named = zip(folders * (count // len(folders)), numbers * (count // len(numbers)), strict=True)
  found = [(files.workdir(folder), step) for folder, step in named]
  for i, (folder, step) in enumerate(found):
    if (folder, step) in found[:i]:
      which = '' if step is None else f' at --step={step}'
      raise UserError(f'--workdir={folder}{which} is named twice; an ensemble needs different ones')
  return found


def open_runs(
  workdirs: str, steps: str | None = None, average: int = 1, devices: Any = None
) -> Loaded:
  """Opens what --workdir, --step and --average name, several runs or steps as one ensemble.

  An ensemble has the config of its first run, save that its rows are no longer than any member
  reads; `eval.vectors` is left out and told, for word vectors of different runs share no space.

  Args:
    workdirs: directories with commas between.
    steps: likewise; None for what `lm.workdir.load.load` takes unasked; `notes` say which.
    average: so many of the newest checkpoints of each run are averaged; 1 for none.
    devices: the parameters are sharded over all of these, on one mesh
      (`lm.parallel.mesh.spread`); None for the first device alone.

  Raises:
    UserError: a run or step is not there, or two do not belong together.
  """
  if average < 1:
    raise UserError(f'--average={average} is not a positive number of checkpoints')
  if average > 1 and steps is not None:
    raise UserError(
      f'--average={average} takes the newest checkpoints, and --step={steps} names some; give one'
    )
  named = parse_members(workdirs, steps)
  runs: list[Run] = []
  for folder, _ in named:
    runs.append(open_run(folder))
    _check_alike(named[0][0], runs[0], folder, runs[-1])
  rules = meshes.logical_axis_rules(runs[0].config.mesh.rules)
  mesh = None if devices is None else meshes.spread([run.boxed for run in runs], rules, devices)
  loaded = [
    restore(run, step, mesh, rules, average) for run, (_, step) in zip(runs, named, strict=True)
  ]
  if len(loaded) == 1:
    return loaded[0]
  return _together(loaded)


def _together(loaded: Sequence[Loaded]) -> Loaded:
  config = loaded[0].config
  for key in ('context', 'source_context'):
    config.data[key] = min(one.config.data[key] for one in loaded)
  if config.eval.vectors:
    left_out = f'note: eval.vectors={tuple(config.eval.vectors)!r} is left out'
    print(f'{left_out}: an ensemble has no word vectors of its own', file=sys.stderr)
    config.eval.vectors = ()
  model = ensemble.make_ensemble([one.model for one in loaded], _mean(config))
  return Loaded(
    config,
    ensemble.stack_params([one.params for one in loaded]),
    apply_of(model),
    loaded[0].tokenizer,
    loaded[0].step,
    model,
    tuple(itertools.chain.from_iterable(one.steps for one in loaded)),
    loaded[0].workdir,
    tuple(itertools.chain.from_iterable(one.notes for one in loaded)),
    loaded[0].mesh,
  )


def _mean(config: ConfigDict) -> ensemble.Mean:
  """Returns how what the models of a config say is averaged."""
  convert = config.data.convert
  builder = None if convert is None else resolve.resolve(convert, 'data.convert')
  plain = getattr(builder, 'func', builder)
  return ensemble.logits if plain in _NO_DISTRIBUTION else ensemble.probabilities


def _check_alike(first: pathlib.Path, one: Run, folder: pathlib.Path, other: Run) -> None:
  """Raises UserError unless two runs can be in one ensemble."""
  if one is other:
    return
  both = f'--workdir: {first} and {folder} make no ensemble'
  for workdir, run in ((first, one), (folder, other)):
    if isinstance(run.model, Embeddings):
      raise UserError(f'{both}: {workdir} has word vectors, which share no space with others')
  for key in _ALIKE:
    ours, theirs = one.config.data[key], other.config.data[key]
    if ours != theirs:
      raise UserError(f'{both}: data.{key} is {ours!r} there and {theirs!r} here; it must be one')
  if one.tokenizer.to_str() != other.tokenizer.to_str():
    raise UserError(
      f'{both}: their tokenizers differ (of {vocabulary_size(one.tokenizer)} and '
      f'{vocabulary_size(other.tokenizer)} entries); train them on one data.source with one '
      'data.tokenizer'
    )
  for name in ('continues_prompts', 'num_classes'):
    ours, theirs = (getattr(run.model, name, None) for run in (one, other))
    if ours != theirs:
      raise UserError(
        f'{both}: model.fn={one.config.model.fn!r} and {other.config.model.fn!r} differ in {name}: '
        f'{ours!r} and {theirs!r}'
      )
