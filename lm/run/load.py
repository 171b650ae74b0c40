"""Opening a workdir: in a notebook, and in the programs that read a trained model."""

import dataclasses
import pathlib
import sys
from typing import Any

import flax.linen as nn
import jax
import tokenizers
from ml_collections import ConfigDict

from lm.errors import UserError
from lm.run import build, experiment, host
from lm.run.checkpoint import Checkpoints, badness, first_line, kept_steps
from lm.types import Apply, Params


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A trained model and what it was trained with."""

  config: ConfigDict
  params: Params
  apply: Apply
  tokenizer: tokenizers.Tokenizer
  step: int
  model: nn.Module


def best_step(workdir: pathlib.Path) -> int | None:
  """Returns the step of the best checkpoint by `checkpoint.best`; None where none has a score."""
  config = experiment.open_workdir(workdir)
  scores = badness(workdir, config.checkpoint.best)
  checkpoints = Checkpoints(workdir)
  try:
    (best,) = kept_steps(checkpoints.steps(), scores, last=0, best=1) or (None,)
  finally:
    checkpoints.close()
  return best


def load(workdir: str | pathlib.Path, step: int | None = None, devices: Any = None) -> Loaded:
  """Opens a workdir at a step, by default the newest intact one.

  The parameters come onto the first device, wherever they were trained. The config's functions are
  those of the sources that the workdir kept.

  Raises:
    UserError: there is no run, no intact checkpoint, or not that step.
  """
  workdir = pathlib.Path(workdir)
  config = experiment.open_workdir(workdir)
  host.keep_compiled(config.data.cache)
  tokenizer = experiment.open_tokenizer(workdir)
  model = build.model(config, tokenizer.get_vocab_size())
  init = build.init_of(model, config.data.context)
  device = jax.sharding.SingleDeviceSharding((devices or jax.devices())[0])
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
    nn.unbox(jax.eval_shape(init, jax.random.key(0))),
  )
  checkpoints = Checkpoints(workdir)
  try:
    params, at = restore_params(checkpoints, abstract, workdir, step)
  finally:
    checkpoints.close()
  return Loaded(config, params, build.apply_of(model), tokenizer, at, model)


def restore_params(
  checkpoints: Checkpoints, abstract: Params, workdir: pathlib.Path, step: int | None
) -> tuple[Params, int]:
  """Returns the parameters of a step by name, or of the newest intact one, and the step.

  Raises:
    UserError: the named step is missing, damaged or of another shape; or none is intact.
  """
  steps = checkpoints.steps()
  if not steps:
    raise UserError(f'--workdir={workdir}: no checkpoint there')
  if step is not None and step not in steps:
    raise UserError(f'--step={step}: {workdir} has checkpoints at {", ".join(map(str, steps))}')
  errors = []
  for candidate in [step] if step is not None else reversed(steps):
    try:
      return checkpoints.restore_params(candidate, abstract), candidate
    except UserError:
      raise
    except Exception as e:  # whatever Orbax and its storage make of damaged files
      errors.append(f'{candidate} ({first_line(e)})')
      if step is None:
        print(f'warning: checkpoint {candidate} is damaged ({first_line(e)})', file=sys.stderr)
  if step is not None:
    others = ', '.join(str(s) for s in steps if s != step)
    remedy = f'; there are also {others}' if others else ''
    raise UserError(f'--step={step}: the checkpoint is damaged{remedy}: {errors[0]}')
  raise UserError(f'--workdir={workdir}: no intact checkpoint; damaged: {", ".join(errors)}')
