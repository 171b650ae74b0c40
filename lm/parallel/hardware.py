"""Peak matrix rates of accelerators, and the share of it that a run reaches."""

# Dense bfloat16 FLOP/s with float32 accumulation, for one JAX device, by the start of its
# `device_kind`. A TPU7x chip shows as two devices, v4 and v5p chips as one.
_PEAK_BF16 = {
  # cloud.google.com/tpu/docs: v4, v5e, v5p, v6e, tpu7x, "peak compute per chip (bf16)"
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5e': 197e12,
  'TPU v5': 459e12,
  'TPU v5p': 459e12,
  'TPU v6 lite': 918e12,
  'TPU v6e': 918e12,
  'TPU7x': 2307e12 / 2,
  # Data sheets of A10, A100, L4, L40S, H100, H200 (nvidia.com/en-us/data-center), without sparsity
  'NVIDIA A10': 125e12,
  'NVIDIA A100': 312e12,
  'NVIDIA L4': 121e12,
  'NVIDIA L40S': 362e12,
  'NVIDIA H100': 989e12,
  'NVIDIA H100 PCIe': 756e12,
  'NVIDIA H100 NVL': 835e12,
  'NVIDIA H200': 989e12,
  'NVIDIA H200 NVL': 835e12,
  'NVIDIA GH200': 989e12,
  # Blackwell architecture technical brief (2024): HGX B200 and GB200, half the rate with sparsity
  'NVIDIA B200': 2250e12,
  'NVIDIA GB200': 2500e12,
  # Architecture white papers GA102, AD102, GB202: "peak BF16 tensor TFLOPS with FP32 accumulate"
  'NVIDIA GeForce RTX 3090': 71e12,
  'NVIDIA GeForce RTX 4090': 165.2e12,
  'NVIDIA GeForce RTX 5090': 209.5e12,
}


def peak_flops(device_kind: str) -> float | None:
  """Returns the peak dense bfloat16 FLOP/s of one device, or None where it is not known.

  Args:
    device_kind: `jax.Device.device_kind`, such as 'TPU v5 lite' or 'NVIDIA H100 80GB HBM3'.
  """
  words = device_kind.replace('-', ' ').split()
  for length in range(len(words), 0, -1):
    peak = _PEAK_BF16.get(' '.join(words[:length]))
    if peak is not None:
      return None if _another_product(words[length:]) else peak
  return None


def mfu(flops_per_second: float, device_kind: str) -> float | None:
  """Returns the model-FLOP utilisation in [0, 1], or None where the peak is not known.

  Args:
    flops_per_second: what the model needs, forward and backward, without recomputation, per
      second and per device (PaLM, Chowdhery et al. 2022, appendix B).
    device_kind: `jax.Device.device_kind`.
  """
  peak = peak_flops(device_kind)
  return None if peak is None else flops_per_second / peak


def _another_product(rest: list[str]) -> bool:
  """Says whether the words after a known name make it another chip (a 3090 Ti, an MIG slice)."""
  return any(word in ('Ti', 'D', 'Laptop', 'SUPER', 'MIG', 'lite') for word in rest)
