"""Chips: peak matmul rates, memory, and the bandwidths of memory, links and network.

The MFU of training and the estimates of `lm.preflight` follow from these figures. Rates are those
of one chip, in bytes/s and FLOP/s. Sources, read in November 2026:

- peaks of TPUs: cloud.google.com/tpu/docs, "peak compute per chip (bf16)" of v4, v5e, v5p, v6e and
  tpu7x.
- peaks of GPUs, without sparsity: the data sheets of A10, A100, L4, L40S, H100 and H200; the
  Blackwell architecture technical brief (2024) for HGX B200 and GB200; the white papers GA102,
  AD102 and GB202 for GeForce cards ("peak BF16 tensor TFLOPS with FP32 accumulate").
- memory and links of TPUs: the same pages. They give the bidirectional bandwidth of all ports;
  CHIPS has that of one port in one direction. A ring uses two ports.
- network between TPU slices: the network cards of a host, divided by its chips. They are 2 x 100
  Gbit/s for v5e ("Per-host NIC configuration") and 4 x 200 Gbit/s for v6e. For v4 and v5p they are
  200 Gbit/s (Austin et al. 2025, How to Scale Your Model, chapter 2).
- clock of TPUs: the peak divided by the FLOPs of the matrix units per cycle. v4 and v5p have 2
  cores of 4 units of 128 x 128, v5e has one such core. For v6e and tpu7x the divisor is 524,288
  FLOPs per cycle and device. It is the smallest power of two above the compiler's own rate for a
  matmul of two 8192 x 8192 matrices (369,231 and 422,142).
- memory of GPUs: the size that nvidia-smi prints, in MiB.
- memory bandwidth and NVLink of GPUs: the data sheets, with half of NVLink for each direction. L4
  and L40S have PCIe 4.0 x16 instead, 64 GB/s for both directions.
- network between GPU nodes: the cards of a node, divided by its GPUs. Each GPU has 200 Gbit/s (DGX
  A100) or 400 Gbit/s (DGX H100, H200, B200; GB200 NVL72). Eight L4 share 100 Gbit/s
  (g2-standard-96, docs.cloud.google.com/compute/docs/gpus). Eight L40S share 400 Gbit/s
  (g6e.48xlarge, aws.amazon.com/ec2/instance-types/g6e). Some clouds connect the larger GPUs by
  slower networks.
"""

from typing import Any, NamedTuple

GB, GIB, MIB = 1e9, 2**30, 2**20
# Share of the memory that a program cannot use. On a TPU the runtime occupies it. On a GPU it is an
# assumption about CUDA's context and NCCL's buffers.
RESERVED = {'tpu': 0.016, 'gpu': 0.03, 'cpu': 0.0}
# A device kind with one of these words is a different chip (a 3090 Ti, an MIG slice).
OTHER_PRODUCTS = {'Ti', 'D', 'Laptop', 'SUPER', 'MIG', 'lite'}


class Chip(NamedTuple):
  """One kind of chip. Without a `name` only its peak is known."""

  name: str  # of the topologies of `lm.preflight`, such as 'v5e'
  platform: str  # as JAX calls it
  kinds: tuple[str, ...]  # first words of `jax.Device.device_kind`
  flops: float  # dense bfloat16 matmuls with float32 accumulation, FLOP/s
  memory: float = 0.0  # bytes
  bandwidth: float = 0.0  # of the memory, bytes/s
  # One direction, bytes/s: of a TPU's port to one neighbor, of a GPU to all others of its node.
  link: float = 0.0
  network: float = 0.0  # share in the network between slices or nodes, one direction, bytes/s
  dimensions: int = 1  # of a TPU slice's torus, or 1 for a node of GPUs
  node: int = 8  # GPUs of a node at most
  ring: int = 1  # sides of a TPU slice that are a multiple of this are rings, others are lines
  accelerator: str = ''  # prefix of a TPU slice's accelerator type
  cores: int = 1  # of a chip, as the accelerator type counts them
  clock: float = 0.0  # cycles/s of the TPU compiler's cost model
  devices: int = 1  # JAX devices of a chip

  @property
  def float32_flops(self) -> float:
    """Returns the peak of float32 matmuls, which a GPU does as TensorFloat-32."""
    return self.flops / 2 if self.platform == 'gpu' else self.flops

  @property
  def usable_memory(self) -> float:
    """Returns the bytes of a device that a program may use."""
    return self.memory / self.devices * (1 - RESERVED[self.platform])


def _tpu(
  name: str,
  kinds: tuple[str, ...],
  tflops: float,
  gib: int,
  rates: tuple[float, float, float],
  **tpu: Any,
) -> Chip:
  bandwidth, link, network = (rate * GB for rate in rates)
  return Chip(name, 'tpu', kinds, tflops * 1e12, gib * GIB, bandwidth, link, network, **tpu)


def _gpu(
  name: str,
  kind: str,
  tflops: float,
  mib: int = 0,
  rates: tuple[float, float, float] = (0, 0, 0),
  node: int = 8,
) -> Chip:
  bandwidth, link, network = (rate * GB for rate in rates)
  kinds = (f'NVIDIA {kind}',)
  return Chip(name, 'gpu', kinds, tflops * 1e12, mib * MIB, bandwidth, link, network, node=node)


_V4: dict[str, Any] = {'dimensions': 3, 'ring': 4, 'accelerator': 'v4', 'cores': 2, 'clock': 1.05e9}
_V5E: dict[str, Any] = {'dimensions': 2, 'ring': 16, 'accelerator': 'v5litepod', 'clock': 1.5e9}
_V5P = _V4 | {'accelerator': 'v5p', 'clock': 1.75e9}
_V6E = _V5E | {'accelerator': 'v6e', 'clock': 1.75e9}
_TPU7X = _V4 | {'accelerator': 'tpu7x', 'clock': 2.2e9, 'devices': 2}

# Rates are those of memory, link and network, in GB/s.
CHIPS = (
  _tpu('v4', ('TPU v4',), 275, 32, (1228, 50, 6.25), **_V4),
  _tpu('v5e', ('TPU v5 lite', 'TPU v5e'), 197, 16, (819, 50, 3.125), **_V5E),
  _tpu('v5p', ('TPU v5', 'TPU v5p'), 459, 95, (2765, 100, 6.25), **_V5P),
  _tpu('v6e', ('TPU v6 lite', 'TPU v6e'), 918, 32, (1638, 100, 12.5), **_V6E),
  _tpu('tpu7x', ('TPU7x',), 2307, 192, (7380, 100, 12.5), **_TPU7X),
  _gpu('a100', 'A100', 312, 81_920, (2039, 300, 25)),
  _gpu('a100-40gb', 'A100', 312, 40_960, (1555, 300, 25)),
  _gpu('h100', 'H100', 989, 81_559, (3350, 450, 50)),
  _gpu('h200', 'H200', 989, 143_771, (4800, 450, 50)),
  _gpu('b200', 'B200', 2250, 183_359, (8000, 900, 50)),
  _gpu('gb200', 'GB200', 2500, 189_471, (8000, 900, 50), 72),
  _gpu('l4', 'L4', 121, 23_034, (300, 32, 1.5625)),
  _gpu('l40s', 'L40S', 362, 46_068, (864, 32, 6.25)),
  _gpu('', 'A10', 125),
  _gpu('', 'H100 PCIe', 756),
  _gpu('', 'H100 NVL', 835),
  _gpu('', 'H200 NVL', 835),
  _gpu('', 'GH200', 989),
  _gpu('', 'GeForce RTX 3090', 71),
  _gpu('', 'GeForce RTX 4090', 165.2),
  _gpu('', 'GeForce RTX 5090', 209.5),
)
BY_NAME = {chip.name: chip for chip in CHIPS if chip.name}
_PEAKS = {kind: chip.flops / chip.devices for chip in CHIPS for kind in chip.kinds}


def peak_flops(device_kind: str) -> float | None:
  """Returns the peak bfloat16 FLOP/s of one JAX device, or None where it is not known.

  A TPU7x chip has two devices, v4 and v5p chips have one.

  Args:
    device_kind: `jax.Device.device_kind`, such as 'TPU v5 lite' or 'NVIDIA H100 80GB HBM3'.
  """
  words = device_kind.replace('-', ' ').split()
  for length in range(len(words), 0, -1):
    if peak := _PEAKS.get(' '.join(words[:length])):
      return None if OTHER_PRODUCTS & {*words[length:]} else peak
  return None
