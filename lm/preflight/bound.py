"""How long a step takes at the least, by arithmetic and the rates of data sheets: a roofline.

Williams et al. 2009, Roofline. In the passes forward and backward products, memory, links and
network work beside each other, each as fast as it can, and the slowest counts. The optimizer begins
when all gradients are there, for their norm decides by how much they are clipped. No step is
faster; real ones, which reach no peak and wait for each other, are slower. Of a model so small that
caches hold what it keeps, the memory's share is too high.
"""

from collections.abc import Mapping
from typing import NamedTuple

from jax.sharding import Mesh

from lm.preflight.chips import Slice
from lm.preflight.processors import Processor
from lm.preflight.products import Flops


class Work(NamedTuple):
  """What has to be done in a step at the least: FLOPs of all devices, and bytes of one."""

  products: Flops  # of the passes
  memory: float  # bytes that the passes read and write: weights, gradients, what is kept
  update_products: Flops
  update_memory: float
  sent: Mapping[str, float] | None  # bytes by mesh axis, or None where nobody knows


class Bound(NamedTuple):
  """Seconds of a step at the least, and rates at the most."""

  products: float  # at their peak
  memory: float  # of the passes
  links: float  # within nodes
  network: float  # between nodes
  update: float  # the optimizer, after the passes
  step: float
  utilisation: float  # model FLOPs over what the processors could do at their peak
  tokens: float  # a second, of all processors

  @property
  def alone(self) -> float:
    """Returns the seconds of a step in which nothing goes on beside anything else."""
    return self.products + self.memory + self.links + self.network + self.update


def bound(work: Work, mesh: Mesh, slice_: Slice, model_flops: float, tokens: int) -> Bound:
  """Returns the least time of a step.

  Args:
    work: of the step.
    mesh: whose devices say which node they are of, by `slice_index`.
    slice_: of the devices.
    model_flops: that the model needs for the batch, forward and backward.
    tokens: of the batch.
  """
  chip = slice_.chip
  assert isinstance(chip, Processor)
  multiplied = _seconds(work.products, chip) / slice_.chips
  memory = work.memory / chip.bandwidth
  update = max(
    _seconds(work.update_products, chip) / slice_.chips, work.update_memory / chip.bandwidth
  )
  links, network = exchanges(work.sent or {}, mesh, chip)
  step = max(multiplied, memory, links, network) + update
  utilisation = model_flops / (chip.flops * slice_.chips) / step
  return Bound(multiplied, memory, links, network, update, step, utilisation, tokens / step)


def _seconds(flops: Flops, chip: Processor) -> float:
  return sum(value / (chip.flops32 if size >= 4 else chip.flops) for size, value in flops.items())


def exchanges(sent: Mapping[str, float], mesh: Mesh, chip: Processor) -> tuple[float, float]:
  """Returns the seconds of what is sent through links within nodes, and through the network.

  Rings of g devices over k nodes pass all but a g-th of what they carry to every device, and all
  but a k-th to every node, which its g / k devices in the ring take from the network together.

  Args:
    sent: bytes that a device sends in such a ring, by mesh axis.
    mesh: of these axes.
    chip: of its devices.
  """
  links, network = 0.0, 0.0
  for axis, size in sent.items():
    group, nodes = mesh.shape[axis], _nodes(mesh, axis)
    if group == 1:
      continue
    if group > nodes:
      links += size / chip.link
    if nodes > 1:
      into_node = size * group / (group - 1) * (nodes - 1) / nodes
      network += into_node / (group / nodes * chip.network)
  return links, network


def _nodes(mesh: Mesh, axis: str) -> int:
  """Returns over how many nodes the devices along an axis lie."""
  place = mesh.axis_names.index(axis)
  first = tuple(slice(None) if i == place else 0 for i in range(mesh.devices.ndim))
  return len({device.slice_index for device in mesh.devices[first]})
