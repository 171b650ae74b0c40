import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.parallel.chips import BY_NAME
from lm.preflight import hlo
from lm.preflight.topology import parse

TEXT = """HloModule jit_step, is_scheduled=true

%add.clone (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%x, %y)
}

%fused (p: bf16[8,128]) -> bf16[8,128] {
  %p = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %copy = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} copy(%p)
}

%body.2 (t: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %t = (s32[], bf16[8,128]{1,0}) parameter(0)
  %fusion.3 = bf16[8,128]{1,0} fusion(%t), kind=kLoop, calls=%fused
  ROOT %tuple.4 = (s32[], /*index=1*/bf16[8,128]{1,0}) tuple(%t, %fusion.3)
}

%condition.5 (t: (s32[], bf16[8,128])) -> pred[] {
  %t.1 = (s32[], bf16[8,128]{1,0}) parameter(0)
  %n = s32[] constant(12)
  ROOT %less = pred[] compare(%t.1, %n), direction=LT
}

ENTRY %main.6 (a: bf16[8,128]) -> bf16[8,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  %while.7 = (s32[], bf16[8,128]{1,0}) while(%a), condition=%condition.5, body=%body.2
  %sum = f32[4]{0} all-reduce(%a), replica_groups={}, to_apply=%add.clone
  ROOT %out = bf16[8,128]{1,0} get-tuple-element(%while.7), index=1
}
"""


def test_parse_reads_all_computations():
  program = hlo.parse(TEXT)
  assert set(program) == {'add.clone', 'fused', 'body.2', 'condition.5', 'ENTRY'}
  loop = program['ENTRY'][1]
  assert (loop.name, loop.opcode) == ('while.7', 'while')
  assert [array.bytes for array in loop.arrays] == [4, 2 * 8 * 128]
  assert program['body.2'][2].arrays[1].shape == (8, 128)


def test_parse_joins_continuation_lines():
  call = '%fusion.3 = bf16[8,128]{1,0} fusion(%t), kind=kLoop, calls=%fused'
  long = (
    call + ', frontend_attributes={kernel_metadata={\n"name":"{\\"size\\": 5}"\n}}, metadata={}'
  )
  program = hlo.parse(TEXT.replace(call, long))
  assert [i.name for i in program['body.2']] == ['t', 'fusion.3', 'tuple.4']
  assert program['body.2'][1].attributes.endswith('}}, metadata={}')
  assert hlo.called(program, program['body.2'][1]) == ['fused']


def test_walk_multiplies_trip_counts():
  times = {i.name: times for times, _, i in hlo.walk(hlo.parse(TEXT))}
  assert times['copy'] == times['fusion.3'] == 12
  assert times['out'] == 1
  assert 'add.1' not in times  # of scalars
  where = {i.name: computation for _, computation, i in hlo.walk(hlo.parse(TEXT))}
  assert where['copy'] == 'fused' and where['fusion.3'] == 'body.2' and where['out'] == 'ENTRY'


@pytest.mark.parametrize(
  ('dtype', 'size'), [('f32', 4), ('bf16', 2), ('pred', 1), ('s64', 8), ('u4', 0.5), ('token', 0)]
)
def test_element_sizes(dtype, size):
  assert hlo.size_of(dtype) == size


def test_trip_count_is_found_in_a_computation_that_the_condition_calls():
  text = TEXT.replace('  %n = s32[] constant(12)\n', '').replace(
    'ROOT %less = pred[] compare(%t.1, %n), direction=LT',
    'ROOT %less = pred[] fusion(%t.1), kind=kLoop, calls=%compared',
  )
  text = text.replace(
    'ENTRY %main.6',
    '%compared (t: s32[]) -> pred[] {\n  %n = s32[]{:T(128)} constant(7)\n}\n\nENTRY %main.6',
  )
  times = {i.name: times for times, _, i in hlo.walk(hlo.parse(text))}
  assert times['fusion.3'] == 7


def test_nested_loops_of_a_real_program_multiply():
  @jax.jit
  def program(x):
    def outer(x, _):
      return jax.lax.scan(lambda x, _: (jnp.sin(x @ x), None), x, length=5)[0], None

    return jax.lax.scan(outer, x, length=3)[0]

  text = program.lower(jax.ShapeDtypeStruct((64, 64), jnp.float32)).compile().as_text()
  dots = [times for times, _, i in hlo.walk(hlo.parse(text)) if i.opcode == 'dot']
  assert functools.reduce(lambda a, b: a + b, dots) == 15


class Device(NamedTuple):
  coords: tuple[int, ...]
  slice_index: int = 0


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
def test_replica_groups_are_parsed_in_all_syntaxes(text, groups):
  assert hlo.groups_of(text) == groups


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
def test_axes_of_a_group_are_those_along_which_its_devices_differ(group, axes):
  assert hlo.axes_of(group, MESH) == axes


@pytest.mark.parametrize(
  ('kind', 'result', 'bytes_'),
  # Each of 4 devices in a ring sends three quarters of an array of 800 bytes.
  [
    ('all-gather', 800, 600),
    ('reduce-scatter', 200, 600),
    ('all-reduce', 800, 1200),
    ('all-to-all', 800, 600),
    ('collective-permute', 800, 800),
  ],
)
def test_bytes_sent_in_a_ring(kind, result, bytes_):
  assert hlo.bytes_sent(kind, result, 4) == bytes_


def test_overlapped_collective_counts_once_and_fused_all_reduce_is_a_reduce_scatter():
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
  %exposed = bf16[8,100]{1,0} all-gather(%a), channel_id=8, replica_groups={{0}}
  ROOT %out = f32[2,100]{1,0} fusion(%two), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
  gather, scatter = hlo.collectives(hlo.parse(text), MESH)
  assert (gather.kind, gather.axes, gather.times) == ('all-gather', ('fsdp',), 1)
  assert gather.overlapped and not scatter.overlapped
  assert (gather.bytes, scatter.bytes) == (2 * 800 * 3 / 4, 4 * 800 * 3 / 4)
  assert scatter.kind == 'reduce-scatter'
  assert hlo.by_kind([gather, scatter]) == {
    ('reduce-scatter', ('fsdp',)): 2400,
    ('all-gather', ('fsdp',)): 1200,
  }


def test_collectives_of_one_channel_count_separately():
  text = """
ENTRY %main (a: bf16[2,100]) -> bf16[8,100] {
  %a = bf16[2,100]{1,0} parameter(0)
  %one = bf16[8,100]{1,0} all-gather(%a), channel_id=1, replica_groups={{0,2,4,6}}
  %two = bf16[4,100]{1,0} all-gather(%a), channel_id=1, replica_groups={{0,8}}
  ROOT %three = bf16[8,100]{1,0} all-gather(%a), channel_id=1, replica_groups={{0,2,4,6}}, \
frontend_attributes={async_collective_name="all-gather-start.1"}
}
"""
  found = hlo.collectives(hlo.parse(text), MESH)
  assert [one.axes for one in found] == [('fsdp',), ('data',), ('fsdp',)]
  assert [one.overlapped for one in found] == [False, False, True]


def test_collectives_between_slices_are_host_transfers():
  # Two slices of four chips along `data`: each chip sends its shard of the sum.
  chips = np.empty((2, 4, 1), object)
  for s, x in np.ndindex(2, 4):
    chips[s, x, 0] = Device((x, 0, 0), s)
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
  one, within = hlo.collectives(hlo.parse(text), FakeMesh(chips))
  # Collectives within a slice have channels of their own.
  assert (within.kind, within.axes, within.bytes) == ('all-gather', ('fsdp',), 1600 * 3 / 4)
  assert (one.kind, one.axes, one.group, one.overlapped) == ('all-reduce', ('data',), (0, 4), True)
  assert one.bytes == 2 * 400 / 2


V5E, V5P = BY_NAME['v5e'], BY_NAME['v5p']
PLANE = [Device((x, y, 0)) for x in range(16) for y in range(16)]


@pytest.mark.parametrize(
  ('group', 'gigabytes'),
  [
    (range(16), 2 * 50),  # a side of 16 is a ring: two links of 50 GB/s
    (range(256), 4 * 50),  # both sides
    (range(4), 50),  # too short for a ring: half of the bandwidth
    ([0, 0], 2 * 50),  # devices of one chip
  ],
)
def test_bandwidth_follows_the_torus(group, gigabytes):
  assert hlo.bandwidth(list(group), PLANE, V5E) == gigabytes * 1e9


def test_bandwidth_between_slices_is_the_network():
  devices = [Device((0, 0, 0), 0), Device((0, 0, 0), 1)]
  assert hlo.bandwidth([0, 1], devices, V5P) == V5P.network


def test_estimate_adds_cycles_and_collectives():
  text = """
%inner (p: f32[8]) -> f32[8] {
  ROOT %x = f32[8]{0} add(%p), backend_config={"estimated_cycles":"99"}
}

%body (t: f32[8]) -> f32[8] {
  ROOT %f = f32[8]{0} fusion(%t), calls=%inner, backend_config={"estimated_cycles":"10"}
}

%overlapped (t: f32[8]) -> f32[8] {
  %g = f32[8]{0} all-gather(%t), replica_groups={}
  ROOT %f = f32[8]{0} fusion(%t), calls=%inner, backend_config={"estimated_cycles":"7"}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %u = f32[8]{0} fusion(%a), kind=kCustom, calls=%overlapped
  %w = f32[8]{0} while(%a), body=%body, backend_config={"known_trip_count":{"n":"4"}}
  ROOT %c = f32[8]{0} copy(%w), backend_config={"estimated_cycles":"5"}
}
"""
  program = hlo.parse(text)
  assert hlo.cycles(program) == 4 * 10 + 5 + 7
  # 1 ms overlapped and 2 ms exposed, over a ring of 100 GB/s.
  group = tuple(range(16))
  collectives = [
    hlo.Collective('all-gather', ('fsdp',), group, 1e8, 1.0, True),
    hlo.Collective('all-reduce', ('fsdp',), group, 5e7, 4.0, False),
  ]
  slice_ = parse('v5e:16x16')
  flops = 0.003 * 256 * V5E.flops / 2
  found = hlo.estimate(program, collectives, PLANE, slice_, flops, 3000)
  assert list(found.parts.values()) == pytest.approx([52 / 1.5e9, 1e-3, 2e-3, 0.0])
  assert found.step == pytest.approx(3e-3)
  assert (found.mfu, found.tokens) == pytest.approx((0.5, 1e6))


def test_attention_flops_equal_figures_by_hand():
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
  matmul = 2 * 2 * 4 * 256 * 256 * 64
  assert hlo.attention_flops(hlo.parse(text)) == 2 * matmul / 2 + 3 * matmul
  # A single row of a device has no batch axis.
  single = text.replace('[2,4,256,64]', '[4,256,64]').replace('[2,2,256,64]', '[2,256,64]')
  assert hlo.attention_flops(hlo.parse(single)) == matmul / 2 + 3 * matmul / 2
