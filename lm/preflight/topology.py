"""Slices of TPUs and nodes of GPUs, described without access to any.

JAX makes meshes of these descriptions, and libtpu compiles for descriptions of TPUs.
"""

import dataclasses
import importlib.util
import math
import os
import timeit
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from lm.errors import UserError, did_you_mean
from lm.parallel.chips import BY_NAME, Chip


class Slice(NamedTuple):
  """TPUs of one torus or GPUs of one node, or several of these joined by a network."""

  chip: Chip
  shape: tuple[int, ...]
  slices: int = 1

  @property
  def chips(self) -> int:
    """Returns the chips of all slices."""
    return self.slices * math.prod(self.shape)

  @property
  def topology(self) -> str:
    """Returns the name of one slice, such as 'v5e:4x4'."""
    return f'{self.chip.name}:{"x".join(map(str, self.shape))}'

  @property
  def accelerator(self) -> str:
    """Returns the accelerator type of one slice, such as 'v5litepod-16' or 'v5p-128' (64 chips)."""
    return f'{self.chip.accelerator}-{self.chips // self.slices * self.chip.cores}'


def parse(topology: str, slices: int = 1) -> Slice:
  """Returns the slice of --topology=v5e:4x4, the node of h100:8, or this machine for cpu:1.

  Raises:
    UserError: the chip is unknown, or has no such slices or nodes.
  """
  name, _, shape = topology.partition(':')
  if name == 'cpu':
    return _local_machine(topology, slices)
  if name not in BY_NAME:
    raise UserError(
      f'--topology={topology}: unknown chip {name!r}{did_you_mean(name, BY_NAME)}; available: '
      f'{", ".join(BY_NAME)}, followed by the shape of a TPU slice, as in v5e:4x4, or the GPUs of '
      'a node, as in h100:8; and cpu:1 for this machine'
    )
  chip = BY_NAME[name]
  sizes = [int(size) if size.isdecimal() else 0 for size in shape.split('x')]
  example = 'x'.join(['4'] * chip.dimensions)
  checks = (
    (
      len(sizes) != chip.dimensions or min(sizes) < 1,
      f'--topology={topology}: {name} needs {chip.dimensions} size(s), as in {name}:{example}',
    ),
    (
      chip.platform == 'gpu' and sizes[0] > chip.node,
      f'--topology={topology}: a node of {name} has at most {chip.node} GPUs; --slices=N is the '
      'number of nodes',
    ),
    (slices < 1, f'--slices={slices} is not positive'),
  )
  for wrong, message in checks:
    if wrong:
      raise UserError(message)
  return Slice(chip, tuple(sizes), slices)


@dataclasses.dataclass(frozen=True)
class Device:
  """The attributes of a device that a mesh needs, for platforms without a compiler.

  This is no NamedTuple, which NumPy would read as a row of an array of devices.
  """

  id: int
  platform: str
  device_kind: str
  process_index: int
  slice_index: int  # of its node


def devices(slice_: Slice) -> Sequence[Any]:
  """Returns descriptions of the devices of a slice.

  Raises:
    UserError: they are TPUs, and libtpu is not installed or knows no such slice.
  """
  chip = slice_.chip
  jax.config.update('jax_platforms', 'cpu')  # by default JAX initializes the local accelerator
  if chip.platform != 'tpu':
    each = slice_.chips // slice_.slices
    return [Device(i, chip.platform, chip.name, i // each, i // each) for i in range(slice_.chips)]
  if importlib.util.find_spec('libtpu') is None:
    raise UserError("lm.preflight needs libtpu, the TPU compiler: pip install -e '.[tpu]'")
  os.environ |= {  # without these libtpu looks for a TPU on this machine
    'JAX_PLATFORMS': 'cpu',
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': slice_.accelerator,
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': 'true',  # no lock is needed, since no chip is used
  }
  options: dict[str, Any] = {'num_slices': slice_.slices} if slice_.slices > 1 else {}
  if chip.name == 'v4':
    options['chip_config_name'] = 'megacore'  # both cores of a chip as one device
  try:
    return topologies.get_topology_desc(
      platform='tpu', topology_name=slice_.topology, **options
    ).devices
  except Exception as e:  # of several types, each with a stack trace as its message
    raise UserError(
      f'--topology={slice_.topology}: libtpu knows no such slice ({str(e).splitlines()[0][:200]})'
    ) from e


def _local_machine(topology: str, slices: int) -> Slice:
  """Returns this machine as a slice of one CPU, after measuring its rates for a few seconds.

  Raises:
    UserError: the topology is not one device.
  """
  if topology != 'cpu:1' or slices != 1:
    raise UserError(
      f'--topology={topology} --slices={slices}: this machine is one device, cpu:1; '
      'leave --slices out'
    )
  jax.config.update('jax_platforms', 'cpu')
  size, repeats = 2048, 10
  matrix = jnp.ones((size, size), jnp.float32)
  flops = 2 * size**3 / _seconds(jax.jit(jnp.matmul), matrix, matrix)
  # 128 MiB exceed the caches. The loop works in place: page faults would dominate a single pass.
  vector = jnp.ones(1 << 25, jnp.float32)
  increase = jax.jit(lambda x: jax.lax.fori_loop(0, repeats, lambda _, x: x + 1, x))
  bandwidth = 2 * vector.nbytes * repeats / _seconds(increase, vector)
  memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  return Slice(Chip('cpu', 'cpu', (), flops, memory, bandwidth), (1,))


def _seconds(function: Callable[..., Any], *arguments: jax.Array) -> float:
  """Returns the shortest time of a function in ten calls after the first, which compiles."""
  seconds = timeit.repeat(lambda: jax.block_until_ready(function(*arguments)), number=1, repeat=11)
  return min(seconds[1:])
