"""What each device does by itself for its own part of arrays, and what they tell each other."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
from jax.sharding import Mesh, PartitionSpec

from lm import torus
from lm.mesh import axes_of, in_use, partition
from lm.types import Array


class _Layout(NamedTuple):
  """How a parameter lies, and its copies, one for each part of the rows."""

  mesh: Mesh
  rows: tuple[str, ...]  # the mesh axes that split rows
  spec: PartitionSpec  # of the parameter; along an axis those of rows come last
  split: tuple[tuple[str, ...], ...]  # of `rows`, those that split each axis of the parameter
  copies: PartitionSpec  # of the copies, along a new first axis


class Copies(flax.struct.PyTreeNode):
  """A parameter whole for each part of the rows of a batch; along `tensor` it stays split.

  What is done with the same copies in several places costs one exchange, and so do the gradients of
  all of them.
  """

  arrays: Array  # along a new first axis
  layout: _Layout = flax.struct.field(pytree_node=False)


def copied(x: Array, axes: Sequence[str | None], rows: Any) -> Copies | None:
  """Returns the copies of a parameter; None where rows are not split.

  Args:
    x: of a type as short as what it is for has it.
    axes: its logical axes.
    rows: arrays with them along axis 0; where they do not divide over the mesh, they are not split.
  """
  layout = _layout(x, axes, rows)
  return None if layout is None else Copies(_copied(x, layout), layout)


def serve(copies: Copies | None, rows: Any) -> bool:
  """Returns whether there are copies for these rows, and on the mesh in use.

  Where not, the parameter itself is there: other rows may be fewer, or not split.
  """
  found = _split_rows(rows)
  if copies is None or found is None:
    return False
  mesh, _, names = found
  return (mesh, names) == (copies.layout.mesh, copies.layout.rows)


def by_rows(
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
  found = _split_rows(rows)
  if found is None:
    return part(whole, rows)
  mesh, _, names = found

  def have(x: Array | Copies, axes: Sequence[str | None]) -> Any:
    return x if isinstance(x, Copies) else copied(x, axes, rows)

  def mine(copies: Any, rows: Any) -> tuple[Any, Any, Any]:
    sums, like_whole, values = part(jax.tree.map(lambda x: x[0], copies), rows)
    return jax.lax.psum(sums, names), jax.tree.map(lambda x: x[None], like_whole), values

  def added(x: Array | Copies, each: Array, copies: Copies) -> Any:
    given = isinstance(x, Copies)
    return copies.replace(arrays=each) if given else _added(each, copies.layout)

  copies = jax.tree.map(have, whole, axes, is_leaf=_are_copies)
  arrays = jax.tree.map(lambda x: x.arrays, copies, is_leaf=_are_copies)
  of_rows = PartitionSpec(names)
  sums, like_whole, values = jax.shard_map(
    mine,
    mesh=mesh,
    in_specs=(of_rows, of_rows),
    out_specs=(PartitionSpec(), of_rows, of_rows),
    axis_names=_manual(mesh, names),
    check_vma=False,
  )(arrays, rows)
  if like_whole is not None:
    like_whole = jax.tree.map(added, whole, like_whole, copies, is_leaf=_are_copies)
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
    rows: along axis 0; where they do not divide over the mesh, the compiler does as it likes.
    kernel: of a type as short as products have it.
    axes: its logical axes.
  """
  layout = _layout(kernel, axes, rows)
  if layout is None or not any(layout.split):
    return part(rows, kernel)
  return with_copies(part, rows, Copies(_copied(kernel, layout), layout))


def with_copies(part: Callable[[Any, Array], Any], rows: Any, copies: Copies) -> Any:
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
    axis_names=_manual(mesh, names),
    check_vma=False,
  )(rows, copies.arrays)


def _manual(mesh: Mesh, names: tuple[str, ...]) -> set[str]:
  """Returns axes for `shard_map`: of all of them, where others have one device, it runs eagerly."""
  return {name for name in mesh.axis_names if name in names or mesh.shape[name] == 1}


def _are_copies(x: Any) -> bool:
  return isinstance(x, Copies)


def _split_rows(rows: Any) -> tuple[Mesh, Any, tuple[str, ...]] | None:
  """Returns the mesh in use, its rules and the mesh axes that split rows; None where none does."""
  current = in_use()
  if current is None:
    return None
  mesh, axis_rules = current
  (entry,) = partition(('batch',), axis_rules)
  names = tuple(name for name in axes_of(entry) if mesh.shape[name] > 1)
  size = jax.tree.leaves(rows)[0].shape[0]
  if not names or size % math.prod(mesh.shape[name] for name in names):
    return None
  return mesh, axis_rules, names


def _layout(x: Array, axes: Sequence[str | None], rows: Any) -> _Layout | None:
  """Returns how a parameter lies, None where rows are not split; what does not divide is whole."""
  found = _split_rows(rows)
  if found is None:
    return None
  mesh, axis_rules, names = found
  spec: list[Any] = []
  rest: list[Any] = [names]
  split: list[tuple[str, ...]] = []
  for entry, size in zip(partition(axes, axis_rules), x.shape, strict=True):
    divides = size % math.prod(mesh.shape[name] for name in axes_of(entry)) == 0
    along = axes_of(entry) if divides else ()
    split.append(tuple(name for name in along if name in names))
    stays = tuple(name for name in along if name not in names)
    # What comes together must be what lies together: parts of the parts that stay.
    spec.append(stays + split[-1] or None)
    rest.append(stays or None)
  return _Layout(mesh, names, PartitionSpec(*spec), tuple(split), PartitionSpec(*rest))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _copied(x: Array, layout: _Layout) -> Array:
  """Returns a parameter's copies, one for each part of the rows, along a new first axis.

  A copy is whole along the mesh axes of rows, and comes together over one plane of the torus after
  another: over the links of two sides at once, while over more the compiler of TPUs makes sums of
  it, which send twice as much. It is done by all devices for themselves: along mesh axes that
  `shard_map` is not told of, exchanges in it would bring together what is split.
  """

  def mine(x: Array) -> Array:
    for axis, along in enumerate(layout.split):
      for name in reversed(along):
        x = torus.gathered(x, axis, name, torus.planes(torus.sides_of(layout.mesh, name)))
    return x[None]

  return jax.shard_map(
    mine, mesh=layout.mesh, in_specs=layout.spec, out_specs=layout.copies, check_vma=False
  )(x)


def _added(copies: Array, layout: _Layout) -> Array:
  """Returns the sum of what belongs to the copies of a parameter, laid out as the parameter is.

  It is the transpose of `_copied`: added up and split once around, one side of the torus after
  another (Rajbhandari et al. 2020, ZeRO, section 7); over a plane the compiler of TPUs would add up
  everything everywhere.
  """

  def mine(copy: Array) -> Array:
    x = copy[0]
    for axis, along in enumerate(layout.split):
      for name in along:
        x = torus.scattered(x, axis, name, torus.sides_of(layout.mesh, name))
    everywhere = tuple(name for name in layout.rows if not any(name in a for a in layout.split))
    return jax.lax.psum(x, everywhere) if everywhere else x

  return jax.shard_map(
    mine, mesh=layout.mesh, in_specs=layout.copies, out_specs=layout.spec, check_vma=False
  )(copies)


_copied.defvjp(
  lambda x, layout: (_copied(x, layout), None), lambda layout, _, copies: (_added(copies, layout),)
)


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
