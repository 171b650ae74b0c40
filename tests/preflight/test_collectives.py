from typing import NamedTuple

import numpy as np
import pytest

from lm.preflight import collectives, hlo
from lm.preflight.collectives import axes_of, groups_of, sent


class FakeMesh(NamedTuple):
  devices: np.ndarray
  axis_names: tuple[str, ...] = ('data', 'fsdp', 'tensor')

  @property
  def size(self):
    return self.devices.size


MESH = FakeMesh(np.arange(16).reshape(2, 4, 2))


@pytest.mark.parametrize(
  ('text', 'groups'),
  [
    ('replica_groups={{0,1},{2,3}}, dimensions={0}', [[0, 1], [2, 3]]),
    ('source_target_pairs={{0,1},{1,0}}', [[0, 1], [1, 0]]),
    ('replica_groups=[2,2]<=[4]', [[0, 1], [2, 3]]),
    ('replica_groups=[2,2]<=[2,2]T(1,0)', [[0, 2], [1, 3]]),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}", [[0, 2], [1, 3]]),
    ('dimensions={0}', None),
  ],
)
def test_groups_in_all_their_spellings(text, groups):
  assert groups_of(text) == groups


@pytest.mark.parametrize(
  ('group', 'axes'),
  [
    ([0, 1], ('tensor',)),
    ([0, 2, 4, 6], ('fsdp',)),
    ([0, 8], ('data',)),
    ([0, 2, 4, 6, 8, 10, 12, 14], ('data', 'fsdp')),
    (range(16), ('data', 'fsdp', 'tensor')),
  ],
)
def test_a_group_differs_along_axes(group, axes):
  assert axes_of(group, MESH) == axes


@pytest.mark.parametrize(
  ('kind', 'result', 'bytes_'),
  # Of 4 devices in a ring: each passes on three quarters of a whole of 800 bytes.
  [
    ('all-gather', 800, 600),
    ('reduce-scatter', 200, 600),
    ('all-reduce', 800, 1200),
    ('all-to-all', 800, 600),
    ('collective-permute', 800, 800),
  ],
)
def test_bytes_of_a_ring(kind, result, bytes_):
  assert sent(kind, result, 4) == bytes_


def test_what_goes_on_beside_products_counts_once_and_a_fused_sum_is_of_parts():
  text = """
%all-reduce-scatter.1 (p: f32[8,100]) -> f32[2,100] {
  %p = f32[8,100]{1,0} parameter(0)
  %sum = f32[8,100]{1,0} all-reduce(%p), channel_id=3, replica_groups={{0,2,4,6}}, to_apply=%add
  ROOT %slice = f32[2,100]{1,0} slice(%sum)
}

%step.1 (p: bf16[2,100]) -> bf16[8,100] {
  %g = bf16[8,100]{1,0} all-gather(%p), channel_id=7, replica_groups={{0,2,4,6}}, \
frontend_attributes={chain_id="0"}
}

%step.2 (p: bf16[2,100]) -> bf16[8,100] {
  %h = bf16[8,100]{1,0} all-gather(%p), channel_id=7, replica_groups={{0,2,4,6}}, \
frontend_attributes={chain_id="0"}
}

ENTRY %main (a: bf16[2,100]) -> f32[2,100] {
  %a = bf16[2,100]{1,0} parameter(0)
  %one = bf16[8,100]{1,0} fusion(%a), kind=kCustom, calls=%step.1
  %two = bf16[8,100]{1,0} fusion(%one), kind=kCustom, calls=%step.2
  %alone = bf16[8,100]{1,0} all-gather(%a), channel_id=8, replica_groups={{0}}
  ROOT %out = f32[2,100]{1,0} fusion(%two), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
  gather, scatter = collectives.collectives(hlo.parse(text), MESH)
  assert (gather.kind, gather.axes, gather.times) == ('all-gather', ('fsdp',), 1)
  assert gather.beside and not scatter.beside
  assert (gather.bytes, scatter.bytes) == (2 * 800 * 3 / 4, 4 * 800 * 3 / 4)
  assert scatter.kind == 'reduce-scatter'
  assert collectives.by_kind([gather, scatter]) == {
    ('reduce-scatter', ('fsdp',)): 2400,
    ('all-gather', ('fsdp',)): 1200,
  }


def test_exchanges_of_the_same_number_count_each():
  text = """
ENTRY %main (a: bf16[2,100]) -> bf16[8,100] {
  %a = bf16[2,100]{1,0} parameter(0)
  %one = bf16[8,100]{1,0} all-gather(%a), channel_id=1, replica_groups={{0,2,4,6}}
  %two = bf16[4,100]{1,0} all-gather(%a), channel_id=1, replica_groups={{0,8}}
  ROOT %three = bf16[8,100]{1,0} all-gather(%a), channel_id=1, replica_groups={{0,2,4,6}}, \
frontend_attributes={async_collective_name="all-gather-start.1"}
}
"""
  found = collectives.collectives(hlo.parse(text), MESH)
  assert [one.axes for one in found] == [('fsdp',), ('data',), ('fsdp',)]
  assert [one.beside for one in found] == [False, False, True]


class Chip(NamedTuple):
  coords: tuple[int, int, int]
  slice_index: int


def test_what_slices_send_each_other_stands_as_transfers_of_hosts():
  # Two slices of four chips along `data`: each chip hands over its quarter of a sum.
  chips = np.empty((2, 4, 1), object)
  for s, x in np.ndindex(2, 4):
    chips[s, x, 0] = Chip((x, 0, 0), s)
  text = """
ENTRY %main (a: bf16[2,100]) -> bf16[2,100] {
  %a = bf16[2,100]{1,0} parameter(0)
  %after = token[] after-all()
  %send = (bf16[2,100]{1,0}, u32[], token[]) send(%a, %after), channel_id=2, \
is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.4_0",\
_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (bf16[2,100]{1,0}, u32[], token[]) recv(%after), channel_id=1, is_host_transfer=true, \
frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %gather = bf16[8,100]{1,0} all-gather(%a), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}
  ROOT %out = bf16[2,100]{1,0} recv-done(%recv)
}
"""
  one, within = collectives.collectives(hlo.parse(text), FakeMesh(chips))
  # Exchanges within slices are numbered apart.
  assert (within.kind, within.axes, within.bytes) == ('all-gather', ('fsdp',), 1600 * 3 / 4)
  assert (one.kind, one.axes, one.group, one.beside) == ('all-reduce', ('data',), (0, 4), True)
  assert one.bytes == 2 * 400 / 2
