"""Checkpoints: saved and restored by Orbax, compared strictly before any restore, and pruned.

A checkpoint of a step has two items: `params`, for evaluation and generation, and `training`, the
rest of the state. With early stopping it has a third, `stopping`: the state of early stopping
before the evaluation of that step, which comes after the save.
"""

import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from lm.data import remote
from lm.errors import UserError, did_you_mean, first_line
from lm.parallel import multihost
from lm.types import Array, Params, TrainState
from lm.workdir.metrics_writer import EventLog

_Restored = TypeVar('_Restored')


class _Manager(ocp.CheckpointManager):
  """Orbax's manager without its preemption check, which the training loop makes itself.

  JAX counts the checks of each process and stops all processes at one count. Checks by a second
  caller would make the counts differ.
  """

  def reached_preemption(self, step: int) -> bool:
    del step
    return False


class Checkpoints:
  """The checkpoints of a workdir. Saves are asynchronous; the next call raises their errors.

  With several processes, all of them must call the methods in the same order.

  Attributes:
    abandoned: whether to close without waiting for other processes.
  """

  def __init__(self, workdir: pathlib.Path):
    # `kept_steps` and not Orbax decides what is pruned, because a step is saved before it is
    # evaluated: a failing evaluation must not cost the steps that led to it.
    options = ocp.CheckpointManagerOptions(
      save_interval_steps=1, max_to_keep=None, create=False, enable_async_checkpointing=True
    )
    options.multiprocessing_options = _all_processes()
    self.abandoned = False
    self.folder = checkpoints_folder(workdir)
    self.folder.mkdir(parents=True, exist_ok=True)
    # With named handlers the shapes of a checkpoint can be read before any restore.
    handlers: dict[str, ocp.CheckpointHandler] = {
      'params': ocp.StandardCheckpointHandler(),
      'training': ocp.StandardCheckpointHandler(),
      'stopping': ocp.JsonCheckpointHandler(),
    }
    self._manager = _Manager(self.folder, options=options, item_handlers=handlers)

  def steps(self) -> list[int]:
    """Returns the saved steps in ascending order, without incomplete saves."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, state: TrainState, stopping: Mapping[str, Any] | None = None) -> None:
    """Starts a save; raises the error of the save before, such as an OSError."""
    items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
    if stopping is not None:
      items['stopping'] = ocp.args.JsonSave(dict(stopping))
    self._manager.save(step, args=ocp.args.Composite(**items), force=True)

  def wait(self) -> None:
    """Waits until the save is on disk; raises its error."""
    self._manager.wait_until_finished()

  def prune(self, keep: Iterable[int]) -> None:
    """Deletes the checkpoints of all other steps."""
    for step in multihost.broadcast_from_primary(sorted(set(self.steps()) - set(keep))):
      self._manager.delete(step)

  def quarantine(self, step: int) -> None:
    """Moves a damaged checkpoint to workdir/damaged/, so that its step can be saved again."""
    if multihost.is_primary():
      target = self.folder.parent / 'damaged' / f'{step}-{int(time.time())}'
      target.parent.mkdir(exist_ok=True)
      (self.folder / str(step)).rename(target)
    multihost.barrier(600, 'for process 0 to move a damaged checkpoint')
    self._manager.reload()

  def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, Mapping[str, Any] | None]:
    """Returns the state of a step, sharded as `abstract`, and the `stopping` saved with it.

    Raises:
      UserError: the tree of the checkpoint is not that of `abstract`.
      Exception: any error of Orbax on damaged files.
    """
    for item, tree in _items(abstract).items():
      self._check(step, item, tree)
    stopping = None
    if 'stopping' in self._manager.item_metadata(step):
      args = ocp.args.Composite(stopping=ocp.args.JsonRestore())
      stopping = self._manager.restore(step, args=args)['stopping']
    params, training = (self._read(step, *item) for item in _items(abstract).items())
    return TrainState(params=params, **training), stopping

  def restore_params(self, step: int, abstract: Params) -> Params:
    """Returns the parameters alone; see `restore`."""
    self._check(step, 'params', abstract)
    return self._read(step, 'params', abstract)

  def restore_subset(
    self, step: int, abstract: Mapping[str, jax.ShapeDtypeStruct]
  ) -> dict[str, Array]:
    """Returns some parameters by path; they must exist with the shapes of `abstract`."""
    tree = unflatten_dict(dict(abstract), sep='/')
    restore_args = ocp.checkpoint_utils.construct_restore_args(tree)
    args = ocp.args.PyTreeRestore(tree, restore_args=restore_args, partial_restore=True)
    restored = self._read(step, 'params', tree, ocp.PyTreeCheckpointHandler, args)
    return flatten_dict(restored, sep='/')

  def _read(
    self,
    step: int,
    item: str,
    abstract: Any,
    make_handler: Callable[..., ocp.CheckpointHandler] = ocp.StandardCheckpointHandler,
    args: ocp.args.CheckpointArgs | None = None,
  ) -> Any:
    """Returns an item of a step, read in parts no larger than its largest shard on this host."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(self._manager.item_metadata(step)[item])
    stored = {_key(path): leaf for path, leaf in leaves}
    wanted, _ = jax.tree_util.tree_flatten_with_path(abstract)
    sizes = [largest_read(stored[_key(path)], leaf) for path, leaf in wanted]
    processes = _all_processes()
    handler = make_handler(
      restore_concurrent_gb=max(sizes, default=0) // 10**9 + 1, multiprocessing_options=processes
    )
    with ocp.Checkpointer(handler, multiprocessing_options=processes) as reader:
      args = args or ocp.args.StandardRestore(abstract)
      return reader.restore(self.folder / str(step) / item, args=args)

  def _check(self, step: int, item: str, abstract: Any) -> None:
    difference = tree_difference(self.shapes(step, item), _shapes(abstract))
    if difference:
      raise UserError(
        f'checkpoint {step} of {self.folder} does not fit the config: {item}: {difference}'
      )

  def shapes(self, step: int, item: str) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the arrays of an item by path, without reading them."""
    tree = self._manager.item_metadata(step)[item]
    if tree is None:
      raise FileNotFoundError(f'checkpoint {step} of {self.folder} has no {item}')
    return _shapes(tree)

  def leaves(self, step: int, item: str) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Returns shape and stored dtype of the arrays of an item by path, without reading them."""
    found, _ = jax.tree_util.tree_flatten_with_path(self._manager.item_metadata(step)[item])
    return {_key(path): (tuple(x.shape), np.dtype(x.dtype)) for path, x in found}

  def close(self) -> None:
    """Waits for the last save, unless the checkpoints are `abandoned`."""
    if not self.abandoned:
      self._manager.close()


def largest_read(stored: Any, wanted: jax.ShapeDtypeStruct) -> int:
  """Returns the bytes that this host reads for the largest shard of an array.

  A read takes entire chunks: each shard reads all of an array that was saved by one device.

  Args:
    stored: Orbax's metadata of the saved array: `shape`, `dtype`, `storage.chunk_shape`.
    wanted: the shape and the sharding of the restored array.
  """
  storage = getattr(stored, 'storage', None)
  chunks = (storage and storage.chunk_shape) or wanted.shape
  item = np.dtype(stored.dtype or wanted.dtype).itemsize
  largest = 0
  for index in wanted.sharding.addressable_devices_indices_map(wanted.shape).values():
    bounds = [part.indices(size) for part, size in zip(index or (), wanted.shape, strict=True)]
    sides = [
      -(-stop // chunk) * chunk - start // chunk * chunk
      for (start, stop, _), chunk in zip(bounds, chunks, strict=True)
    ]
    largest = max(largest, item * math.prod(sides))
  return largest


def restore_newest(
  checkpoints: Checkpoints, abstract: TrainState, events: EventLog
) -> tuple[TrainState, Mapping[str, Any] | None] | None:
  """Returns the result of `restore` for the newest intact step; None if nothing was saved yet.

  A damaged checkpoint is reported and moved to `damaged/`, and the one before is tried.

  Raises:
    UserError: there are checkpoints and none is intact, or one has other shapes.
  """
  for step in reversed(checkpoints.steps()):
    restored, reason = attempt(checkpoints.restore, step, abstract)
    if restored is not None:
      events.write('restore', step=step)
      return restored
    events.write('error', step=step, error=f'damaged checkpoint: {reason}')
    if multihost.is_primary():
      print(f'warning: checkpoint {step} is damaged ({reason})', file=sys.stderr)
    checkpoints.quarantine(step)
  damaged = checkpoints.folder.parent / 'damaged'
  if damaged.is_dir():
    raise UserError(
      f'{checkpoints.folder}: no intact checkpoint; all are in {damaged}; take another workdir, '
      'or remove that folder to begin again'
    )
  return None


def attempt(restore: Callable[..., _Restored], *args: Any) -> tuple[_Restored | None, str]:
  """Returns (`restore(*args)`, ''), or (None, the reason) if it fails in any process.

  Raises:
    UserError: `restore` raised it.
  """
  reason, restored = '', None
  try:
    restored = restore(*args)
  except UserError:
    raise
  except Exception as e:  # Orbax and its storage raise many types for damaged files
    reason = first_line(e)
  reason = next(filter(None, multihost.gather(reason)), '')
  return (None if reason else restored), reason


def _all_processes() -> ocp.options.MultiprocessingOptions:
  """Returns options that name every process, if there are several.

  Named processes wait for each other through the coordination service, which has a timeout.
  """
  several = multihost.is_multiprocess()
  active = set(range(multihost.process_index_and_count()[1])) if several else None
  return ocp.options.MultiprocessingOptions(active_processes=active)


def checkpoints_folder(workdir: pathlib.Path) -> epath.Path:
  """Returns the folder of the checkpoints: in the bucket for a local copy of a bucket."""
  return epath.Path(remote.remote_url(workdir) or workdir.absolute()) / 'checkpoints'


def has_checkpoints(workdir: pathlib.Path) -> bool:
  """Returns whether the workdir has a checkpoint to resume from; creates nothing in it."""
  if not checkpoints_folder(workdir).is_dir():
    return False
  checkpoints = Checkpoints(workdir)
  try:
    return bool(checkpoints.steps())
  finally:
    checkpoints.close()


def _items(state: TrainState) -> dict[str, Any]:
  names = ('step', 'skipped', 'streak', 'opt_state')
  return {'params': state.params, 'training': {name: getattr(state, name) for name in names}}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {_key(path): tuple(x.shape) for path, x in leaves if hasattr(x, 'shape')}


def _key(path: tuple[Any, ...]) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def tree_difference(
  saved: Mapping[str, tuple[int, ...]],
  wanted: Mapping[str, tuple[int, ...]],
  limit: int = 4,
  report_extra: bool = True,
) -> str:
  """Returns one line on how two trees of shapes differ, '' when they do not.

  The config wants a missing array, and the checkpoint lacks it; of an extra one the reverse holds.
  """
  rows = []
  for name in sorted(wanted.keys() - saved.keys()):
    rows.append(f'missing {name}{did_you_mean(name, saved.keys() - wanted.keys())}')
  if report_extra:
    rows += [f'extra {name}' for name in sorted(saved.keys() - wanted.keys())]
  for name in sorted(wanted.keys() & saved.keys()):
    if saved[name] != wanted[name]:
      rows.append(f'{name} is {saved[name]} and should be {wanted[name]}')
  more = f'; and {len(rows) - limit} more' if len(rows) > limit else ''
  return '; '.join(rows[:limit]) + more


def kept_steps(steps: Iterable[int], scores: Mapping[int, float], last: int, best: int) -> set[int]:
  """Returns the `last` newest steps and the `best` ones of lowest score (the older wins a tie).

  If these are none, because no step has a score yet, it returns the newest.
  """
  steps = sorted(steps)
  newest = set(steps[-last:]) if last else set()
  scored = sorted((scores[s], s) for s in steps if s in scores and scores[s] == scores[s])
  return (newest | {s for _, s in scored[:best]}) or set(steps[-1:])
