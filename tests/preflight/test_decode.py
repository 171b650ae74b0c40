"""What it takes to write a token; the TPU's compiler itself is asked where libtpu is installed."""

import functools
import json

import jax
import pytest
from test_program import config_of, preflight

from lm import components
from lm.config.base import encoder_decoder, llama
from lm.config.recurrent import recurrent, recurrent_encoder_decoder
from lm.config.tasks import translation
from lm.errors import UserError
from lm.preflight import check, decode, hlo, program, report, roofline
from lm.preflight.chips import parse
from lm.preflight.collectives import Collective
from lm.training.train_step import abstract_state
from lm.types import apply_of

L, D, H, G, K, F, V, S, B = 2, 64, 4, 2, 16, 256, 512, 16, 8


def text(beam=1):
  config = config_of(llama(depth=L, d_model=D, heads=H, kv_heads=G, d_mlp=F, context=S))
  config.decode.beam_size = beam
  return config


def pairs(model, beam=1):
  config = translation(config_of(model), 'en', 'validation')
  config.decode.beam_size = beam
  return config


CONFIGS = {
  'text': text,
  'text by beams': lambda: text(3),
  'pairs': lambda: pairs(encoder_decoder(depth=L, d_model=D, heads=H, context=S)),
  'pairs by beams': lambda: pairs(encoder_decoder(depth=L, d_model=D, heads=H, context=S), 3),
  'recurrent': lambda: config_of(recurrent(d_model=D, d_hidden=D, depth=2, context=S)),
  'recurrent pairs by beams': lambda: pairs(
    recurrent_encoder_decoder(d_model=D, d_hidden=D, depth=1, context=S), 3
  ),
}


@functools.cache
def begun(name):
  """Returns the function and abstract parameters of a config, and what its decoding begins with."""
  config = CONFIGS[name]()
  functions = components.build_components(config, V, jax.devices()[:1])
  params = abstract_state(functions)[0].params
  apply = apply_of(functions.model)
  source = S if program.reads_source(config) else 0
  return apply, params, decode.begun(config, functions.model, apply, params, B, S, source)


@pytest.mark.parametrize('name', CONFIGS)
def test_a_loop_leaves_what_the_next_one_begins_with(name):
  _, params, (loop, *state) = begun(name)
  found = jax.eval_shape(loop, params, *state)
  described = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
  assert described(found) == described(tuple(state))


def test_room_is_for_the_tokens_of_all_hypotheses():
  for name, beam in (('text', 1), ('pairs by beams', 3)):
    _, _, (_, rest, cache) = begun(name)
    layers = cache['layers']
    heads = G if name == 'text' else H
    shape = (B, heads, 1 + beam * S, K)  # 1 for the end token that texts begin with
    assert [layer['layer_0']['attention'].k.shape for layer in layers] == [shape] * L
    if beam > 1:
      memory = layers[0]['layer_0']['cross_attention']
      assert memory.k.shape == memory.v.shape == (B, heads, S, K)
      assert rest.tokens.shape == (B, beam, S)


def test_a_step_of_a_decoder_by_hand():
  apply, params, (_, _, cache) = begun('text')
  flops, used = decode.of_a_step(apply, params, B, cache, 4)
  layer = D * (H + 2 * G) * K + H * K * D + 3 * D * F
  products = 2 * B * (L * layer + D * V) + 4 * B * L * H * K * S
  assert products < flops < 1.1 * products
  # Two scales a layer and one at the end; of the table of the inputs only rows are looked up.
  assert used == 4 * (L * (layer + 2 * D) + D + D * V)
  assert decode.of_a_step(apply, params, B, cache, 2)[1] == used / 2


def test_a_step_reads_no_encoder_and_projects_no_memory():
  apply, params, (_, _, cache) = begun('pairs')
  _, used = decode.of_a_step(apply, params, B, cache, 4)
  read = program.held(params['decoder']) + program.held(params['embedding'])
  unused = params['decoder']['layers']['layer_0']['cross_attention']['kv']
  assert used == read - program.held(unused)


def test_hypotheses_are_rows_of_a_step():
  apply, params, (_, _, cache) = begun('text by beams')
  flops, _ = decode.of_a_step(apply, params, 3 * B, cache, 4)
  layer = D * (H + 2 * G) * K + H * K * D + 3 * D * F
  products = 2 * 3 * B * (L * layer + D * V) + 4 * 3 * B * L * H * K * 3 * S
  assert products < flops < 1.1 * products


def test_models_that_write_pass_and_a_beam_that_is_too_wide_does_not():
  for make in CONFIGS.values():
    config = make()
    config.model.vocab_size = V
    decode.check_writes(config)
  config.decode.beam_size = V + 1
  with pytest.raises(UserError, match='--beam_size=513 is not between 1 and 512'):
    decode.check_writes(config)


def test_what_does_not_go_together_is_told_before_anything_is_compiled():
  done = preflight('--config=experiments/function_length.py', '--topology=v5e:2x2', '--decode')
  assert (done.returncode, done.stdout) == (2, '')
  (line,) = [x for x in done.stderr.splitlines() if x.startswith('lm.preflight:')]
  assert "--decode: model.fn='lm.models.transformer:Encoder' does not write token by token" in line


def test_an_estimate_is_of_one_of_several_steps_and_no_less_than_the_memory_needs():
  program_ = hlo.parse(
    'ENTRY %main (a: f32[8]) -> f32[8] {\n'
    '  ROOT %f = f32[8]{0} fusion(%a), backend_config={"estimated_cycles":"12000000"}\n}'
  )
  slice_ = parse('v5e:1x1')
  alone = Collective('all-reduce', ('fsdp',), (0, 0), slice_.chip.link * 2e-3, 1.0, False, '')
  devices = [type('Device', (), {'coords': (0, 0, 0)})()]
  run = functools.partial(roofline.estimate, program_, [alone], devices, slice_, 1e9, 64, 4)
  # 12 million cycles are 8 ms at 1.5 GHz, of four steps; two links carry the rest in 1 ms.
  assert run().kernels == pytest.approx(2e-3)
  assert run().step == pytest.approx(3e-3) and run().tokens == pytest.approx(64 / 3e-3)
  assert run(least=5e-3).step == pytest.approx(6e-3)


def found_of(decoding):
  estimate = roofline.Estimate(1e-3, 0.0, 1e-3, 3e-3, 0.1, 20_000.0)
  memory = program.Memory(1, 2, 3, 4, 5)
  functions = components.build_components(text(), V, jax.devices()[:1])
  step = program.Step(functions, None, 10, 100, 1.0, memory)
  made = check.Compiled(program.Program('', 1.0), [])
  return check.Checked(step, None, estimate, [], 2.0**30, made, decoding)


def test_what_is_found_is_told_to_people_and_programs():
  slice_ = parse('v5e:2x2')
  estimate = roofline.Estimate(1e-3, 0.0, 1e-3, 3e-3, 0.1, 20_000.0)
  memory = decode.Memory(2**28, 2**29, 2**20, 2**10)
  sent = [Collective('all-gather', ('fsdp',), (0, 1), 3e6, 2.0, False, '')]
  found = found_of(decode.Decoding(64, 3, 48, 16, memory, 5e9, sent, 2e-3, estimate, 7.0))
  assert found.decoding_fits and found.decoding_needs == memory.total
  table = report.table(found, slice_, 'some.py', 2.0)
  part = table[table.index('decoding: ') :]
  assert part.startswith(
    'decoding: 64 rows of 3 hypotheses, room for 48 tokens each, sources of 16'
  )
  for words in ('5.0 GFLOP', 'cache', 'all-gather over fsdp', '6.0', '2.00 ms', '20,000', 'USD'):
    assert words in part
  told = json.loads(report.to_json(found, slice_, 'some.py', 2.0))['decode']
  assert told['memory']['cache'] == 2**29 and told['memory_bound'] == 2e-3 and told['fits']
  assert told['sent'] == [{'kind': 'all-gather', 'axes': ['fsdp'], 'bytes': 6e6}]
  # 4 chips at 2 dollars an hour need 50,000 s for a billion tokens.
  assert told['usd_per_billion_tokens'] == pytest.approx(2 * 4 * 50_000 / 3600)


def test_where_there_is_no_room_it_is_told_too():
  found = found_of(program.NoRoom(3 * 2**30, 2**30))
  assert not found.decoding_fits and found.decoding_needs == 3 * 2**30
  assert 'decoding: 3.0 GiB do not fit into 1.0 GiB' in report.table(
    found, parse('v5e:2x2'), 'some.py', 0.0
  )
  told = json.loads(report.to_json(found, parse('v5e:2x2'), 'some.py', 0.0))['decode']
  assert told == {'fits': False, 'memory': {'total': 3 * 2**30, 'room': 2**30}}
  without = found._replace(decoding=None)
  assert without.decoding_fits
  assert json.loads(report.to_json(without, parse('v5e:2x2'), 'some.py', 0.0))['decode'] is None


SMALL = (
  '--config=experiments/llama_160m.py:smoke',
  '--config.data.tokenizer.vocab_size=2048',
  '--topology=v5e:2x2',
  '--config.mesh.fsdp=4',
  '--decode',
)


@pytest.mark.slow
def test_the_loop_of_a_small_config_is_compiled_for_a_slice():
  pytest.importorskip('libtpu')
  done = preflight(*SMALL, '--json', '--price=2')
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  told, memory = found['decode'], found['decode']['memory']
  assert (told['rows'], told['beam'], told['slots'], told['fits']) == (64, 1, 32, True)
  assert memory['parameters'] == found['memory']['parameters']
  # Keys and values of two numbers each, in two layers with two heads of 8, a quarter of the rows.
  kept = 2 * 2 * 2 * 2 * 8 * 32 * 64 / 4
  assert kept <= memory['cache'] < kept + 4 * 4 * 32 * 64
  assert {tuple(one['axes']) for one in told['sent']} == {('fsdp',)}
  # The weights stay: nothing as large as a table is brought together.
  gathered = sum(one['bytes'] for one in told['sent'] if one['kind'] == 'all-gather')
  assert gathered < 2048 * 32 * 2 * 3 / 4
  estimate = told['estimate']
  assert estimate['step'] >= told['memory_bound'] > 0
  assert estimate['tokens'] == pytest.approx(64 / estimate['step'])
  hours = 1e9 / estimate['tokens'] / 3600
  assert told['usd_per_billion_tokens'] == pytest.approx(2 * 4 * hours)


@pytest.mark.slow
def test_rows_without_room_are_refused_in_a_line():
  pytest.importorskip('libtpu')
  # Keys and values of 21 GB on each of four devices.
  long = ('--config.model.context=65536', '--config.decode.max_tokens=65536')
  done = preflight(*SMALL, *long, '--config.decode.batch_size=10000')
  assert done.returncode == 2
  (line,) = [x for x in done.stderr.splitlines() if x.startswith('lm.preflight:')]
  assert '--decode needs' in line and 'lower decode.batch_size=10000' in line
