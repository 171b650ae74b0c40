"""GPUs, and whatever else no compiler is asked for: what arithmetic needs to know of them.

Rates are of one processor, in bytes and FLOPs a second; peaks of GPUs are those of
lm.parallel.hardware, and half of them for float32, whose products GPUs do as TensorFloat-32 unless more
precision is asked for. Sources, read in November 2026:

- bandwidth of memory, and NVLink, of which half goes in each direction: NVIDIA's data sheets of
  A100, H100, H200, L4, L40S and of DGX B200 (64 TB/s of 8 GPUs), and GB200 NVL72's. L4 and L40S
  have PCIe 4.0 x16 instead, 64 GB/s both ways.
- memory: what the driver leaves of it, as nvidia-smi prints it in MiB.
- network, one direction, divided by the GPUs of a node: one card of 200 Gbit/s (DGX A100) or 400
  (DGX H100, H200, B200; GB200 NVL72) for each GPU, by their data sheets; 100 Gbit/s for 8 L4
  (g2-standard-96, docs.cloud.google.com/compute/docs/gpus), 400 for 8 L40S (g6e.48xlarge,
  aws.amazon.com/ec2/instance-types/g6e). Clouds sell the larger GPUs with less, too.
"""

from typing import NamedTuple

from lm.parallel.hardware import peak_flops

GB, MIB = 1e9, 2**20
# Of the memory of a GPU, what CUDA's context and NCCL's buffers take: an assumption.
RESERVED = 0.03


class Processor(NamedTuple):
  """One kind of processor; those of a node are joined by links, and nodes by a network."""

  name: str
  platform: str  # as JAX calls it
  flops: float  # products of bfloat16 with float32 sums, FLOP/s
  flops32: float  # products of float32
  memory: float  # bytes
  bandwidth: float  # of the memory, bytes/s
  link: float  # to the others of a node, one direction, bytes/s
  network: float  # share in the network between nodes, one direction, bytes/s
  most: int  # of a node

  devices: int = 1  # that JAX sees of a processor

  @property
  def room(self) -> float:
    """Returns the bytes that a step may use."""
    return self.memory * (1 - RESERVED if self.platform == 'gpu' else 1)


def _gpu(
  name: str, kind: str, mib: int, bandwidth: float, link: float, network: float, most: int = 8
) -> Processor:
  """Returns a GPU, of rates in GB/s and of the peak of its kind."""
  peak = peak_flops(f'NVIDIA {kind}')
  assert peak is not None
  memory, rates = mib * MIB, (bandwidth * GB, link * GB, network * GB)
  return Processor(name, 'gpu', peak, peak / 2, memory, *rates, most)


GPUS = {
  gpu.name: gpu
  for gpu in (
    _gpu('a100', 'A100', 81_920, 2039, 300, 25),
    _gpu('a100-40gb', 'A100', 40_960, 1555, 300, 25),
    _gpu('h100', 'H100', 81_559, 3350, 450, 50),
    _gpu('h200', 'H200', 143_771, 4800, 450, 50),
    _gpu('b200', 'B200', 183_359, 8000, 900, 50),
    _gpu('gb200', 'GB200', 189_471, 8000, 900, 50, 72),
    _gpu('l4', 'L4', 23_034, 300, 32, 1.5625),
    _gpu('l40s', 'L40S', 46_068, 864, 32, 6.25),
  )
}
