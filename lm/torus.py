"""Exchanges between devices of a mesh axis, by the sides of a torus of TPUs.

The compiler of TPUs adds up gradients whole over a square torus or a cube, and makes sums of what
comes together there, which send twice as much; told of groups along its sides it does neither.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lm.mesh import place
from lm.types import Array


def gathered(x: Array, axis: int, name: str, sides: Sequence[int]) -> Array:
  """Returns the parts of x, together along `axis`; the last side comes first.

  Parts lie along an axis of their own meanwhile, or the compiler of TPUs adds up the gradients of
  many kernels whole: those whose parts are short pieces of what lies together in memory.
  """
  x = jnp.moveaxis(x, axis, 0)
  for side in reversed(range(len(sides))):
    x = jax.lax.all_gather(x, name, axis_index_groups=_groups(sides, side))
    x = x.reshape(-1, *x.shape[2:])
  return jnp.moveaxis(x, 0, axis)


def scattered(x: Array, axis: int, name: str, sides: Sequence[int]) -> Array:
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


def planes(sides: Sequence[int]) -> tuple[int, ...]:
  """Returns how many devices lie in each plane of two sides, and along the last side if odd."""
  return tuple(math.prod(sides[i : i + 2]) for i in range(0, len(sides), 2))


def _groups(sides: Sequence[int], side: int) -> list[list[int]]:
  """Returns the lines of devices along one side, by their places on the mesh axis."""
  places = np.arange(math.prod(sides)).reshape(sides)
  return np.moveaxis(places, side, -1).reshape(-1, sides[side]).tolist()


def sides_of(mesh: Mesh, name: str) -> tuple[int, ...]:
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
