from typing import NamedTuple

import pytest

from lm.errors import UserError
from lm.preflight import chips, hlo, roofline
from lm.preflight.collectives import Collective


class Device(NamedTuple):
  coords: tuple[int, ...]
  slice_index: int = 0


V5E, V5P = chips.CHIPS['v5e'], chips.CHIPS['v5p']
PLANE = [Device((x, y, 0)) for x in range(16) for y in range(16)]


@pytest.mark.parametrize(
  ('group', 'gigabytes'),
  [
    (range(16), 2 * 50),  # a side of 16 is a ring: two links of 50 GB/s
    (range(256), 4 * 50),  # both sides
    (range(4), 50),  # through the end of a line all goes over one
    ([0, 0], 2 * 50),  # devices of one chip
  ],
)
def test_links_of_a_group(group, gigabytes):
  assert roofline.bandwidth(list(group), PLANE, V5E) == gigabytes * 1e9


def test_between_slices_there_is_the_network():
  devices = [Device((0, 0, 0), 0), Device((0, 0, 0), 1)]
  assert roofline.bandwidth([0, 1], devices, V5P) == V5P.network


def test_cycles_count_with_their_loops_and_not_within_a_fusion():
  text = """
%inner (p: f32[8]) -> f32[8] {
  ROOT %x = f32[8]{0} add(%p), backend_config={"estimated_cycles":"99"}
}

%body (t: f32[8]) -> f32[8] {
  ROOT %f = f32[8]{0} fusion(%t), calls=%inner, backend_config={"estimated_cycles":"10"}
}

%beside (t: f32[8]) -> f32[8] {
  %g = f32[8]{0} all-gather(%t), replica_groups={}
  ROOT %f = f32[8]{0} fusion(%t), calls=%inner, backend_config={"estimated_cycles":"7"}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %u = f32[8]{0} fusion(%a), kind=kCustom, calls=%beside
  %w = f32[8]{0} while(%a), body=%body, backend_config={"known_trip_count":{"n":"4"}}
  ROOT %c = f32[8]{0} copy(%w), backend_config={"estimated_cycles":"5"}
}
"""
  program = hlo.parse(text)
  assert roofline.cycles(program) == 4 * 10 + 5 + 7
  # 1 ms beside, 2 ms alone over a ring of 100 GB/s.
  group = tuple(range(16))
  exchanges = [
    Collective('all-gather', ('fsdp',), group, 1e8, 1.0, True, ''),
    Collective('all-reduce', ('fsdp',), group, 5e7, 4.0, False, ''),
  ]
  slice_ = chips.parse('v5e:16x16')
  flops = 0.003 * 256 * V5E.flops / 2
  found = roofline.estimate(program, exchanges, PLANE, slice_, flops, 3000)
  assert found.kernels == 52 / 1.5e9
  assert (found.beside, found.alone) == pytest.approx((1e-3, 2e-3))
  assert found.step == pytest.approx(3e-3)
  assert (found.utilisation, found.tokens) == pytest.approx((0.5, 1e6))
  # 256 chips at a dollar an hour need 1,000 s for a billion tokens.
  assert roofline.cost(1.0, slice_, found.tokens) == pytest.approx(256 * 1000 / 3600)


def test_kernels_of_attention_are_counted_by_hand():
  text = """
ENTRY %main (q: bf16[2,4,256,64]) -> bf16[2,4,256,64] {
  %splash_mha_fwd_residuals.1 = bf16[2,4,256,64]{3,2,1,0} custom-call(%q), \
custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,2,2]{2,1,0}, \
bf16[2,4,256,64]{3,2,1,0}, bf16[2,2,256,64]{3,2,1,0}, s32[256,128]{1,0}}
  %splash_mha_dq_no_residuals.2 = bf16[2,4,256,64]{3,2,1,0} custom-call(%q), \
custom_call_target="tpu_custom_call", operand_layout_constraints={bf16[2,4,256,64]{3,2,1,0}}
  %other = bf16[2,4,256,64]{3,2,1,0} custom-call(%q), custom_call_target="tpu_custom_call"
}
"""
  product = 2 * 2 * 4 * 256 * 256 * 64
  assert roofline.attention(hlo.parse(text)) == 2 * product / 2 + 3 * product
  # A single row of a chip has no axis of rows.
  single = text.replace('[2,4,256,64]', '[4,256,64]').replace('[2,2,256,64]', '[2,256,64]')
  assert roofline.attention(hlo.parse(single)) == product / 2 + 3 * product / 2


def test_slices_by_their_names():
  slice_ = chips.parse('v5p:4x4x4', 2)
  assert (slice_.chips, slice_.accelerator, slice_.topology) == (128, 'v5p-128', 'v5p:4x4x4')
  assert chips.parse('v5e:4x4').accelerator == 'v5litepod-16'
  assert str(slice_) == '2 x v5p:4x4x4'


def test_peaks_are_those_of_the_matrix_units():
  units = {'v4': 8 * 128**2, 'v5e': 4 * 128**2, 'v5p': 8 * 128**2, 'v6e': 2**18, 'tpu7x': 2**19}
  for name, count in units.items():
    chip = chips.CHIPS[name]
    assert chip.flops == pytest.approx(2 * count * chip.clock, rel=0.01)


@pytest.mark.parametrize(
  ('topology', 'slices', 'message'),
  [
    ('v5:4x4', 1, "there is no chip 'v5' .did you mean"),
    ('v5e', 1, 'slices of v5e have 2 sizes, as in v5e:4x4'),
    ('v5e:4x4x4', 1, 'slices of v5e have 2 sizes'),
    ('v5p:4x4', 1, 'slices of v5p have 3 sizes, as in v5p:4x4x4'),
    ('v5e:4xx', 1, 'have 2 sizes'),
    ('v5e:0x4', 1, 'have 2 sizes'),
    ('v5e:4x4', 0, '--slices=0 is not a positive number'),
  ],
)
def test_wrong_slices_are_told(topology, slices, message):
  with pytest.raises(UserError, match=message):
    chips.parse(topology, slices)
