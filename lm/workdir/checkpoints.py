"""Checkpoints: saves and restores by Orbax, checks of shapes before a restore, and pruning.

A checkpoint of a step has two items: `params`, for evaluation and generation, and `training`, the
rest of the train state. Where programs do not use the parameters that are trained, but an average
of them for instance, `training` has the trained ones. With early stopping there is a third item,
`stopping`: the state of early stopping before the evaluation of that step, because evaluations
follow saves. The item `digests` verifies the others in each restore. It has a checksum for each
leaf, bound to its step, item and path.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from lm.data import cache, remote
from lm.errors import UserError, did_you_mean, first_line
from lm.parallel import host, multihost
from lm.types import Array, Params, TrainState
from lm.workdir.metrics_writer import EventLog

DIGESTS = 'digests'
MARK = {DIGESTS: True}  # metadata of a checkpoint with digests, so that their loss is noticed
Sums = dict[str, int]  # checksums by item/path
_Restored = TypeVar('_Restored')


class Damaged(Exception):
  """A checkpoint cannot be read, or its arrays differ from its digests."""


class _Manager(ocp.CheckpointManager):
  """Orbax's manager without its check for preemption, which the training loop does.

  JAX counts the checks of each process, and stops all processes at the same count. Checks by a
  second caller would make the counts differ.
  """

  def reached_preemption(self, step: int) -> bool:
    return False


class Checkpoints:
  """The checkpoints of a workdir. Saves are asynchronous; the next call raises their errors.

  All processes must call the methods in the same order.

  Attributes:
    abandoned: whether to close without waiting for other processes.
  """

  def __init__(self, workdir: pathlib.Path):
    # Orbax prunes nothing. The caller prunes by `kept_steps`, which needs the metrics of a step.
    # Evaluation follows the save, so that a failing evaluation loses no training steps.
    options = ocp.CheckpointManagerOptions(
      save_interval_steps=1, max_to_keep=None, create=False, enable_async_checkpointing=True
    )
    options.multiprocessing_options = _all_processes()
    self.abandoned = False
    self.folder = checkpoints_folder(workdir)
    self.folder.mkdir(parents=True, exist_ok=True)
    # Orbax can read the shapes of a checkpoint before a restore only with named handlers.
    handlers: dict[str, ocp.CheckpointHandler] = {
      'params': ocp.StandardCheckpointHandler(),
      'training': ocp.StandardCheckpointHandler(),
      'stopping': ocp.JsonCheckpointHandler(),
      DIGESTS: _DigestHandler(),
    }
    self._manager = _Manager(self.folder, options=options, item_handlers=handlers)

  def steps(self) -> list[int]:
    """Returns the steps of complete saves in ascending order."""
    return sorted(self._manager.all_steps())

  def save(
    self,
    step: int,
    state: TrainState,
    stopping: Mapping[str, Any] | None = None,
    evaluated: Params | None = None,
  ) -> None:
    """Starts a save; raises the error of the previous save, such as an OSError."""
    trees = state_items(state, evaluated)
    items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
    if stopping is not None:
      items['stopping'] = ocp.args.JsonSave(dict(stopping))
    digested = trees | {'stopping': json_leaf(stopping and dict(stopping))}
    items[DIGESTS] = _SaveDigests(step, digested)
    args = ocp.args.Composite(**items)
    self._manager.save(step, args=args, custom_metadata=MARK, force=True)

  def wait(self) -> None:
    """Waits until the save is on disk; raises its error."""
    self._manager.wait_until_finished()

  def prune(self, keep: Iterable[int]) -> None:
    """Deletes the checkpoints of all steps that are not in `keep`."""
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
    """Returns the state of a step with the shardings of `abstract`, and its item `stopping`.

    The state has no frozen trees.

    Raises:
      UserError: the tree of the checkpoint differs from that of `abstract`.
      Damaged: the files cannot be read, or differ from their digests, in any process.
    """
    stopping = None

    def read() -> dict[str, Any]:
      nonlocal stopping
      items = state_items(abstract)
      if any(path.startswith('params/') for path in self.shapes(step, 'training')):
        items = {'training': state_items(abstract, {})['training']}
      for item, tree in items.items():
        self._check(step, item, tree)
      if 'stopping' in self._manager.item_metadata(step):
        stopping = ocp.JsonCheckpointHandler().restore(self.folder / str(step) / 'stopping')
      found = {name: self._read(step, name, tree) for name, tree in items.items()}
      return found | {'stopping': json_leaf(stopping)}

    items = self._verified(step, read)
    items |= items.pop('training')
    del items['stopping']
    return _cast(TrainState(**items), abstract.replace(frozen={})), stopping

  def restore_params(self, step: int, abstract: Params) -> Params:
    """Returns the parameters alone; see `restore`."""

    def read() -> dict[str, Any]:
      self._check(step, 'params', abstract)
      return {'params': self._read(step, 'params', abstract)}

    return _cast(self._verified(step, read)['params'], abstract)

  def restore_subset(
    self, step: int, abstract: Mapping[str, jax.ShapeDtypeStruct]
  ) -> dict[str, Array]:
    """Returns the parameters that `abstract` names, by path; see `restore`.

    The checkpoint must contain each of them with the shape that `abstract` gives.
    """
    tree = unflatten_dict(dict(abstract), sep='/')

    def read() -> dict[str, Any]:
      return {'params': self._read(step, 'params', tree, partial=True)}

    found = flatten_dict(self._verified(step, read)['params'], sep='/')
    for path in found:  # one by one, so that memory never holds two copies of all
      found[path] = _cast(found[path], abstract[path])
    return found

  def _verified(self, step: int, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Returns the items that `read` returns, in all processes or in none; see `restore`.

    The sums of the restored elements, less those of the saved ones, are 0 over all processes.
    """
    reason, items, excess = '', dict[str, Any](), Sums()
    try:
      items = read()
      if (saved := self._saved_sums(step)) is not None:
        found = own_sums(items)
        excess = {key: (found[key] - saved.get(key, 0)) % cache.MODULUS for key in found}
    except UserError:
      raise
    except Exception as e:  # Orbax and its storage raise many types for damaged files
      reason = first_line(e)
    reasons, sums = zip(*multihost.gather([reason, excess]), strict=True)
    if reason := next(filter(None, reasons), ''):
      raise Damaged(reason)
    if wrong := [key for key in excess if sum(s[key] for s in sums) % cache.MODULUS]:
      more = f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''
      raise Damaged(f'{wrong[0]}{more} differs from its digest')
    return items

  def _saved_sums(self, step: int) -> Sums | None:
    """Returns this process's share of the saved sums; None for a checkpoint of an older version."""
    folder = self.folder / str(step) / DIGESTS
    if folder.is_dir():
      return _read_sums(folder, step)
    if MARK.items() <= (self._manager.metadata(step).custom_metadata or {}).items():
      raise FileNotFoundError(f'{folder} is missing')
    if multihost.is_primary():
      print(
        f'warning: checkpoint {step} of {self.folder} is of an older version, without digests; '
        'damage of its arrays may pass unnoticed',
        file=sys.stderr,
      )
    return None

  def _read(self, step: int, item: str, abstract: Any, partial: bool = False) -> Any:
    """Returns an item of a step, or with `partial` the leaves of `abstract` alone.

    Arrays keep the dtype that they were saved in, because their digests need it. The limit on
    concurrent reads is what the largest shard of the item needs, rounded up to GB.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(self._manager.item_metadata(step)[item])
    stored = {key_of(path): leaf for path, leaf in leaves}
    as_stored = jax.tree_util.tree_map_with_path(
      lambda path, x: jax.ShapeDtypeStruct(
        x.shape, stored[key_of(path)].dtype, sharding=x.sharding
      ),
      abstract,
    )
    wanted, _ = jax.tree_util.tree_flatten_with_path(as_stored)
    sizes = [largest_read(stored[key_of(path)], leaf) for path, leaf in wanted]
    needed = sum(_local_bytes(leaf) for _, leaf in wanted)
    free = host.available_memory() if jax.local_devices()[0].platform == 'cpu' else None
    if free is not None and needed > free:
      raise UserError(
        f'checkpoint {step} of {self.folder}: {item} takes {needed / 2**30:,.1f} GiB of the memory '
        f'of this host, and {free / 2**30:,.1f} GiB are available'
      )
    # A Checkpointer would wait for the other processes, of which one may have read damaged files.
    handler = ocp.PyTreeCheckpointHandler(
      restore_concurrent_gb=max(sizes, default=0) // 10**9 + 1,
      multiprocessing_options=_all_processes(),
    )
    with contextlib.closing(handler):
      restore_args = ocp.checkpoint_utils.construct_restore_args(as_stored)
      args = ocp.args.PyTreeRestore(as_stored, restore_args=restore_args, partial_restore=partial)
      return handler.restore(self.folder / str(step) / item, args=args)

  def _check(self, step: int, item: str, abstract: Any) -> None:
    """Raises UserError if an item has other paths or shapes than `abstract`."""
    difference = tree_difference(self.shapes(step, item), _shapes(abstract))
    if difference:
      raise UserError(
        f'checkpoint {step} of {self.folder} does not fit the config: {item}: {difference}'
      )

  def shapes(self, step: int, item: str) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of an item's arrays by path, from the metadata of the checkpoint."""
    tree = self._manager.item_metadata(step)[item]
    if tree is None:
      raise FileNotFoundError(f'checkpoint {step} of {self.folder} has no {item}')
    return _shapes(tree)

  def leaves(self, step: int, item: str) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Returns shape and stored dtype of the arrays of an item by path, without reading them."""
    found, _ = jax.tree_util.tree_flatten_with_path(self._manager.item_metadata(step)[item])
    return {key_of(path): (tuple(x.shape), np.dtype(x.dtype)) for path, x in found}

  def close(self) -> None:
    """Waits for the last save, unless the checkpoints are `abandoned`."""
    if not self.abandoned:
      self._manager.close()


def _cast(tree: Any, abstract: Any) -> Any:
  """Returns a tree with the dtypes of `abstract`."""
  return jax.tree.map(
    lambda x, wanted: x if x.dtype == wanted.dtype else x.astype(wanted.dtype), tree, abstract
  )


def _local_bytes(x: jax.ShapeDtypeStruct) -> int:
  """Returns the bytes of all shards of an array on the devices of this process."""
  assert x.sharding is not None
  shard = math.prod(x.sharding.shard_shape(x.shape))
  return len(x.sharding.addressable_devices) * shard * x.dtype.itemsize


def largest_read(stored: Any, wanted: jax.ShapeDtypeStruct) -> int:
  """Returns the bytes that this host reads for the largest shard of an array.

  TensorStore reads entire chunks. An array that one device saved is a single chunk, so that every
  shard reads the entire array.

  Args:
    stored: Orbax's metadata of the saved array: `shape`, `dtype`, `storage.chunk_shape`.
    wanted: the shape and the sharding of the restored array.

  Raises:
    ValueError: a chunk is larger than the array, so that one of some bytes could fill the memory.
  """
  storage = getattr(stored, 'storage', None)
  chunks = (storage and storage.chunk_shape) or wanted.shape
  if any(chunk > max(size, 1) for chunk, size in zip(chunks, wanted.shape, strict=True)):
    raise ValueError(f'the array of shape {wanted.shape} has chunks of shape {tuple(chunks)}')
  item = np.dtype(stored.dtype or wanted.dtype).itemsize

  def count(index: tuple[slice, ...] | None) -> int:
    bounds = [part.indices(size) for part, size in zip(index or (), wanted.shape, strict=True)]
    return math.prod(
      -(-stop // chunk) * chunk - start // chunk * chunk
      for (start, stop, _), chunk in zip(bounds, chunks, strict=True)
    )

  shards = wanted.sharding.addressable_devices_indices_map(wanted.shape).values()
  return item * max(map(count, shards), default=0)


# Digests. Each process writes STEP/digests/PROCESS.json within the commit of a checkpoint: the sums
# over the elements that it owns. A restore adds those of all processes, on any mesh.


class _Part(NamedTuple):
  """Elements of a leaf that this process alone owns."""

  key: str
  place: tuple[slice, ...]
  data: Any  # an array of one device, or of NumPy
  copies: int  # of the part, on all devices


def json_leaf(value: Any) -> np.ndarray:
  """Returns a JSON value as an array of bytes."""
  return np.frombuffer(json.dumps(value, sort_keys=True).encode(), np.uint8)


def own_sums(items: Mapping[str, Any]) -> Sums:
  """Returns the sum over the elements of each leaf that this process owns.

  Process 0 owns NumPy arrays. Every element of a JAX array has one owner; devices with copies of a
  shard own leaves in turns.
  """
  return _sums(*_own_parts(items))


def write_sums(folder: epath.PathLike, step: int, sums: Sums) -> None:
  """Writes the sums of this process into the folder of the digests."""
  content = {'step': step, 'sums': {key: f'{value:016x}' for key, value in sums.items()}}
  process, _ = multihost.process_index_and_count()
  (epath.Path(folder) / f'{process}.json').write_text(json.dumps(content))


def _read_sums(folder: epath.Path, step: int) -> Sums:
  """Returns the saved sums of some processes; every process of this run reads those of others."""
  process, processes = multihost.process_index_and_count()
  total: Sums = {}
  for file in sorted(folder.glob('*.json'))[process::processes]:
    content = json.loads(file.read_text())
    if content['step'] != step:
      raise ValueError(f'{file} is of step {content["step"]}')
    for key, value in content['sums'].items():
      total[key] = (total.get(key, 0) + int(value, 16)) % cache.MODULUS
  return total


class _DigestHandler(ocp.JsonCheckpointHandler):
  """Computes and writes digests while Orbax writes the arrays."""

  async def async_save(
    self, directory: epath.Path, item: Any = None, args: Any = None
  ) -> list[ocp.future.Future]:
    keys, parts = _own_parts(args.items)
    for part in parts:
      if isinstance(part.data, jax.Array) and part.copies == 1:
        part.data.copy_to_host_async()
    # The next train step may donate the arrays. JAX keeps the host copy of a shard, which Orbax
    # takes too. Of several copies of a shard Orbax reads slices, so here one stays on its device.
    held = [
      part._replace(data=part.data.copy() if part.copies > 1 else np.asarray(part.data))
      for part in parts
    ]

    async def compute() -> None:
      write_sums(directory, args.step, _sums(keys, held))

    return [ocp.future.CommitFutureAwaitingContractedSignals(compute(), name=DIGESTS)]

  def restore(self, directory: epath.Path, item: Any = None, args: Any = None) -> Any:
    return {file.name: json.loads(file.read_text()) for file in directory.glob('*.json')}


@ocp.args.register_with_handler(_DigestHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class _SaveDigests(ocp.args.CheckpointArgs):
  """The contents of a checkpoint: its step, and trees by item."""

  step: int = 0
  items: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _own_parts(items: Mapping[str, Any]) -> tuple[list[str], list[_Part]]:
  """Returns the keys of all leaves, and the own parts of some."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(dict(items))
  keys, parts = [key_of(path) for path, _ in leaves], []
  for nth, (key, (_, x)) in enumerate(zip(keys, leaves, strict=True)):
    if not isinstance(x, jax.Array):
      parts += [_Part(key, (), x, 1)] if multihost.is_primary() else []
      continue
    copies = len(x.sharding.device_set) * math.prod(x.sharding.shard_shape(x.shape)) // x.size
    parts += [
      _Part(key, shard.index, shard.data, copies)
      for shard in x.addressable_shards
      if shard.replica_id == nth % copies
    ]
  return keys, parts


def _sums(keys: Sequence[str], parts: Sequence[_Part]) -> Sums:
  sums = dict.fromkeys(keys, 0)
  for key, place, data, _ in parts:
    if isinstance(data, jax.Array):
      # JAX keeps the host copy of an array, so the copy is made of a temporary one.
      data = jax.make_array_from_single_device_arrays(data.shape, data.sharding, [data])
    sums[key] = (sums[key] + cache.array_checksum(np.asarray(data), place)) % cache.MODULUS
  return sums


def restore_newest(
  checkpoints: Checkpoints, abstract: TrainState, events: EventLog
) -> tuple[TrainState, Mapping[str, Any] | None] | None:
  """Returns the result of `restore` for the newest intact step; None without a checkpoint.

  Damaged checkpoints are reported and moved to `damaged/`.

  Raises:
    UserError: all checkpoints are damaged, or one has other shapes.
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
  """Returns (`restore(*args)`, ''), or (None, the reason) if the checkpoint is damaged."""
  try:
    return restore(*args), ''
  except Damaged as e:
    return None, str(e)


def _all_processes() -> ocp.options.MultiprocessingOptions:
  """Returns options that name every process of a multi-process run.

  Named processes synchronize through the coordination service, which has a timeout.
  """
  several = multihost.is_multiprocess()
  active = set(range(multihost.process_index_and_count()[1])) if several else None
  return ocp.options.MultiprocessingOptions(active_processes=active)


def checkpoints_folder(workdir: pathlib.Path) -> epath.Path:
  """Returns the folder of the checkpoints.

  If the workdir is a local copy of a bucket, the folder is in the bucket itself.
  """
  return epath.Path(remote.remote_url(workdir) or workdir.absolute()) / 'checkpoints'


def has_checkpoints(workdir: pathlib.Path) -> bool:
  """Returns whether the workdir has a checkpoint; does not create the folder."""
  if not checkpoints_folder(workdir).is_dir():
    return False
  with contextlib.closing(Checkpoints(workdir)) as checkpoints:
    return bool(checkpoints.steps())


def state_items(state: TrainState, evaluated: Params | None = None) -> dict[str, Any]:
  """Returns the items of a checkpoint by name: `params`, and `training` for the rest.

  `evaluated` are the parameters that programs read, if they are not those that are trained.
  """
  names = ('step', 'skipped', 'streak', 'opt_state')
  training = {name: getattr(state, name) for name in names}
  if evaluated is None:
    return {'params': state.params, 'training': training}
  return {'params': evaluated, 'training': training | {'params': state.params}}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {key_of(path): tuple(x.shape) for path, x in leaves if hasattr(x, 'shape')}


def key_of(path: tuple[Any, ...]) -> str:
  """Returns the path of a leaf as text, such as 'decoder/embedding'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def tree_difference(
  saved: Mapping[str, tuple[int, ...]],
  wanted: Mapping[str, tuple[int, ...]],
  limit: int = 4,
  report_extra: bool = True,
) -> str:
  """Returns the differences of two trees of shapes in one line; '' for equal trees.

  Args:
    saved: the shapes of a checkpoint by path.
    wanted: the shapes by the config.
    limit: how many differences to name.
    report_extra: whether arrays in `saved` alone are differences.
  """
  extra = saved.keys() - wanted.keys()
  missing = sorted(wanted.keys() - saved.keys())
  rows = [f'missing {name}{did_you_mean(name, extra)}' for name in missing]
  rows += [f'extra {name}' for name in sorted(extra) if report_extra]
  rows += [
    f'{name} is {saved[name]} and should be {wanted[name]}'
    for name in sorted(wanted.keys() & saved.keys())
    if saved[name] != wanted[name]
  ]
  more = f'; and {len(rows) - limit} more' if len(rows) > limit else ''
  return '; '.join(rows[:limit]) + more


def kept_steps(steps: Iterable[int], scores: Mapping[int, float], last: int, best: int) -> set[int]:
  """Returns the `last` newest steps and the `best` steps of lowest score; ties favor older steps.

  The result is never empty: if `last` is 0 and no step has a score, the newest step is kept.
  """
  steps = sorted(steps)
  newest = set(steps[-last:]) if last else set()
  scored = sorted((scores[s], s) for s in steps if s in scores and scores[s] == scores[s])
  return (newest | {s for _, s in scored[:best]}) or set(steps[-1:])
