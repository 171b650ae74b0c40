"""Exchanges between devices of a mesh axis, by the sides of a torus of TPUs.

The compiler of TPUs adds up gradients whole over a square torus or a cube, and makes sums of what
comes together there, which send twice as much; told of groups along its sides it does neither.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from lm.parallel.mesh import axes_of, current_mesh, device_coords, logical_to_spec
from lm.types import Array


def all_gather_along(x: Array, axis: int, name: str, sides: Sequence[int]) -> Array:
  """Returns the parts of x, together along `axis`; the last side comes first.

  Parts lie along an axis of their own meanwhile, or the compiler of TPUs adds up the gradients of
  many kernels whole: those whose parts are short pieces of what lies together in memory.
  """
  x = jnp.moveaxis(x, axis, 0)
  for side in reversed(range(len(sides))):
    x = jax.lax.all_gather(x, name, axis_index_groups=_groups(sides, side))
    x = x.reshape(-1, *x.shape[2:])
  return jnp.moveaxis(x, 0, axis)


def reduce_scatter_along(x: Array, axis: int, name: str, sides: Sequence[int]) -> Array:
  """Returns a device's part along `axis` of the sum of all x; the first side comes first.

  All other axes are one meanwhile: with heads and groups apart the compiler of TPUs lays others
  before the parts, and adds up all of it everywhere.
  """
  x = jnp.moveaxis(x, axis, 0)
  others = x.shape[1:]
  x = x.reshape(x.shape[0], -1)
  for side, size in enumerate(sides):
    x = x.reshape(size, -1, x.shape[-1])
    x = jax.lax.psum_scatter(x, name, axis_index_groups=_groups(sides, side))
  return jnp.moveaxis(x.reshape(-1, *others), 0, axis)


def group_torus_dims(sides: Sequence[int]) -> tuple[int, ...]:
  """Returns how many devices lie in each plane of two sides, and along the last side if odd."""
  return tuple(math.prod(sides[i : i + 2]) for i in range(0, len(sides), 2))


def _groups(sides: Sequence[int], side: int) -> list[list[int]]:
  """Returns the lines of devices along one side, by their places on the mesh axis."""
  places = np.arange(math.prod(sides)).reshape(sides)
  return np.moveaxis(places, side, -1).reshape(-1, sides[side]).tolist()


def torus_dims(mesh: Mesh, name: str) -> tuple[int, ...]:
  """Returns over how many devices an axis of the mesh extends along each side of a torus.

  The side along which the next device lies is the last. Devices that lie otherwise, or on several
  slices, are one side.
  """
  size = mesh.shape[name]
  line = np.moveaxis(mesh.devices, mesh.axis_names.index(name), 0).reshape(size, -1)[:, 0]
  if line[0].platform != 'tpu':
    return (size,)
  places = np.array([device_coords(device) for device in line])
  places -= places.min(axis=0)
  if places[:, 0].any():
    return (size,)
  long = np.flatnonzero(places.any(axis=0))
  long = long[np.argsort([-np.argmax(places[:, i] != places[0, i]) for i in long])]
  sizes = tuple(int(n) for n in places[:, long].max(axis=0) + 1)
  lies_in_order = np.array_equal(places[:, long], list(np.ndindex(sizes)))
  return sizes if lies_in_order else (size,)


class _ParamLayout(NamedTuple):
  """How a parameter lies, and its copies, one for each part of the rows."""

  mesh: Mesh
  rows: tuple[str, ...]  # the mesh axes that split rows
  spec: PartitionSpec  # of the parameter; along an axis those of rows come last
  split: tuple[tuple[str, ...], ...]  # of `rows`, those that split each axis of the parameter
  copies: PartitionSpec  # of the copies, along a new first axis


class GatheredParam(flax.struct.PyTreeNode):
  """A parameter whole for each part of the rows of a batch; along `tensor` it stays split.

  What is done with the same copies in several places costs one exchange, and so do the gradients of
  all of them.
  """

  arrays: Array  # along a new first axis
  layout: _ParamLayout = flax.struct.field(pytree_node=False)


def all_gather_param(x: Array, axes: Sequence[str | None], rows: Any) -> GatheredParam | None:
  """Returns the copies of a parameter; None where rows are not split.

  Args:
    x: of a type as short as what it is for has it.
    axes: its logical axes.
    rows: arrays with them along axis 0; where they do not divide over the mesh, they are not split.
  """
  layout = _param_layout(x, axes, rows)
  return None if layout is None else GatheredParam(_all_gather(x, layout), layout)


def is_gathered_for(copies: GatheredParam | None, rows: Any) -> bool:
  """Returns whether there are copies for these rows, and on the mesh in use.

  Where not, the parameter itself is there: other rows may be fewer, or not split.
  """
  found = _batch_sharding_axes(rows)
  if copies is None or found is None:
    return False
  mesh, _, names = found
  return (mesh, names) == (copies.layout.mesh, copies.layout.rows)


def shard_map_over_batch(
  part: Callable[[Any, Any], tuple[Any, Any, Any]], whole: Any, axes: Any, rows: Any
) -> tuple[Any, Any, Any]:
  """Returns `part(whole, rows)`, done by each device for its own rows of a batch.

  What is added up over rows a device adds up by itself, and the devices but once.

  Args:
    part: returns three trees: sums over the rows; sums over the rows of the shapes of `whole`, or
      None; values of the rows.
    whole: arrays that all rows need, or Copies that serve these; their sums are each device's.
    axes: their logical axes.
    rows: arrays with the rows along axis 0.
  """
  found = _batch_sharding_axes(rows)
  if found is None:
    return part(whole, rows)
  mesh, _, names = found

  def have(x: Array | GatheredParam, axes: Sequence[str | None]) -> Any:
    return x if isinstance(x, GatheredParam) else all_gather_param(x, axes, rows)

  def mine(copies: Any, rows: Any) -> tuple[Any, Any, Any]:
    sums, like_whole, values = part(jax.tree.map(lambda x: x[0], copies), rows)
    return jax.lax.psum(sums, names), jax.tree.map(lambda x: x[None], like_whole), values

  def added(x: Array | GatheredParam, each: Array, copies: GatheredParam) -> Any:
    given = isinstance(x, GatheredParam)
    return copies.replace(arrays=each) if given else _reduce_scatter_grad(each, copies.layout)

  copies = jax.tree.map(have, whole, axes, is_leaf=_is_gathered)
  arrays = jax.tree.map(lambda x: x.arrays, copies, is_leaf=_is_gathered)
  of_rows = PartitionSpec(names)
  sums, like_whole, values = jax.shard_map(
    mine,
    mesh=mesh,
    in_specs=(of_rows, of_rows),
    out_specs=(PartitionSpec(), of_rows, of_rows),
    axis_names=_manual_axes(mesh, names),
    check_vma=False,
  )(arrays, rows)
  if like_whole is not None:
    like_whole = jax.tree.map(added, whole, like_whole, copies, is_leaf=_is_gathered)
  return sums, like_whole, values


def apply_with_gathered_kernel(
  part: Callable[[Array, Array], Array], rows: Array, kernel: Array, axes: Sequence[str | None]
) -> Array:
  """Returns `part(rows, kernel)`, done by each device for its own rows, with the kernel whole.

  It comes together along the mesh axes that split rows; those of `tensor` stay split. Left to
  itself the compiler of TPUs may cut the product into windows, gather a kernel twice for a pass
  backward, or add up the whole gradient everywhere.

  Args:
    part: maps rows and a whole kernel to rows.
    rows: along axis 0; where they do not divide over the mesh, the compiler does as it likes.
    kernel: of a type as short as products have it.
    axes: its logical axes.
  """
  layout = _param_layout(kernel, axes, rows)
  if layout is None or not any(layout.split):
    return part(rows, kernel)
  return apply_with_gathered(part, rows, GatheredParam(_all_gather(kernel, layout), layout))


def apply_with_gathered(part: Callable[[Any, Array], Any], rows: Any, copies: GatheredParam) -> Any:
  """Returns `part(rows, parameter)`, done by each device for its own rows with its copy.

  Args:
    part: maps arrays with rows along axis 0 and a parameter to others.
    rows: those of the batch.
    copies: that serve them.
  """
  mesh, names = copies.layout.mesh, copies.layout.rows
  of_rows = PartitionSpec(names)
  return jax.shard_map(
    lambda rows, copy: part(rows, copy[0]),
    mesh=mesh,
    in_specs=(of_rows, of_rows),
    out_specs=of_rows,
    axis_names=_manual_axes(mesh, names),
    check_vma=False,
  )(rows, copies.arrays)


def _manual_axes(mesh: Mesh, names: tuple[str, ...]) -> set[str]:
  """Returns axes for `shard_map`: of all of them, where others have one device, it runs eagerly."""
  return {name for name in mesh.axis_names if name in names or mesh.shape[name] == 1}


def _is_gathered(x: Any) -> bool:
  return isinstance(x, GatheredParam)


def _batch_sharding_axes(rows: Any) -> tuple[Mesh, Any, tuple[str, ...]] | None:
  """Returns the mesh in use, its rules and the mesh axes that split rows; None where none does."""
  current = current_mesh()
  if current is None:
    return None
  mesh, axis_rules = current
  (entry,) = logical_to_spec(('batch',), axis_rules)
  names = tuple(name for name in axes_of(entry) if mesh.shape[name] > 1)
  size = jax.tree.leaves(rows)[0].shape[0]
  if not names or size % math.prod(mesh.shape[name] for name in names):
    return None
  return mesh, axis_rules, names


def _param_layout(x: Array, axes: Sequence[str | None], rows: Any) -> _ParamLayout | None:
  """Returns how a parameter lies, None where rows are not split; what does not divide is whole."""
  found = _batch_sharding_axes(rows)
  if found is None:
    return None
  mesh, axis_rules, names = found
  spec: list[Any] = []
  rest: list[Any] = [names]
  split: list[tuple[str, ...]] = []
  for entry, size in zip(logical_to_spec(axes, axis_rules), x.shape, strict=True):
    divides = size % math.prod(mesh.shape[name] for name in axes_of(entry)) == 0
    along = axes_of(entry) if divides else ()
    split.append(tuple(name for name in along if name in names))
    stays = tuple(name for name in along if name not in names)
    # What comes together must be what lies together: parts of the parts that stay.
    spec.append(stays + split[-1] or None)
    rest.append(stays or None)
  return _ParamLayout(mesh, names, PartitionSpec(*spec), tuple(split), PartitionSpec(*rest))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _all_gather(x: Array, layout: _ParamLayout) -> Array:
  """Returns a parameter's copies, one for each part of the rows, along a new first axis.

  A copy is whole along the mesh axes of rows, and comes together over one plane of the torus after
  another: over the links of two sides at once, while over more the compiler of TPUs makes sums of
  it, which send twice as much. It is done by all devices for themselves: along mesh axes that
  `shard_map` is not told of, exchanges in it would bring together what is split.
  """

  def mine(x: Array) -> Array:
    for axis, along in enumerate(layout.split):
      for name in reversed(along):
        x = all_gather_along(x, axis, name, group_torus_dims(torus_dims(layout.mesh, name)))
    return x[None]

  return jax.shard_map(
    mine, mesh=layout.mesh, in_specs=layout.spec, out_specs=layout.copies, check_vma=False
  )(x)


def _reduce_scatter_grad(copies: Array, layout: _ParamLayout) -> Array:
  """Returns the sum of what belongs to the copies of a parameter, laid out as the parameter is.

  It is the transpose of `_copied`: added up and split once around, one side of the torus after
  another (Rajbhandari et al. 2020, ZeRO, section 7); over a plane the compiler of TPUs would add up
  everything everywhere.
  """

  def mine(copy: Array) -> Array:
    x = copy[0]
    for axis, along in enumerate(layout.split):
      for name in along:
        x = reduce_scatter_along(x, axis, name, torus_dims(layout.mesh, name))
    everywhere = tuple(name for name in layout.rows if not any(name in a for a in layout.split))
    return jax.lax.psum(x, everywhere) if everywhere else x

  return jax.shard_map(
    mine, mesh=layout.mesh, in_specs=layout.copies, out_specs=layout.spec, check_vma=False
  )(copies)


_all_gather.defvjp(
  lambda x, layout: (_all_gather(x, layout), None),
  lambda layout, _, copies: (_reduce_scatter_grad(copies, layout),),
)


def shard_map_logical(
  part: Callable[..., Array], in_axes: Sequence[tuple | None], out_axes: tuple
) -> Callable[..., Array]:
  """Returns the function that does `part` on each device for what the device has of the arrays.

  Args:
    part: of arrays that no device needs anything else for.
    in_axes: the logical axes of its arguments; None for one that is None.
    out_axes: those of its result.
  """
  current = current_mesh()
  if current is None:
    return part
  mesh, axis_rules = current
  specs = tuple(PartitionSpec() if a is None else logical_to_spec(a, axis_rules) for a in in_axes)
  return jax.shard_map(
    part,
    mesh=mesh,
    in_specs=specs,
    out_specs=logical_to_spec(out_axes, axis_rules),
    check_vma=False,
  )
