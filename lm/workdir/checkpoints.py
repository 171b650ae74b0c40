"""Checkpoints: Orbax underneath, a strict comparison before any restore, and what is kept.

A checkpoint of a step has two items: `params`, all that evaluation and generation read, and
`training`, the rest of the state. Where a run may stop early it has a third, `stopping`: what was
seen before the evaluation of that step, which comes after the save.
"""

import math
import pathlib
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from lm.data import remote
from lm.errors import UserError, did_you_mean, first_line
from lm.parallel import multihost
from lm.types import Array, Params, TrainState
from lm.workdir.metrics_writer import EventLog, read_lines
from lm.workdir.run_data import collect, read_directions


class _Manager(ocp.CheckpointManager):
  """Orbax's manager, which leaves it to the loop to ask whether a process is to stop.

  Each question counts, and the processes stop where their counts agree: a second one who asks, with
  numbers of his own, makes them miss each other.
  """

  def reached_preemption(self, step: int) -> bool:
    del step
    return False


class Checkpoints:
  """The checkpoints of a workdir. Saving is asynchronous; errors of a save surface as SaveError.

  Where there are several processes, all of them do the same with theirs.

  Attributes:
    abandoned: whether to close without waiting for other processes.
  """

  def __init__(self, workdir: pathlib.Path):
    # Which steps stay is decided here and not by Orbax, because a step is saved before
    # it is evaluated: a failing evaluation must not cost the steps that led to it.
    options = ocp.CheckpointManagerOptions(
      save_interval_steps=1, max_to_keep=None, create=False, enable_async_checkpointing=True
    )
    options.multiprocessing_options = _all_processes()
    self.abandoned = False
    self.folder = folder_of(workdir)
    self.folder.mkdir(parents=True, exist_ok=True)
    # Named here, so that the shapes of a checkpoint can be read before anything is restored.
    handlers: dict[str, ocp.CheckpointHandler] = {
      'params': ocp.StandardCheckpointHandler(),
      'training': ocp.StandardCheckpointHandler(),
      'stopping': ocp.JsonCheckpointHandler(),
    }
    self._manager = _Manager(self.folder, options=options, item_handlers=handlers)

  def steps(self) -> list[int]:
    """Returns the steps that are saved and whole, in order."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, state: TrainState, stopping: Mapping[str, Any] | None = None) -> None:
    """Starts saving; what went wrong with the save before surfaces here as an OSError or alike."""
    items = _split(state, ocp.args.StandardSave)
    if stopping is not None:
      items['stopping'] = ocp.args.JsonSave(dict(stopping))
    self._manager.save(step, args=ocp.args.Composite(**items), force=True)

  def wait(self) -> None:
    """Waits until what was started is on disk; raises what went wrong with it."""
    self._manager.wait_until_finished()

  def prune(self, keep: Iterable[int]) -> None:
    """Deletes the checkpoints of all steps but these."""
    for step in multihost.broadcast_from_primary(sorted(set(self.steps()) - set(keep))):
      self._manager.delete(step)

  def set_aside(self, step: int) -> None:
    """Moves a damaged checkpoint to workdir/damaged/, so that its step can be saved again."""
    if multihost.is_primary():
      target = self.folder.parent / 'damaged' / f'{step}-{int(time.time())}'
      target.parent.mkdir(exist_ok=True)
      (self.folder / str(step)).rename(target)
    multihost.barrier(600, 'for process 0 to set a damaged checkpoint aside')
    self._manager.reload()

  def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, Mapping[str, Any] | None]:
    """Returns the state of a step on the mesh of `abstract`, and what `stopping` was saved with it.

    Raises:
      UserError: its tree is not that of `abstract`.
      Exception: whatever Orbax makes of damaged files.
    """
    self._check(step, abstract)
    stopping = None
    if 'stopping' in self._manager.item_metadata(step):
      args = ocp.args.Composite(stopping=ocp.args.JsonRestore())
      stopping = self._manager.restore(step, args=args)['stopping']
    params = self._read(step, 'params', abstract.params)
    training = self._read(step, 'training', _training(abstract))
    return TrainState(params=params, **training), stopping

  def restore_params(self, step: int, abstract: Params) -> Params:
    """Returns the parameters alone."""
    difference = tree_difference(self.shapes(step, 'params'), _shapes(abstract))
    if difference:
      raise UserError(f'--step={step}: the checkpoint does not fit the config: {difference}')
    return self._read(step, 'params', abstract)

  def restore_some(
    self, step: int, abstract: Mapping[str, jax.ShapeDtypeStruct]
  ) -> dict[str, Array]:
    """Returns some parameters by path; they are there, and of the shapes that are asked for."""
    tree = unflatten_dict(dict(abstract), sep='/')
    restore_args = ocp.checkpoint_utils.construct_restore_args(tree)
    args = ocp.args.PyTreeRestore(tree, restore_args=restore_args, partial_restore=True)
    handler = ocp.PyTreeCheckpointHandler(
      restore_concurrent_gb=self._gigabytes(step, 'params', tree),
      multiprocessing_options=_all_processes(),
    )
    with ocp.Checkpointer(handler, multiprocessing_options=_all_processes()) as reader:
      return flatten_dict(reader.restore(self.folder / str(step) / 'params', args=args), sep='/')

  def _read(self, step: int, item: str, abstract: Any) -> Any:
    """Returns an item of a step, of which no more than `_gigabytes` are on the host at once."""
    handler = ocp.StandardCheckpointHandler(
      restore_concurrent_gb=self._gigabytes(step, item, abstract),
      multiprocessing_options=_all_processes(),
    )
    with ocp.Checkpointer(handler, multiprocessing_options=_all_processes()) as reader:
      args = ocp.args.StandardRestore(abstract)
      return reader.restore(self.folder / str(step) / item, args=args)

  def _gigabytes(self, step: int, item: str, abstract: Any) -> int:
    """Returns how much of an item to read at once: the largest shard, in whole gigabytes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(self._manager.item_metadata(step)[item])
    stored = {_key(path): leaf for path, leaf in leaves}
    wanted, _ = jax.tree_util.tree_flatten_with_path(abstract)
    sizes = [largest_read(stored[_key(path)], leaf) for path, leaf in wanted]
    return max(sizes, default=0) // 10**9 + 1

  def _check(self, step: int, abstract: TrainState) -> None:
    wanted = {'params': abstract.params, 'training': _training(abstract)}
    for item, tree in wanted.items():
      difference = tree_difference(self.shapes(step, item), _shapes(tree))
      if difference:
        raise UserError(f'checkpoint {step} of {self.folder} does not fit: {item}: {difference}')

  def shapes(self, step: int, item: str) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the arrays of an item by path, without reading them."""
    metadata = self._manager.item_metadata(step)
    tree = metadata[item]
    if tree is None:
      raise FileNotFoundError(f'checkpoint {step} of {self.folder} has no {item}')
    return _shapes(tree)

  def close(self) -> None:
    if not self.abandoned:
      self._manager.close()


def largest_read(stored: Any, wanted: jax.ShapeDtypeStruct) -> int:
  """Returns the bytes that are read for the largest shard of an array on this host.

  Files hold whole chunks: of an array that was saved by one device, each shard reads all.

  Args:
    stored: what Orbax says of the array in the checkpoint: `shape`, `dtype`, `storage.chunk_shape`.
    wanted: its shape, and the sharding that it is restored to.
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
  """Returns what `restore` does of the newest intact step, or None where nothing was saved yet.

  Damaged checkpoints are told, moved to `damaged/` beside, and the one before is tried.

  Raises:
    UserError: there are checkpoints and none is intact, or one is of another shape.
  """
  steps = checkpoints.steps()
  for step in reversed(steps):
    reason, restored = '', None
    try:
      restored = checkpoints.restore(step, abstract)
    except UserError:
      raise
    except Exception as e:  # whatever Orbax and its storage make of damaged files
      reason = first_line(e)
    reason = next(filter(None, multihost.gather(reason)), '')  # of one process, then of all
    if restored is not None and not reason:
      events.write('restore', step=step)
      return restored
    events.write('error', step=step, error=f'damaged checkpoint: {reason}')
    if multihost.is_primary():
      print(f'warning: checkpoint {step} is damaged ({reason})', file=sys.stderr)
    checkpoints.set_aside(step)
  damaged = checkpoints.folder.parent / 'damaged'
  if damaged.is_dir():
    raise UserError(
      f'{checkpoints.folder}: no intact checkpoint; all are in {damaged}; take another workdir, '
      'or remove that folder to begin again'
    )
  return None


def _all_processes() -> ocp.options.MultiprocessingOptions:
  """Returns that all processes take part, where there are several.

  Named processes wait for each other through the coordination service, which has a timeout.
  """
  several = multihost.is_multiprocess()
  active = set(range(multihost.process_index_and_count()[1])) if several else None
  return ocp.options.MultiprocessingOptions(active_processes=active)


def folder_of(workdir: pathlib.Path) -> epath.Path:
  """Returns where the checkpoints of a workdir, or of the bucket that it is a copy of, lie."""
  return epath.Path(remote.remote_url(workdir) or workdir.absolute()) / 'checkpoints'


def holds_checkpoints(workdir: pathlib.Path) -> bool:
  """Returns whether there is something to resume from; makes nothing in the workdir."""
  if not folder_of(workdir).is_dir():
    return False
  checkpoints = Checkpoints(workdir)
  try:
    return bool(checkpoints.steps())
  finally:
    checkpoints.close()


def _training(state: TrainState) -> dict[str, Any]:
  names = ('step', 'skipped', 'streak', 'opt_state')
  return {name: getattr(state, name) for name in names}


def _split(state: TrainState, args) -> dict[str, Any]:
  return {'params': args(state.params), 'training': args(_training(state))}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {_key(path): tuple(x.shape) for path, x in leaves if hasattr(x, 'shape')}


def _key(path) -> str:
  parts = []
  for k in path:
    name = getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', None)))
    parts.append(str(name))
  return '/'.join(parts)


def tree_difference(
  saved: Mapping[str, tuple[int, ...]],
  wanted: Mapping[str, tuple[int, ...]],
  most: int = 4,
  tell_extra: bool = True,
) -> str:
  """Returns one line on how two trees of shapes differ, empty when they do not.

  Missing is what the config wants and the checkpoint lacks; extra is the reverse.
  """
  rows = []
  for name in sorted(wanted.keys() - saved.keys()):
    rows.append(f'missing {name}{did_you_mean(name, saved.keys() - wanted.keys())}')
  if tell_extra:
    rows += [f'extra {name}' for name in sorted(saved.keys() - wanted.keys())]
  for name in sorted(wanted.keys() & saved.keys()):
    if saved[name] != wanted[name]:
      rows.append(f'{name} is {saved[name]} and should be {wanted[name]}')
  more = f'; and {len(rows) - most} more' if len(rows) > most else ''
  return '; '.join(rows[:most]) + more


def badness(workdir: pathlib.Path, metric: str) -> dict[int, float]:
  """Returns a metric by step from metrics.jsonl, with its sign such that the lowest is the best.

  A metric without a direction in metrics.json says nothing of any step.
  """
  higher = read_directions(workdir).get(metric)
  if higher is None:
    return {}
  sign = -1 if higher else 1
  series = collect(read_lines(workdir / 'metrics.jsonl')).get(metric)
  if series is None:
    return {}
  return {int(s): sign * float(v) for s, v in zip(series.steps, series.values, strict=True)}


def kept_steps(steps: Iterable[int], scores: Mapping[int, float], last: int, best: int) -> set[int]:
  """Returns the `last` newest steps and the `best` ones of lowest score (the older wins a tie).

  Where that is none, for no step has a score yet, it is the newest.
  """
  steps = sorted(steps)
  newest = set(steps[-last:]) if last else set()
  scored = sorted((scores[s], s) for s in steps if s in scores and scores[s] == scores[s])
  return (newest | {s for _, s in scored[:best]}) or set(steps[-1:])
