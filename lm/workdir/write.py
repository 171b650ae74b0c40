"""Writes a workdir for parameters that no run has trained: imported, averaged or edited ones."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tokenizers
from ml_collections import ConfigDict

from lm.data import cache
from lm.errors import UserError
from lm.types import Params, TrainState
from lm.workdir import checkpoints, experiment, files
from lm.workdir.metrics_writer import EventLog


@dataclasses.dataclass(frozen=True)
class LazyArray:
  """A parameter that is read when it is stored, so that one of them is in memory at a time."""

  read: Callable[[], np.ndarray]


class _OneByOne(ocp.type_handlers.NumpyHandler):
  """Writes lazy arrays one after the other, in the format of arrays."""

  async def serialize(
    self, values: Sequence[Any], infos: Sequence[Any], args: Sequence[Any] | None = None
  ) -> Sequence[ocp.future.Future]:
    for i, (value, info) in enumerate(zip(values, infos, strict=True)):
      # The call blocks here, and not in a thread of Orbax, where an error would print its trace.
      for saved in await super().serialize([value.read()], [info], args and args[i : i + 1]):
        saved.result()
    return []


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
    params: arrays, or a LazyArray for each, in the dtype to store.
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
    _save(folder, params)
    events = EventLog(folder)
    events.write('imported', step=0)
    events.close()
    write_more(folder)
    os.replace(folder, workdir)  # over an empty directory at most
  except OSError as e:
    raise UserError(f'--workdir={workdir} cannot be written: {e.strerror or e}') from e
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _save(workdir: Path, params: Params) -> None:
  """Saves the checkpoint of step 0."""

  sums = checkpoints.own_sums({'stopping': checkpoints.json_leaf(None)})

  def lazy(path: tuple[Any, ...], x: Any) -> LazyArray:
    def read() -> np.ndarray:
      array = x.read() if isinstance(x, LazyArray) else np.asarray(x)
      sums[checkpoints.key_of(path)] = cache.array_checksum(array)
      return array

    return LazyArray(read)

  zero = jnp.zeros((), jnp.int32)
  state = TrainState(zero, zero, zero, params, opt_state={})
  items = jax.tree_util.tree_map_with_path(lazy, checkpoints.state_items(state))
  registry = ocp.type_handlers.create_type_handler_registry(
    (LazyArray, _OneByOne()),
    (jax.Array, ocp.type_handlers.ArrayHandler()),  # Orbax warns without it
  )
  handlers = {name: ocp.PyTreeCheckpointHandler(type_handler_registry=registry) for name in items}
  args = {name: ocp.args.PyTreeSave(tree) for name, tree in items.items()}
  options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
  folder = checkpoints.checkpoints_folder(workdir)
  with ocp.CheckpointManager(folder, options=options, item_handlers=handlers) as manager:
    manager.save(0, args=ocp.args.Composite(**args), custom_metadata=checkpoints.MARK)
  place = folder / '0' / checkpoints.DIGESTS
  place.mkdir()
  checkpoints.write_sums(place, 0, sums)
