import pytest

from lm.parallel import chips


@pytest.mark.parametrize(
  ('kind', 'peak'),
  [
    ('TPU v5 lite', 197e12),
    ('TPU v5', 459e12),
    ('TPU v5p', 459e12),
    ('TPU7x', 1153.5e12),
    ('NVIDIA A100-SXM4-40GB', 312e12),
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('NVIDIA H100 PCIe', 756e12),
    ('NVIDIA A100-SXM4-40GB MIG 1g.5gb', None),
    ('NVIDIA GeForce RTX 4090 Laptop GPU', None),
    ('NVIDIA A10G', None),
    ('TPU v4 lite', None),
    ('cpu', None),
    ('', None),
  ],
)
def test_peak_belongs_to_the_exact_product(kind, peak):
  assert chips.peak_flops(kind) == peak


def test_tpu_peaks_are_those_of_the_matrix_units():
  units = {'v4': 8 * 128**2, 'v5e': 4 * 128**2, 'v5p': 8 * 128**2, 'v6e': 2**18, 'tpu7x': 2**19}
  for name, count in units.items():
    chip = chips.BY_NAME[name]
    assert chip.flops == pytest.approx(2 * count * chip.clock, rel=0.01)


def test_rates_of_named_chips_are_plausible():
  for chip in chips.BY_NAME.values():
    assert chip.bandwidth > chip.link > chip.network > 0
    assert chip.usable_memory < chip.memory
    assert chip.flops / chip.devices == chips.peak_flops(chip.kinds[-1])
  # The driver leaves a little less than the GiB that are sold.
  assert 0.9 < chips.BY_NAME['h100'].memory / (80 * 2**30) < 1
