"""Digests of checkpoints: a checksum for each leaf, bound to its step, item and path.

Each process writes STEP/digests/PROCESS.json within the commit of the checkpoint: the sums over the
elements that it owns (`lm.data.checksums`). A restore adds the sums of all processes, on any mesh.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from lm.data import checksums
from lm.parallel import multihost

ITEM = 'digests'
MARK = {ITEM: True}  # metadata of a checkpoint with digests, so that their loss is noticed
Sums = dict[str, int]  # by item/path


class _Part(NamedTuple):
  """Elements of a leaf that this process alone owns."""

  key: str
  place: tuple[slice, ...]
  data: Any  # an array of one device, or of NumPy
  copies: int  # of the part, on all devices


def json_leaf(value: Any) -> np.ndarray:
  """Returns a JSON value as an array of bytes."""
  return np.frombuffer(json.dumps(value, sort_keys=True).encode(), np.uint8)


def key_of(path: Sequence[Any]) -> str:
  """Returns the key of a leaf, such as 'params/embedding'."""
  return jax.tree_util.keystr(tuple(path), simple=True, separator='/')


def own_sums(items: Mapping[str, Any]) -> Sums:
  """Returns the sums over the elements that this process owns; for other leaves 0.

  Process 0 owns NumPy arrays. For JAX arrays, every element has one owner; the devices with copies
  of a shard own them in turns.

  Args:
    items: trees by item.
  """
  return _sums([key for key, _ in _leaves(items)], _own_parts(items))


def excess(items: Mapping[str, Any], saved: Sums) -> Sums:
  """Returns the own sums less the saved ones; over all processes, they add up to 0."""
  found = own_sums(items)
  return {key: (found[key] - saved.get(key, 0)) % checksums.MODULUS for key in found}


def write(folder: epath.PathLike, step: int, sums: Sums) -> None:
  """Writes the sums of this process into the folder of digests."""
  content = {'step': step, 'sums': {key: f'{value:016x}' for key, value in sums.items()}}
  process, _ = multihost.process_index_and_count()
  (epath.Path(folder) / f'{process}.json').write_text(json.dumps(content))


def read(folder: epath.Path, step: int) -> Sums:
  """Returns the saved sums of some of the processes; each process of this run reads others.

  Raises:
    ValueError: a file is of another step.
    Exception: a file is damaged.
  """
  process, processes = multihost.process_index_and_count()
  total: Sums = {}
  for file in sorted(folder.glob('*.json'))[process::processes]:
    content = json.loads(file.read_text())
    if content['step'] != step:
      raise ValueError(f'{file} is of step {content["step"]}')
    for key, value in content['sums'].items():
      total[key] = (total.get(key, 0) + int(value, 16)) % checksums.MODULUS
  return total


class DigestHandler(ocp.JsonCheckpointHandler):
  """Computes and writes digests while Orbax writes the arrays."""

  async def async_save(
    self, directory: epath.Path, item: Any = None, args: Any = None
  ) -> list[ocp.future.Future]:
    parts, keys = _own_parts(args.items), [key for key, _ in _leaves(args.items)]
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
      write(directory, args.step, _sums(keys, held))

    return [ocp.future.CommitFutureAwaitingContractedSignals(compute(), name=ITEM)]


@ocp.args.register_with_handler(DigestHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class SaveDigests(ocp.args.CheckpointArgs):
  """The contents of a checkpoint: its step, and trees by item."""

  step: int
  items: Mapping[str, Any]


def _leaves(items: Mapping[str, Any]) -> list[tuple[str, Any]]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(dict(items))
  return [(key_of(path), x) for path, x in leaves]


def _own_parts(items: Mapping[str, Any]) -> list[_Part]:
  parts = []
  for nth, (key, x) in enumerate(_leaves(items)):
    if not isinstance(x, jax.Array):
      parts += [_Part(key, (), x, 1)] if multihost.is_primary() else []
      continue
    shard_size = int(np.prod(x.sharding.shard_shape(x.shape)))
    copies = len(x.sharding.device_set) * shard_size // x.size
    parts += [
      _Part(key, shard.index, shard.data, copies)
      for shard in x.addressable_shards
      if shard.replica_id == nth % copies
    ]
  return parts


def _sums(keys: Sequence[str], parts: Sequence[_Part]) -> Sums:
  sums = dict.fromkeys(keys, 0)
  for key, index, data, _ in parts:
    if isinstance(data, jax.Array):
      # JAX keeps the host copy of an array, so the copy is made of a temporary one.
      data = jax.make_array_from_single_device_arrays(data.shape, data.sharding, [data])
    sums[key] = (sums[key] + checksums.array_checksum(np.asarray(data), index)) % checksums.MODULUS
  return sums
