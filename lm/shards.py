"""What each device does by itself for its own part of arrays, and what they tell each other."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from lm.mesh import axes_of, in_use, partition, place
from lm.types import Array


def by_rows(
  part: Callable[[Any, Any], tuple[Any, Any, Any]], whole: Any, axes: Any, rows: Any
) -> tuple[Any, Any, Any]:
  """Returns `part(whole, rows)`, done by each device for its own rows of a batch.

  What is added up over rows a device adds up by itself, and the devices but once.

  Args:
    part: returns (sums over the rows, as trees of arrays that stay whole and of such as `whole`,
      which may be None, values of the rows).
    whole: arrays that all rows need.
    axes: their logical axes.
    rows: arrays with the rows along axis 0.
  """
  current = in_use()
  names = () if current is None else _of_rows(*current)
  if current is None or not names:
    return part(whole, rows)
  mesh, axis_rules = current
  of_rows = PartitionSpec(names)
  spread = jax.tree.map(lambda x, named: _copying(x, named, mesh, axis_rules), whole, axes)

  def mine(copies: Any, rows: Any) -> tuple[Any, Any, Any]:
    sums, like_whole, values = part(jax.tree.map(lambda x: x[0], copies), rows)
    return jax.lax.psum(sums, names), jax.tree.map(lambda x: x[None], like_whole), values

  sums, like_whole, values = jax.shard_map(
    mine,
    mesh=mesh,
    in_specs=(of_rows, of_rows),
    out_specs=(PartitionSpec(), of_rows, of_rows),
    axis_names=set(names),
    check_vma=False,
  )(jax.tree.map(lambda x, copy: copy(x), whole, spread), rows)

  def added(x: Array, copy: Callable[[Array], Array], each: Array) -> Array:
    return jax.linear_transpose(copy, jax.ShapeDtypeStruct(x.shape, each.dtype))(each)[0]

  if like_whole is not None:
    like_whole = jax.tree.map(added, whole, spread, like_whole)
  return sums, like_whole, values


def with_whole(
  part: Callable[[Array, Array], Array], rows: Array, kernel: Array, axes: Sequence[str | None]
) -> Array:
  """Returns `part(rows, kernel)`, done by each device for its own rows, with the kernel whole.

  It comes together along the mesh axes that split rows; those of `tensor` stay split. Left to
  itself the compiler of TPUs may cut the product into windows, gather a kernel twice for a pass
  backward, or add up the whole gradient everywhere.

  Args:
    part: maps rows and a whole kernel to rows.
    rows: along axis 0.
    kernel: of a type as short as products have it.
    axes: its logical axes.
  """
  current = in_use()
  names = () if current is None else _of_rows(*current)
  if current is None or not names:
    return part(rows, kernel)
  mesh, axis_rules = current
  if not any({*names}.intersection(axes_of(entry)) for entry in partition(axes, axis_rules)):
    return part(rows, kernel)
  of_rows = PartitionSpec(names)
  return jax.shard_map(
    lambda rows, copy: part(rows, copy[0]),
    mesh=mesh,
    in_specs=(of_rows, of_rows),
    out_specs=of_rows,
    axis_names=set(names),
    check_vma=False,
  )(rows, _copying(kernel, axes, mesh, axis_rules)(kernel))


def _copying(
  x: Array, axes: Sequence[str | None], mesh: Mesh, axis_rules: Any
) -> Callable[[Array], Array]:
  """Returns the function from a parameter to its copies, one for each part of the rows.

  These lie along a new first axis, split over the mesh axes of rows, along which a copy is whole.
  So nothing is sent but what this function and its transpose send, side after side of the torus:
  a copy in parts, and a gradient once around, added up and split again (Rajbhandari et al. 2020,
  ZeRO, section 7). It is done by all devices for themselves: along mesh axes that `shard_map` is
  not told of, exchanges in it would bring together what is split.
  """
  names = _of_rows(mesh, axis_rules)
  spec = PartitionSpec(
    *(
      entry if size % math.prod(mesh.shape[name] for name in axes_of(entry)) == 0 else None
      for entry, size in zip(partition(axes, axis_rules), x.shape, strict=True)
    )
  )
  split = [tuple(name for name in axes_of(entry) if name in names) for entry in spec]
  rest = [tuple(name for name in axes_of(entry) if name not in names) or None for entry in spec]
  sides = {name: _sides(mesh, name) for name in names}

  def mine(x: Array) -> Array:
    for axis, along in enumerate(split):
      for name in reversed(along):
        x = _gathered(x, axis, name, sides[name])
    return x[None]

  return jax.shard_map(
    mine, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(names, *rest), check_vma=False
  )


def _gathered(x: Array, axis: int, name: str, sides: Sequence[int]) -> Array:
  """Returns the parts of x, together along `axis`; the last side of the torus comes first."""
  places = np.arange(math.prod(sides)).reshape(sides)
  # Parts lie along an axis of their own, or the compiler of TPUs adds up the gradients of many
  # kernels whole, those whose parts are short pieces of what lies together in memory.
  x = jnp.moveaxis(x, axis, 0)
  for side in reversed(range(len(sides))):
    groups = np.moveaxis(places, side, -1).reshape(-1, sides[side]).tolist()
    x = jax.lax.all_gather(x, name, axis_index_groups=groups)
    x = x.reshape(-1, *x.shape[2:])
  return jnp.moveaxis(x, 0, axis)


def _sides(mesh: Mesh, name: str) -> tuple[int, ...]:
  """Returns over how many devices an axis of the mesh extends along each side of a torus.

  The side along which the next device lies is the last. Devices that lie otherwise, or on several
  slices, are one side.
  """
  size = mesh.shape[name]
  line = np.moveaxis(mesh.devices, mesh.axis_names.index(name), 0).reshape(size, -1)[:, 0]
  if line[0].platform != 'tpu':
    return (size,)
  places = np.array([place(device) for device in line])
  places -= places.min(axis=0)
  if places[:, 0].any():
    return (size,)
  long = np.flatnonzero(places.any(axis=0))
  long = long[np.argsort([-np.argmax(places[:, i] != places[0, i]) for i in long])]
  sizes = tuple(int(n) for n in places[:, long].max(axis=0) + 1)
  lies_in_order = np.array_equal(places[:, long], list(np.ndindex(sizes)))
  return sizes if lies_in_order else (size,)


def on_each(
  part: Callable[..., Array], in_axes: Sequence[tuple | None], out_axes: tuple
) -> Callable[..., Array]:
  """Returns the function that does `part` on each device for what the device has of the arrays.

  Args:
    part: of arrays that no device needs anything else for.
    in_axes: the logical axes of its arguments; None for one that is None.
    out_axes: those of its result.
  """
  current = in_use()
  if current is None:
    return part
  mesh, axis_rules = current
  specs = tuple(PartitionSpec() if a is None else partition(a, axis_rules) for a in in_axes)
  return jax.shard_map(
    part, mesh=mesh, in_specs=specs, out_specs=partition(out_axes, axis_rules), check_vma=False
  )


def _of_rows(mesh: Mesh, axis_rules: Any) -> tuple[str, ...]:
  """Returns the mesh axes that split the rows of a batch."""
  (names,) = partition(('batch',), axis_rules)
  return tuple(name for name in axes_of(names) if mesh.shape[name] > 1)
