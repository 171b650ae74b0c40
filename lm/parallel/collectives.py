"""FSDP collectives: all-gather parameters for the forward pass, reduce-scatter their gradients.

On a TPU torus of two or three dimensions XLA lowers a reduce-scatter of gradients to an all-reduce,
and an all-gather to an all-reduce of twice the traffic. It does neither when `axis_index_groups`
restrict each reduce-scatter to one dimension of the torus, and each all-gather to at most two.
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


def all_gather_along(x: Array, axis: int, name: str, dims: Sequence[int]) -> Array:
  """Returns x all-gathered along `axis`, one dimension of the torus at a time, the last one first.

  Each all-gather stacks the shards along a new axis, which is then merged. Without the new axis the
  gradients of kernels with short contiguous shards become all-reduces on TPU.

  Args:
    x: the shard of this device.
    axis: of x.
    name: mesh axis.
    dims: torus dimensions of the mesh axis; multiplied, they give its size.
  """
  x = jnp.moveaxis(x, axis, 0)
  for dim in reversed(range(len(dims))):
    x = jax.lax.all_gather(x, name, axis_index_groups=_groups(dims, dim))
    x = x.reshape(-1, *x.shape[2:])
  return jnp.moveaxis(x, 0, axis)


def reduce_scatter_along(x: Array, axis: int, name: str, dims: Sequence[int]) -> Array:
  """Returns the shard along `axis` of the sum of all x, one dimension of the torus at a time.

  Trailing axes are flattened first. With separate head axes XLA picks another layout on TPU and
  turns the reduce-scatter into an all-reduce. Arguments are those of `all_gather_along`.
  """
  x = jnp.moveaxis(x, axis, 0)
  trailing = x.shape[1:]
  x = x.reshape(x.shape[0], -1)
  for dim, size in enumerate(dims):
    x = x.reshape(size, -1, x.shape[-1])
    x = jax.lax.psum_scatter(x, name, axis_index_groups=_groups(dims, dim))
  return jnp.moveaxis(x.reshape(-1, *trailing), 0, axis)


def group_torus_dims(dims: Sequence[int]) -> tuple[int, ...]:
  """Returns the products of consecutive pairs of dimensions; an odd last one stays alone."""
  return tuple(math.prod(dims[i : i + 2]) for i in range(0, len(dims), 2))


def _groups(dims: Sequence[int], dim: int) -> list[list[int]]:
  """Returns the `axis_index_groups` of collectives along one dimension of the torus."""
  indices = np.arange(math.prod(dims)).reshape(dims)
  return np.moveaxis(indices, dim, -1).reshape(-1, dims[dim]).tolist()


def torus_dims(mesh: Mesh, name: str) -> tuple[int, ...]:
  """Returns the dimensions of the torus that a mesh axis extends over, the fastest-varying last.

  Devices in another order, on several slices, or of another platform count as one dimension.
  """
  size = mesh.shape[name]
  devices = np.moveaxis(mesh.devices, mesh.axis_names.index(name), 0).reshape(size, -1)[:, 0]
  if devices[0].platform != 'tpu':
    return (size,)
  coords = np.array([device_coords(device) for device in devices])
  coords -= coords.min(axis=0)
  if coords[:, 0].any():  # several slices
    return (size,)
  extended = np.flatnonzero(coords.any(axis=0))
  slowest_first = np.argsort([-np.argmax(coords[:, i] != coords[0, i]) for i in extended])
  coords = coords[:, extended[slowest_first]]
  dims = tuple(int(n) for n in coords.max(axis=0) + 1)
  return dims if np.array_equal(coords, list(np.ndindex(dims))) else (size,)


class _ParamLayout(NamedTuple):
  """The sharding of a parameter, stored and gathered."""

  mesh: Mesh
  batch: tuple[str, ...]  # the mesh axes that shard the batch
  spec: PartitionSpec  # of the stored parameter; in each entry the axes of `batch` come last
  split: tuple[tuple[str, ...], ...]  # for each axis of the parameter, its mesh axes in `batch`
  gathered: PartitionSpec  # of the gathered parameter, with a new first axis over `batch`


class GatheredParam(flax.struct.PyTreeNode):
  """A parameter all-gathered over the mesh axes of the batch; over `tensor` it remains sharded.

  Several uses of one GatheredParam share one all-gather, and their gradients one reduce-scatter.
  """

  arrays: Array  # (batch shards, *shape)
  layout: _ParamLayout = flax.struct.field(pytree_node=False)


def all_gather_param(x: Array, axes: Sequence[str | None], batch: Any) -> GatheredParam | None:
  """Returns a parameter gathered for a batch; None where the batch is not sharded.

  Args:
    x: the parameter, already cast to the type of its use: fewer bytes are sent.
    axes: its logical axes.
    batch: arrays with rows along axis 0. Rows that do not divide over the mesh are not sharded.
  """
  layout = _param_layout(x, axes, batch)
  return None if layout is None else GatheredParam(_all_gather(x, layout), layout)


def is_gathered_for(gathered: GatheredParam | None, batch: Any) -> bool:
  """Returns whether a parameter was gathered for batches that are sharded as this one is.

  If not, the caller uses the stored parameter. A batch with too few rows, for example, is not
  sharded.
  """
  found = _batch_sharding_axes(batch)
  if gathered is None or found is None:
    return False
  return found[:2] == (gathered.layout.mesh, gathered.layout.batch)


def shard_map_over_batch(
  fn: Callable[[Any, Any], tuple[Any, Any, Any]], params: Any, axes: Any, batch: Any
) -> tuple[Any, Any, Any]:
  """Returns `fn(params, batch)`, computed by each device for its rows of the batch.

  Sums over rows are local first, and reduced over devices once.

  Args:
    fn: returns three trees: sums over rows; sums over rows with the shapes of `params`, or None;
      values for each row.
    params: arrays, or a GatheredParam for this batch, whose sums are not reduced over devices.
    axes: logical axes of `params`.
    batch: arrays with rows along axis 0.
  """
  found = _batch_sharding_axes(batch)
  if found is None:
    return fn(params, batch)
  mesh, names, _ = found

  def gather(x: Array | GatheredParam, axes: Sequence[str | None]) -> Any:
    return x if isinstance(x, GatheredParam) else all_gather_param(x, axes, batch)

  def local(gathered: Any, batch: Any) -> tuple[Any, Any, Any]:
    sums, param_sums, values = fn(jax.tree.map(lambda x: x[0], gathered), batch)
    return jax.lax.psum(sums, names), jax.tree.map(lambda x: x[None], param_sums), values

  def reduce(x: Array | GatheredParam, sums: Array, gathered: GatheredParam) -> Any:
    if isinstance(x, GatheredParam):
      return gathered.replace(arrays=sums)
    return _reduce_scatter_grad(sums, gathered.layout)

  gathered = jax.tree.map(gather, params, axes, is_leaf=_is_gathered)
  arrays = jax.tree.map(lambda x: x.arrays, gathered, is_leaf=_is_gathered)
  by_batch = PartitionSpec(names)
  sharded = _batch_shard_map(local, mesh, names, (PartitionSpec(), by_batch, by_batch))
  sums, param_sums, values = sharded(arrays, batch)
  if param_sums is not None:
    param_sums = jax.tree.map(reduce, params, param_sums, gathered, is_leaf=_is_gathered)
  return sums, param_sums, values


def apply_with_gathered_kernel(
  fn: Callable[[Array, Array], Array], batch: Array, kernel: Array, axes: Sequence[str | None]
) -> Array:
  """Returns `fn(batch, kernel)`, computed by each device for its rows with the gathered kernel.

  The kernel is gathered over the mesh axes of the batch; over `tensor` it stays sharded. Without
  this XLA may split the matmul into windows on TPU, gather the kernel again for the backward pass,
  or all-reduce the full gradient.

  Args:
    fn: maps rows and a full kernel to rows.
    batch: rows along axis 0. If they do not divide over the mesh, XLA chooses the collectives.
    kernel: already cast to the type of the matmul.
    axes: its logical axes.
  """
  layout = _param_layout(kernel, axes, batch)
  if layout is None or not any(layout.split):
    return fn(batch, kernel)
  return apply_with_gathered(fn, batch, GatheredParam(_all_gather(kernel, layout), layout))


def apply_with_gathered(
  fn: Callable[[Any, Array], Any], batch: Any, gathered: GatheredParam
) -> Any:
  """Returns `fn(batch, parameter)`, computed by each device for its rows.

  Args:
    fn: maps arrays with rows along axis 0 and a full parameter to other such arrays.
    batch: arrays with rows along axis 0.
    gathered: the parameter, gathered for this batch.
  """
  mesh, names = gathered.layout.mesh, gathered.layout.batch
  sharded = _batch_shard_map(lambda batch, x: fn(batch, x[0]), mesh, names, PartitionSpec(names))
  return sharded(batch, gathered.arrays)


def _batch_shard_map(
  fn: Callable[[Any, Any], Any], mesh: Mesh, names: tuple[str, ...], out_specs: Any
) -> Callable[[Any, Any], Any]:
  """Returns the `shard_map` of `fn` over the mesh axes `names` along axis 0 of its arguments.

  Other mesh axes stay automatic if they have several devices. Without automatic axes the result can
  also run eagerly.
  """
  return jax.shard_map(
    fn,
    mesh=mesh,
    in_specs=(PartitionSpec(names), PartitionSpec(names)),
    out_specs=out_specs,
    axis_names={name for name in mesh.axis_names if name in names or mesh.shape[name] == 1},
    check_vma=False,
  )


def _is_gathered(x: Any) -> bool:
  return isinstance(x, GatheredParam)


def _batch_sharding_axes(batch: Any) -> tuple[Mesh, tuple[str, ...], Any] | None:
  """Returns the current mesh, the mesh axes that shard a batch, and the rules.

  Returns None if the batch is not sharded.
  """
  current = current_mesh()
  if current is None:
    return None
  mesh, axis_rules = current
  (entry,) = logical_to_spec(('batch',), axis_rules)
  names = tuple(name for name in axes_of(entry) if mesh.shape[name] > 1)
  rows = jax.tree.leaves(batch)[0].shape[0]
  if not names or rows % math.prod(mesh.shape[name] for name in names):
    return None
  return mesh, names, axis_rules


def _param_layout(x: Array, axes: Sequence[str | None], batch: Any) -> _ParamLayout | None:
  """Returns the layout of a parameter for a batch; None where the batch is not sharded.

  Axes of the parameter that do not divide over their mesh axes are not sharded.
  """
  found = _batch_sharding_axes(batch)
  if found is None:
    return None
  mesh, names, axis_rules = found
  spec: list[Any] = []
  gathered: list[Any] = [names]
  split: list[tuple[str, ...]] = []
  for entry, size in zip(logical_to_spec(axes, axis_rules), x.shape, strict=True):
    divides = size % math.prod(mesh.shape[name] for name in axes_of(entry)) == 0
    along = axes_of(entry) if divides else ()
    split.append(tuple(name for name in along if name in names))
    remaining = tuple(name for name in along if name not in names)
    # Gathered axes come last, so that the shards of one all-gather are contiguous.
    spec.append(remaining + split[-1] or None)
    gathered.append(remaining or None)
  return _ParamLayout(mesh, names, PartitionSpec(*spec), tuple(split), PartitionSpec(*gathered))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _all_gather(x: Array, layout: _ParamLayout) -> Array:
  """Returns a parameter all-gathered over the mesh axes of the batch: (batch shards, *shape).

  Each all-gather runs over two torus dimensions and uses the links of both. Over three XLA sends
  twice the bytes on TPU, as an all-reduce. The `shard_map` is manual over all mesh axes;
  collectives in it would otherwise gather over automatic axes too.
  """

  def local(x: Array) -> Array:
    for axis, along in enumerate(layout.split):
      for name in reversed(along):
        x = all_gather_along(x, axis, name, group_torus_dims(torus_dims(layout.mesh, name)))
    return x[None]

  return jax.shard_map(
    local, mesh=layout.mesh, in_specs=layout.spec, out_specs=layout.gathered, check_vma=False
  )(x)


def _reduce_scatter_grad(grads: Array, layout: _ParamLayout) -> Array:
  """Returns the gradient of a stored parameter, reduce-scattered from those of the gathered one.

  It is the transpose of `_all_gather`, over one dimension of the torus at a time (Rajbhandari et
  al. 2020, ZeRO, section 7). Over two, XLA would all-reduce the full gradient on TPU.
  """

  def local(grad: Array) -> Array:
    x = grad[0]
    for axis, along in enumerate(layout.split):
      for name in along:
        x = reduce_scatter_along(x, axis, name, torus_dims(layout.mesh, name))
    replicated = tuple(name for name in layout.batch if not any(name in a for a in layout.split))
    return jax.lax.psum(x, replicated) if replicated else x

  return jax.shard_map(
    local, mesh=layout.mesh, in_specs=layout.gathered, out_specs=layout.spec, check_vma=False
  )(grads)


_all_gather.defvjp(
  lambda x, layout: (_all_gather(x, layout), None),
  lambda layout, _, grads: (_reduce_scatter_grad(grads, layout),),
)


def shard_map_logical(
  fn: Callable[..., Array], in_axes: Sequence[tuple | None], out_axes: tuple
) -> Callable[..., Array]:
  """Returns `fn` under `shard_map` over the current mesh; `fn` itself without a mesh.

  Args:
    fn: computes a shard of its result from the same shards of its arguments.
    in_axes: logical axes of each argument; None for an argument that is None.
    out_axes: logical axes of the result.
  """
  current = current_mesh()
  if current is None:
    return fn
  mesh, axis_rules = current
  return jax.shard_map(
    fn,
    mesh=mesh,
    in_specs=tuple(logical_to_spec(axes or (), axis_rules) for axes in in_axes),
    out_specs=logical_to_spec(out_axes, axis_rules),
    check_vma=False,
  )
