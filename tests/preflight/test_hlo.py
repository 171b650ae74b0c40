import functools

import jax
import jax.numpy as jnp
import pytest

from lm.preflight import hlo

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


def test_a_program_is_read_line_by_line():
  program = hlo.parse(TEXT)
  assert set(program) == {'add.clone', 'fused', 'body.2', 'condition.5', 'ENTRY'}
  loop = program['ENTRY'][1]
  assert (loop.name, loop.opcode, loop.operands) == ('while.7', 'while', ('a',))
  assert [array.bytes for array in loop.arrays] == [4, 2 * 8 * 128]
  assert program['body.2'][2].arrays[1].shape == (8, 128)
  assert 'S(1)' in program['fused'][1].arrays[0].layout


def test_attributes_go_on_over_lines():
  call = '%fusion.3 = bf16[8,128]{1,0} fusion(%t), kind=kLoop, calls=%fused'
  long = (
    call + ', frontend_attributes={kernel_metadata={\n"name":"{\\"size\\": 5}"\n}}, metadata={}'
  )
  program = hlo.parse(TEXT.replace(call, long))
  assert [i.name for i in program['body.2']] == ['t', 'fusion.3', 'tuple.4']
  assert program['body.2'][1].attributes.endswith('}}, metadata={}')
  assert hlo.called(program['body.2'][1]) == ['fused']


def test_what_stands_in_a_loop_counts_as_often_as_it_turns():
  times = {i.name: times for times, _, i in hlo.walk(hlo.parse(TEXT))}
  assert times['copy'] == times['fusion.3'] == 12
  assert times['out'] == 1
  assert 'add.1' not in times  # of single numbers
  where = {i.name: computation for _, computation, i in hlo.walk(hlo.parse(TEXT))}
  assert where['copy'] == 'fused' and where['fusion.3'] == 'body.2' and where['out'] == 'ENTRY'


@pytest.mark.parametrize(
  ('dtype', 'size'), [('f32', 4), ('bf16', 2), ('pred', 1), ('s64', 8), ('u4', 0.5), ('token', 0)]
)
def test_sizes_of_numbers(dtype, size):
  assert hlo.size_of(dtype) == size


def test_what_a_loop_is_compared_with_may_stand_in_what_its_condition_calls():
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


def test_loops_in_loops_of_a_real_program_multiply():
  @jax.jit
  def program(x):
    def outer(x, _):
      return jax.lax.scan(lambda x, _: (jnp.sin(x @ x), None), x, length=5)[0], None

    return jax.lax.scan(outer, x, length=3)[0]

  text = program.lower(jax.ShapeDtypeStruct((64, 64), jnp.float32)).compile().as_text()
  dots = [times for times, _, i in hlo.walk(hlo.parse(text)) if i.opcode == 'dot']
  assert functools.reduce(lambda a, b: a + b, dots) == 15
