"""Arrays between the host and the devices of a mesh, of which a process may see only some."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import NamedSharding

from lm.parallel.mesh import replicated
from lm.types import Array, Params


def put_batch(batch: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, Array]:
  """Makes global arrays of the rows this process has read."""
  if jax.process_count() == 1:
    return jax.device_put(dict(batch), sharding)
  return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def local_rows(batch_size: int, sharding: NamedSharding) -> np.ndarray:
  """Returns, in order, the rows of the global batch that this process's devices hold."""
  indices = sharding.addressable_devices_indices_map((batch_size,)).values()
  # Devices hold equal rows or different ones.
  bounds = {index[0].indices(batch_size) for index in indices if index is not None}
  return np.concatenate([np.arange(*bound) for bound in sorted(bounds)])


def local_copy(tree: Params) -> Params:
  """Returns arrays of the mesh as whole arrays on one device of this process.

  Where there are several processes, all of them must ask.
  """
  here = jax.local_devices()[0]

  def whole(x: Array) -> Array:
    if x.is_fully_addressable:
      return jax.device_put(x, here)
    everywhere = replicated(x.sharding.mesh)
    return jax.jit(lambda x: x, out_shardings=everywhere)(x).addressable_data(0)

  return jax.tree.map(whole, tree)
