"""Accelerator types: generation, chips, topology, runtime version.

The size in a type counts chips for v5e and v6e, and TensorCores, two per chip, for v4 and v5p.
Runtime versions are those of Google's page on TPU runtimes in 2025; RUNTIME_VERSION overrides them.
"""

import dataclasses
import math

from tpu_scripts.errors import Stop

# The name in accelerator types -> (generation, size per chip, dimensions, runtime version).
GENERATIONS = {
  'v4': ('v4', 2, 3, 'tpu-ubuntu2204-base'),
  'v5litepod': ('v5e', 1, 2, 'v2-alpha-tpuv5-lite'),
  'v5p': ('v5p', 2, 3, 'v2-alpha-tpuv5'),
  'v6e': ('v6e', 1, 2, 'v2-alpha-tpuv6e'),
}
# The default topology by number of chips; TOPOLOGY in the settings overrides it.
FLAT = {1: '1x1', 4: '2x2', 8: '2x4', 16: '4x4', 32: '4x8', 64: '8x8', 128: '8x16', 256: '16x16'}
SOLID = {
  4: '2x2x1',
  8: '2x2x2',
  16: '2x2x4',
  32: '2x4x4',
  64: '4x4x4',
  128: '4x4x8',
  256: '4x8x8',
  512: '8x8x8',
  1024: '8x8x16',
  2048: '8x16x16',
  4096: '16x16x16',
}


@dataclasses.dataclass(frozen=True)
class Slice:
  """One slice: generation ('v5e'), chips, topology ('4x4') and default runtime version."""

  generation: str
  chips: int
  topology: str
  runtime: str


def slice_of(accelerator_type: str, topology: str = '') -> Slice:
  """Returns the slice of an accelerator type.

  Args:
    accelerator_type: As in `v5litepod-16`.
    topology: Replaces the default topology.

  Raises:
    Stop: the type is unknown, or the Cloud TPU API does not serve its generation.
  """
  name, _, size = accelerator_type.partition('-')
  if name.startswith(('tpu7', 'v7', 'ironwood')):
    raise Stop(
      f'ACCELERATOR_TYPE={accelerator_type}: the Cloud TPU API does not serve TPU7x; use GKE or a '
      'managed instance group of Compute Engine (tpu_scripts/README.md, TPU7x)'
    )
  if name not in GENERATIONS or not size.isdigit():
    raise Stop(
      f'ACCELERATOR_TYPE={accelerator_type} is unknown; it is one of '
      + ', '.join(f'{known}-N' for known in GENERATIONS)
    )
  generation, cores, dimensions, runtime = GENERATIONS[name]
  chips = int(size) // cores
  known = FLAT if dimensions == 2 else SOLID
  if not topology and chips not in known:
    sizes = ', '.join(f'{name}-{count * cores}' for count in known)
    raise Stop(
      f'ACCELERATOR_TYPE={accelerator_type} has no default topology; the sizes are {sizes}'
    )
  if topology and name != 'v4':
    raise Stop(f'TOPOLOGY={topology}: gcloud takes a topology for v4 alone; leave it out')
  topology = topology or known[chips]
  area = math.prod(int(side) for side in topology.split('x'))
  if area != chips:
    raise Stop(f'TOPOLOGY={topology} has {area} chips and {accelerator_type} has {chips}')
  return Slice(generation, chips, topology, runtime)
