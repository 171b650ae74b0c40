"""Writes a workdir for parameters that no run has trained: imported, averaged or edited ones."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
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
from lm.workdir.load import Loaded
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
  step: int = 0,
  row: Mapping[str, Any] | None = None,
) -> None:
  """Writes a workdir whose model has these parameters; on an error, writes nothing.

  Args:
    workdir: a directory that is missing or empty.
    config: of the run; that of the workdir has the workdir's own tokenizer.json as its tokenizer.
    tokenizer: of the run.
    params: arrays, or a LazyArray for each, in the dtype to store.
    write_more: writes further files into the folder that it is given.
    step: of the only checkpoint.
    row: the fields of a row, if the model reads others than tokens (`experiment.read_row`).

  Raises:
    UserError: the directory is not empty, or cannot be written.
  """
  workdir = Path(workdir).absolute()
  files.check_new(workdir)
  folder = workdir.with_name(f'{workdir.name}.{os.getpid()}.tmp')
  own = {'fn': 'lm.text.tokenizers:existing', 'file': str(workdir / 'tokenizer.json')}
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.data.tokenizer = ConfigDict(own)
  try:
    folder.mkdir(parents=True)
    experiment.write_run_config(config, '', tokenizer, folder, content='', row=row)
    _save(folder, params, step)
    events = EventLog(folder)
    events.write('imported', step=step)
    events.close()
    write_more(folder)
    os.replace(folder, workdir)  # over an empty directory at most
  except OSError as e:
    raise UserError(f'--workdir={workdir} cannot be written: {e.strerror or e}') from e
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def write_like(run: Loaded, params: Params, workdir: str | Path) -> None:
  """Writes a workdir that is a run with other parameters: averaged, merged or edited ones.

  It has the config, the tokenizer, the code, the step and the fields of a row of the run, and the
  files of the checkpoint that the run was imported from.

  Args:
    run: from `lm.load`.
    params: a tree like `run.params`.
    workdir: a directory that is missing or empty.

  Raises:
    UserError: the tree has other names or shapes, or the directory is not empty.
  """
  wanted, given = (
    {jax.tree_util.keystr(path, simple=True, separator='/'): np.shape(x) for path, x in leaves}
    for leaves in map(jax.tree.leaves_with_path, (run.params, params))
  )
  for name in sorted(wanted.keys() | given.keys()):
    if wanted.get(name) != given.get(name):
      raise UserError(
        f'params: {name!r} has the shape {given.get(name)}, and {wanted.get(name)} in '
        f'{run.workdir}; None means that it is missing'
      )

  def copy_folders(folder: Path) -> None:
    for name in ('source', 'pretrained'):
      if (run.workdir / name).is_dir():
        shutil.copytree(run.workdir / name, folder / name, dirs_exist_ok=True)

  row = experiment.read_row(run.workdir)
  write_workdir(workdir, run.config, run.tokenizer, params, copy_folders, run.step, row)


def _save(workdir: Path, params: Params, step: int) -> None:
  """Saves a checkpoint."""

  sums = checkpoints.own_sums({'stopping': checkpoints.json_leaf(None)})

  def lazy(path: tuple[Any, ...], x: Any) -> LazyArray:
    def read() -> np.ndarray:
      array = x.read() if isinstance(x, LazyArray) else np.asarray(x)
      sums[checkpoints.key_of(path)] = cache.array_checksum(array)
      return array

    return LazyArray(read)

  at, zero = jnp.array(step, jnp.int32), jnp.zeros((), jnp.int32)
  state = TrainState(at, zero, zero, params, opt_state={})
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
    manager.save(step, args=ocp.args.Composite(**args), custom_metadata=checkpoints.MARK)
  place = folder / str(step) / checkpoints.DIGESTS
  place.mkdir()
  checkpoints.write_sums(place, step, sums)
