"""What is published of TPU chips, and how slices of them, and nodes of GPUs, are named.

Rates are of one chip, in bytes and FLOPs a second; peaks are those of lm.parallel.hardware. Sources,
read in November 2026:

- memory, ports and chips a host: the pages v4, v5e, v5p, v6e and tpu7x of
  docs.cloud.google.com/tpu/docs. What is printed there as bidirectional bandwidth of all ports is
  here that of one port in one direction, by which a ring is as fast as twice this.
- network between slices: network cards of a host, 2 x 100 Gbit/s (v5e page, "Per-host NIC
  configuration"), 4 x 200 Gbit/s (v6e page), 200 Gbit/s (v4, v5p: Austin et al. 2025, How to Scale
  Your Model, chapter 2), divided by the chips of a host.
- clock: the peak divided by what the matrix units do in a cycle. v4 and v5p have 2 cores of 4 units
  of 128 x 128, v5e one core of them. For v6e and tpu7x it is 524,288 FLOP a cycle and device, the
  least power of two above what the compiler expects of a product of two 8192 x 8192 matrices
  (369,231 and 422,142).
"""

from typing import NamedTuple

from lm.errors import UserError, did_you_mean
from lm.parallel.hardware import peak_flops
from lm.preflight.processors import GPUS, Processor

GB, GIB = 1e9, 2**30
# Of the memory of a chip, what the system and the runtime keep for themselves.
RESERVED = 0.016


class Chip(NamedTuple):
  """One generation of TPU."""

  name: str
  memory: int  # bytes of HBM
  bandwidth: float  # of HBM, bytes/s
  link: float  # of a port to a neighbour, one direction, bytes/s
  network: float  # share of a chip in the network between slices, one direction, bytes/s
  dimensions: int  # of the torus
  wraps: int  # axes of a slice that are a multiple of this long are rings, others are lines
  accelerator: str  # what TPU VMs call a slice, with the number of cores or chips after it
  cores: int  # per chip, where that number counts cores; 1 where it counts chips
  host: int  # chips of a host
  clock: float  # cycles/s, by which the compiler counts
  devices: int = 1  # that JAX sees of a chip

  @property
  def flops(self) -> float:
    """Returns the peak of bfloat16 products with float32 sums, FLOP/s."""
    kind = 'TPU7x' if self.name == 'tpu7x' else f'TPU {self.name}'
    peak = peak_flops(kind)
    assert peak is not None
    return self.devices * peak

  @property
  def room(self) -> float:
    """Returns the bytes that a program may use on a device."""
    return self.memory / self.devices * (1 - RESERVED)


CHIPS = {
  chip.name: chip
  for chip in (
    Chip('v4', 32 * GIB, 1228 * GB, 50 * GB, 6.25 * GB, 3, 4, 'v4', 2, 4, 1.05e9),
    Chip('v5e', 16 * GIB, 819 * GB, 50 * GB, 3.125 * GB, 2, 16, 'v5litepod', 1, 8, 1.5e9),
    Chip('v5p', 95 * GIB, 2765 * GB, 100 * GB, 6.25 * GB, 3, 4, 'v5p', 2, 4, 1.75e9),
    Chip('v6e', 32 * GIB, 1638 * GB, 100 * GB, 12.5 * GB, 2, 16, 'v6e', 1, 8, 1.75e9),
    Chip(
      'tpu7x',
      192 * GIB,
      7380 * GB,
      100 * GB,
      12.5 * GB,
      3,
      4,
      'tpu7x',
      2,
      4,
      2.2e9,
      2,
    ),
  )
}


class Slice(NamedTuple):
  """Chips that are neighbours in a torus, or GPUs of a node; several are joined by a network."""

  chip: Chip | Processor
  shape: tuple[int, ...]
  slices: int = 1

  @property
  def chips(self) -> int:
    """Returns how many chips there are in all slices."""
    count = self.slices
    for size in self.shape:
      count *= size
    return count

  @property
  def topology(self) -> str:
    """Returns the name that the compiler knows one slice by, such as 'v5e:4x4'."""
    return f'{self.chip.name}:{"x".join(map(str, self.shape))}'

  @property
  def accelerator(self) -> str:
    """Returns what TPU VMs call one slice, such as 'v5litepod-16' (16 chips) or 'v5p-128' (64)."""
    assert isinstance(self.chip, Chip)
    return f'{self.chip.accelerator}-{self.chips // self.slices * self.chip.cores}'

  def __str__(self) -> str:
    return (f'{self.slices} x ' if self.slices > 1 else '') + self.topology


def parse(topology: str, slices: int = 1) -> Slice:
  """Returns the slice of '--topology=v5e:4x4', or the node of '--topology=h100:8'.

  Raises:
    UserError: there is no such chip, or the shape is not one of that chip's.
  """
  name, _, shape = topology.partition(':')
  known = [*CHIPS, *GPUS]
  if name not in known:
    raise UserError(
      f'--topology={topology}: there is no chip {name!r}{did_you_mean(name, known)}; chips: '
      f'{", ".join(known)}, followed by the shape of the slice, as in v5e:4x4, or the GPUs of a '
      'node, as in h100:8; and cpu:1, this machine'
    )
  sizes = shape.split('x')
  right = all(s.isdecimal() and int(s) > 0 for s in sizes)
  if name in GPUS:
    most = GPUS[name].most
    if len(sizes) != 1 or not right or int(shape) > most:
      raise UserError(
        f'--topology={topology}: a node of {name} has 1 to {most} GPUs, as in {name}:{most}; '
        '--slices=N counts nodes'
      )
  elif len(sizes) != CHIPS[name].dimensions or not right:
    dimensions = CHIPS[name].dimensions
    raise UserError(
      f'--topology={topology}: slices of {name} have {dimensions} sizes, as in '
      f'{name}:{"x".join(["4"] * dimensions)}'
    )
  if slices < 1:
    raise UserError(f'--slices={slices} is not a positive number')
  return Slice((CHIPS | GPUS)[name], tuple(map(int, sizes)), slices)
