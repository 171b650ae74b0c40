"""Writes a workdir for parameters that no run has trained: imported, averaged or edited ones."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import tokenizers
from ml_collections import ConfigDict

from lm.errors import UserError
from lm.types import Params, TrainState
from lm.workdir import experiment, files
from lm.workdir.checkpoints import Checkpoints
from lm.workdir.metrics_writer import EventLog


def write_workdir(
  workdir: str | Path,
  config: ConfigDict,
  tokenizer: tokenizers.Tokenizer,
  params: Params,
  write_more: Callable[[Path], None] = lambda folder: None,
) -> None:
  """Writes a workdir whose model has these parameters, at step 0; on an error, writes nothing.

  Args:
    workdir: a directory that is missing or empty.
    config: of the run; its tokenizer becomes the workdir's own tokenizer.json.
    tokenizer: of the run.
    params: in the dtype to store.
    write_more: writes further files into the folder that it is given.

  Raises:
    UserError: the directory is not empty, or cannot be written.
  """
  workdir = Path(workdir).absolute()
  files.check_new(workdir)
  folder = workdir.with_name(f'{workdir.name}.{os.getpid()}.tmp')
  own = {'fn': 'lm.text.tokenizers:existing', 'file': str(workdir / 'tokenizer.json')}
  with config.unlocked():
    config.data.tokenizer = ConfigDict(own)
  try:
    folder.mkdir(parents=True)
    experiment.write_run_config(config, '', tokenizer, folder, content='')
    zero = jnp.zeros((), jnp.int32)
    checkpoints = Checkpoints(folder)
    try:
      checkpoints.save(0, TrainState(zero, zero, zero, params, opt_state={}))
      checkpoints.wait()
    finally:
      checkpoints.close()
    events = EventLog(folder)
    events.write('imported', step=0)
    events.close()
    write_more(folder)
    os.replace(folder, workdir)  # over an empty directory at most
  except OSError as e:
    raise UserError(f'--workdir={workdir} cannot be written: {e.strerror or e}') from e
  finally:
    shutil.rmtree(folder, ignore_errors=True)
