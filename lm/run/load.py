"""Opening a workdir: in a notebook, and in the programs that read a trained model."""

import dataclasses
import pathlib
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import tokenizers
from ml_collections import ConfigDict

from lm.errors import UserError
from lm.run import build, experiment, files, host
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
  steps: tuple[int, ...] = ()  # of all checkpoints, where several were averaged or put together


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


def load(
  workdir: str | pathlib.Path, step: int | None = None, devices: Any = None, average: int = 1
) -> Loaded:
  """Opens a workdir at a step, by default the newest intact one.

  The parameters come onto the first device, wherever they were trained. The config's functions are
  those of the sources that the workdir kept.

  Args:
    workdir: the record of a run.
    step: of its checkpoint.
    devices: the first of these gets the parameters.
    average: above 1, the parameters are the mean of so many of the newest checkpoints (Vaswani et
      al. 2017, 6.1), whatever `step`.

  Raises:
    UserError: there is no run, no intact checkpoint, or not that step, or not as many.
  """
  workdir = files.workdir(workdir)
  config = experiment.open_workdir(workdir)
  host.keep_compiled(config.data.cache)
  tokenizer = experiment.open_tokenizer(workdir)
  model = build.model(config, tokenizer.get_vocab_size())
  init = build.init_of(model, config.data.context)
  device = jax.sharding.SingleDeviceSharding((devices or jax.local_devices())[0])
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
    nn.unbox(jax.eval_shape(init, jax.random.key(0))),
  )
  checkpoints = Checkpoints(workdir)
  try:
    if average > 1:
      params, steps = _averaged(checkpoints, abstract, workdir, average)
    else:
      params, at = restore_params(checkpoints, abstract, workdir, step)
      steps = (at,)
  finally:
    checkpoints.close()
  return Loaded(config, params, build.apply_of(model), tokenizer, steps[-1], model, steps)


def _averaged(
  checkpoints: Checkpoints, abstract: Params, workdir: pathlib.Path, count: int
) -> tuple[Params, tuple[int, ...]]:
  """Returns the mean of the parameters of the newest `count` checkpoints, and their steps.

  Raises:
    UserError: there are not as many, or one of them is damaged.
  """
  steps = tuple(checkpoints.steps())
  if count > len(steps):
    kept = ', '.join(map(str, steps)) if steps else 'none'
    raise UserError(
      f'--average={count}: {workdir} has {len(steps)} checkpoints ({kept}); checkpoint.keep says '
      'how many a run keeps'
    )
  total = None
  for step in steps[-count:]:
    try:
      params, _ = restore_params(checkpoints, abstract, workdir, step)
    except UserError as e:
      raise UserError(f'--average={count}: {e}') from e
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)  # for those kept in fewer bits
    total = wide if total is None else jax.tree.map(jnp.add, total, wide)
  mean = jax.tree.map(lambda x, like: (x / count).astype(like.dtype), total, abstract)
  return mean, steps[-count:]


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
