"""The device mesh, and the rules by which logical axes are sharded over it.

Models name the logical axes of arrays ('embed', 'heads', 'mlp', 'vocab', 'batch'). The rules map
each to mesh axes, so that one jitted program runs on one device or on a thousand.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import flax.linen as nn
import jax
import numpy as np
from flax.linen.initializers import Initializer
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lm.errors import UserError, did_you_mean
from lm.types import Array, Params

Fn = TypeVar('Fn', bound=Callable[..., Any])
AXES = ('data', 'fsdp', 'tensor')

# Logical axis -> mesh axes. An axis that is not listed is replicated.
RULES: dict[str, tuple[str, ...]] = {
  'batch': ('data', 'fsdp'),
  'cache_batch': ('data', 'fsdp'),  # of the KV cache and other decoding state; follows 'batch'
  'vocab': ('tensor',),
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'mlp': ('tensor',),
  'embed': ('fsdp',),
  'layers': (),
  'length': (),
  'activation_embed': (),  # the model width of activations; replicated
  'head_dim': (),
}

_current: contextvars.ContextVar[tuple[Mesh, Mapping[str, tuple[str, ...]]] | None] = (
  contextvars.ContextVar('mesh', default=None)
)


def make_mesh(sizes: Mapping[str, int], devices=None) -> Mesh:
  """Returns the mesh of the given axis sizes; one size may be -1 for all remaining devices.

  Raises:
    UserError: an axis is unknown, or the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  for name in sizes:
    if name not in AXES:
      raise UserError(
        f'mesh.{name}: unknown mesh axis{did_you_mean(name, AXES)}; available: {AXES}'
      )
  shape = [sizes.get(axis, 1) for axis in AXES]
  known = math.prod(s for s in shape if s != -1)
  if shape.count(-1) > 1 or any(s < 1 and s != -1 for s in shape):
    raise UserError(f'mesh={dict(sizes)}: sizes must be positive; one of them may be -1')
  if -1 in shape and len(devices) % known == 0:
    shape[shape.index(-1)] = len(devices) // known
  if math.prod(shape) != len(devices):
    raise UserError(
      f'mesh={dict(zip(AXES, shape, strict=True))} does not divide over {len(devices)} '
      f'{devices[0].platform} device(s)'
    )
  # Explicit axis types, the default, make an embedding gather raise ShardingTypeError.
  types = (AxisType.Auto,) * len(AXES)
  slices = len({getattr(device, 'slice_index', 0) for device in devices})
  long = [size for size in shape if size > 1]
  if (
    devices[0].platform == 'tpu'
    and shape[AXES.index('tensor')] <= len(devices) // slices
    and long in ([len(devices)], [slices, len(devices) // slices])
  ):
    # lm.parallel.collectives needs devices in order of coordinates; jax.make_mesh may form a ring.
    return Mesh(np.array(sorted(devices, key=device_coords)).reshape(shape), AXES, axis_types=types)
  try:
    if slices > 1:
      return Mesh(_over_slices(shape, slices, devices), AXES, axis_types=types)
    return jax.make_mesh(tuple(shape), AXES, axis_types=types, devices=devices)
  except NotImplementedError as e:
    raise UserError(
      f'mesh={dict(zip(AXES, shape, strict=True))} does not map onto the torus of these devices: '
      'each axis size must be a product of torus dimensions'
    ) from e


def spread(boxed: Params, axis_rules: Mapping[str, tuple[str, ...]], devices) -> Mesh:
  """Returns the mesh over all devices that shards parameters the most, for inference.

  `fsdp` is the largest size that divides both the number of devices and the sharded axes of the
  parameters. `data` takes the remaining devices. `tensor` is 1, since inference leaves enough
  memory for unsharded activations.

  Args:
    boxed: abstract parameters of one or several models, boxed by `nn.with_partitioning`.
    axis_rules: see `logical_axis_rules`.
    devices: of all processes.

  Raises:
    UserError: the rules shard an axis that does not divide, whatever the size of `fsdp`.
  """
  count = len(devices)
  for fsdp in range(count, 0, -1):
    if count % fsdp == 0:
      try:
        mesh = make_mesh({'data': count // fsdp, 'fsdp': fsdp}, devices)
        shardings(boxed, mesh, axis_rules)
      except UserError:
        if fsdp == 1:
          raise
      else:
        return mesh
  raise ValueError('no devices')


def device_coords(device: jax.Device) -> tuple[int, ...]:
  """Returns the coordinates of a TPU device: slice, position in the torus, core on the chip."""
  return (getattr(device, 'slice_index', 0), *device.coords, getattr(device, 'core_on_chip', 0))


def _over_slices(shape: list[int], slices: int, devices) -> np.ndarray:
  """Returns devices with the slices of a multi-slice TPU job along `data`, or else `fsdp`.

  Slices are connected by the data-center network, too slow for the collectives of `tensor`.
  """
  for axis in ('data', 'fsdp'):
    i = AXES.index(axis)
    if shape[i] % slices == 0:
      within, between = list(shape), [1] * len(AXES)
      within[i], between[i] = shape[i] // slices, slices
      return mesh_utils.create_hybrid_device_mesh(within, between, devices)
  raise UserError(
    f'mesh={dict(zip(AXES, shape, strict=True))} does not divide over {slices} slices: '
    'mesh.data must be a multiple of their number'
  )


def logical_axis_rules(overrides: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
  """Returns RULES with the overrides of a config, each a comma-separated list of mesh axes."""
  merged = dict(RULES)
  for logical, axes in overrides.items():
    if logical not in RULES:
      raise UserError(f'mesh.rules.{logical}: unknown logical axis{did_you_mean(logical, RULES)}')
    names = tuple(a for a in axes.split(',') if a)
    for name in names:
      if name not in AXES:
        raise UserError(
          f'mesh.rules.{logical}={axes!r}: unknown mesh axis {name!r}; available: {AXES}'
        )
    merged[logical] = names
  if 'cache_batch' not in overrides:
    merged['cache_batch'] = merged['batch']
  return merged


@contextlib.contextmanager
def set_mesh(mesh: Mesh, axis_rules: Mapping[str, tuple[str, ...]]) -> Iterator[None]:
  """Sets the current mesh, for `with_logical_constraint` and lm.parallel.collectives."""
  token = _current.set((mesh, axis_rules))
  try:
    yield
  finally:
    _current.reset(token)


def with_mesh(fn: Fn, mesh: Mesh, rules: dict[str, tuple[str, ...]]) -> Fn:
  """Returns `fn` under `set_mesh`: its logical constraints use this mesh and these rules."""
  return set_mesh(mesh, rules)(fn)


def current_mesh() -> tuple[Mesh, Mapping[str, tuple[str, ...]]] | None:
  """Returns the mesh and rules of `set_mesh`; None outside of it and on one device."""
  current = _current.get()
  return None if current is None or current[0].size == 1 else current


def weight_stationary() -> contextlib.AbstractContextManager[None]:
  """Returns a context to trace a decoding step, one token per row, in the weight-stationary layout.

  An all-gather of weights that are sharded over the mesh axes of `embed` would send more bytes than
  the few activations have. In the 2D weight-stationary layout (Pope et al. 2022, Efficiently
  Scaling Transformer Inference, 3.2) activations are sharded along the model width instead of the
  batch, and all-reduced. The KV cache keeps its sharding by rows.
  """
  current = _current.get()
  if current is None:
    return contextlib.nullcontext()
  mesh, axis_rules = current
  embed = axis_rules['embed']
  batch = tuple(axis for axis in axis_rules['batch'] if axis not in embed)
  return set_mesh(mesh, {**axis_rules, 'batch': batch, 'activation_embed': embed})


def with_logical_constraint(x: Array, *axes: str | None) -> Array:
  """Constrains the sharding of an activation by its logical axes; the identity without a mesh."""
  current = current_mesh()
  if current is None:
    return x
  mesh, axis_rules = current
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, logical_to_spec(axes, axis_rules)))


def platform() -> str:
  """Returns the platform of the current mesh: 'cpu', 'gpu' or 'tpu'."""
  current = _current.get()
  return jax.default_backend() if current is None else current[0].devices.flat[0].platform


def num_shards(*axes: str | None) -> int:
  """Returns the count of shards of an array with these logical axes; 1 without a mesh."""
  current = _current.get()
  if current is None:
    return 1
  mesh, axis_rules = current
  return math.prod(
    mesh.shape[a] for part in logical_to_spec(axes, axis_rules) for a in axes_of(part)
  )


def padded_rows(count: int) -> int:
  """Returns `count` rounded up to a number of rows that divides over the current mesh."""
  return count + -count % math.lcm(num_shards('cache_batch'), num_shards('batch'))


def with_logical_partitioning(init: Initializer, *axes: str | None) -> Initializer:
  """Returns an initializer that boxes the parameter with the names of its logical axes."""
  return cast(Initializer, nn.with_partitioning(init, axes))


def logical_to_spec(axes, axis_rules: Mapping[str, tuple[str, ...]]) -> PartitionSpec:
  """Returns the PartitionSpec of logical axes.

  A mesh axis shards one axis of an array: the first logical axis whose rule names it.
  """
  used: set[str] = set()
  spec = []
  for axis in axes:
    wanted = tuple(a for a in axis_rules.get(axis, ()) if a not in used) if axis else ()
    used.update(wanted)
    spec.append(wanted if len(wanted) > 1 else (wanted[0] if wanted else None))
  return PartitionSpec(*spec)


def shardings(boxed: Params, mesh: Mesh, axis_rules: Mapping[str, tuple[str, ...]]) -> Params:
  """Returns the NamedSharding of every leaf of a tree of (maybe boxed) abstract arrays.

  Leaves boxed by `nn.with_partitioning` follow the rules; plain leaves are replicated.

  Raises:
    UserError: an axis does not divide over its mesh axes.
  """

  def leaf(path, x) -> Any:
    if not isinstance(x, nn.Partitioned):
      return NamedSharding(mesh, PartitionSpec())
    if not jax.tree.leaves(x):  # an optimizer has no state for this parameter
      return x.value
    spec = logical_to_spec(x.names, axis_rules)
    for size, names, logical in zip(x.value.shape, spec, x.names, strict=True):
      _check_divides(size, names, mesh, f'{jax.tree_util.keystr(path)} axis {logical!r}')
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(
    leaf, boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned)
  )


def batch_sharding(
  mesh: Mesh, axis_rules: Mapping[str, tuple[str, ...]], stacked: bool = False
) -> NamedSharding:
  """Returns the sharding of a batch: by rows, over the mesh axes of 'batch'.

  Rows are axis 0, or axis 1 of several `stacked` batches.
  """
  axes = (None, 'batch') if stacked else ('batch',)
  return NamedSharding(mesh, logical_to_spec(axes, axis_rules))


def check_batch(batch_size: int, mesh: Mesh, axis_rules, key: str = 'batch_size') -> None:
  """Raises UserError if the rows do not divide over the mesh axes that shard the batch."""
  (names,) = logical_to_spec(('batch',), axis_rules)
  _check_divides(batch_size, names, mesh, key)


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of replicated arrays."""
  return NamedSharding(mesh, PartitionSpec())


def axes_of(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
  """Returns the mesh axes of one entry of a PartitionSpec."""
  return (part,) if isinstance(part, str) else part or ()


def _check_divides(size: int, names, mesh: Mesh, what: str) -> None:
  names = axes_of(names)
  parts = math.prod(mesh.shape[name] for name in names)
  if size % parts:
    axes = ' * '.join(f'mesh.{name}={mesh.shape[name]}' for name in names)
    raise UserError(f'{what} of size {size} is not divisible by {axes}; change one of them')


def make_global_batch(batch: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, Array]:
  """Returns global arrays from the rows that this process has read."""
  if jax.process_count() == 1:
    return jax.device_put(dict(batch), sharding)
  return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def bytes_per_device(tree: Any) -> int:
  """Returns the bytes of abstract arrays on one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def local_rows(batch_size: int, sharding: NamedSharding) -> np.ndarray:
  """Returns, in order, the rows of the global batch that this process's devices hold."""
  indices = sharding.addressable_devices_indices_map((batch_size,)).values()
  # Devices have the same rows or disjoint ones.
  bounds = {index[0].indices(batch_size) for index in indices if index is not None}
  return np.concatenate([np.arange(*bound) for bound in sorted(bounds)])


def gather_to_local_device(tree: Params) -> Params:
  """Returns sharded arrays all-gathered to one device of this process.

  All processes must call it.
  """
  device = jax.local_devices()[0]

  def gather(x: Array) -> Array:
    if x.is_fully_addressable:
      return jax.device_put(x, device)
    sharding = replicated(x.sharding.mesh)  # type: ignore[attr-defined]
    return jax.jit(lambda x: x, out_shardings=sharding)(x).addressable_data(0)

  return jax.tree.map(gather, tree)
