"""Decoding steps; tests that compile need libtpu."""

import functools
import json

import jax
import pytest
from test_preflight import config_of, preflight

from lm import components
from lm.config.base import encoder_decoder, llama
from lm.config.recurrent import recurrent, recurrent_encoder_decoder
from lm.config.tasks import translation
from lm.errors import UserError
from lm.parallel.mesh import bytes_per_device
from lm.preflight import decode, hlo, report, train_step
from lm.preflight.hlo import Collective, Timing
from lm.preflight.topology import parse
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
def loop_of(name):
  """Returns the function and abstract parameters of a config, and its decoding loop."""
  config = CONFIGS[name]()
  functions = components.build_components(config, V, jax.devices()[:1])
  params = abstract_state(functions)[0].params
  apply = apply_of(functions.model)
  source = S if train_step.has_source(config) else 0
  return apply, params, decode.decoding_loop(config, functions.model, apply, params, B, S, source)


@pytest.mark.parametrize('name', CONFIGS)
def test_loop_keeps_the_shapes_of_its_carry(name):
  _, params, (loop, carry, cache) = loop_of(name)

  def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

  assert shapes(jax.eval_shape(loop, params, carry, cache)) == shapes((carry, cache))


def test_cache_holds_the_tokens_of_all_hypotheses():
  for name, beam in (('text', 1), ('pairs by beams', 3)):
    _, _, (_, carry, cache) = loop_of(name)
    layers = cache['layers']
    heads = G if name == 'text' else H
    shape = (B, heads, 1 + beam * S, K)  # 1 for the end token that texts begin with
    assert [layer['layer_0']['attention'].k.shape for layer in layers] == [shape] * L
    if beam > 1:
      memory = layers[0]['layer_0']['cross_attention']
      assert memory.k.shape == memory.v.shape == (B, heads, S, K)
      assert carry.tokens.shape == (B, beam, S)


def test_cost_of_a_step_equals_figures_by_hand():
  apply, params, (_, _, cache) = loop_of('text')
  flops, used = decode.cost_of_step(apply, params, B, cache, 4)
  layer = D * (H + 2 * G) * K + H * K * D + 3 * D * F
  matmuls = 2 * B * (L * layer + D * V) + 4 * B * L * H * K * S
  assert matmuls < flops < 1.1 * matmuls
  # Two scales per layer and one at the end. The embedding table is only looked up.
  assert used == 4 * (L * (layer + 2 * D) + D + D * V)
  assert decode.cost_of_step(apply, params, B, cache, 2)[1] == used / 2


def test_step_reads_neither_encoder_nor_cross_attention_keys_and_values():
  apply, params, (_, _, cache) = loop_of('pairs')
  _, used = decode.cost_of_step(apply, params, B, cache, 4)
  read = bytes_per_device((params['decoder'], params['embedding']))
  unused = params['decoder']['layers']['layer_0']['cross_attention']['kv']
  assert used == read - bytes_per_device(unused)


def test_hypotheses_count_as_rows_of_a_step():
  apply, params, (_, _, cache) = loop_of('text by beams')
  flops, _ = decode.cost_of_step(apply, params, 3 * B, cache, 4)
  layer = D * (H + 2 * G) * K + H * K * D + 3 * D * F
  matmuls = 2 * 3 * B * (L * layer + D * V) + 4 * 3 * B * L * H * K * 3 * S
  assert matmuls < flops < 1.1 * matmuls


def test_beam_wider_than_the_vocabulary_raises():
  for make in CONFIGS.values():
    config = make()
    config.model.vocab_size = V
    decode.check_config(config)
  config.decode.beam_size = V + 1
  with pytest.raises(UserError, match='--beam_size=513 is not between 1 and 512'):
    decode.check_config(config)


def test_model_that_does_not_generate_text_is_refused():
  config = '--config=experiments/function_length.py'
  done = preflight(config, '--topology=v5e:2x2', '--decode')
  assert (done.returncode, done.stdout) == (2, '')
  (line,) = [x for x in done.stderr.splitlines() if x.startswith('lm.preflight:')]
  assert "--decode: model.fn='lm.models.transformer:Encoder'" in line


def test_estimate_of_one_of_several_steps_is_at_least_the_memory_bound():
  program = hlo.parse(
    'ENTRY %main (a: f32[8]) -> f32[8] {\n'
    '  ROOT %f = f32[8]{0} fusion(%a), backend_config={"estimated_cycles":"12000000"}\n}'
  )
  slice_ = parse('v5e:1x1')
  exposed = Collective('all-reduce', ('fsdp',), (0, 0), slice_.chip.link * 2e-3, 1.0, False)
  devices = [type('Device', (), {'coords': (0, 0, 0)})()]
  run = functools.partial(hlo.estimate, program, [exposed], devices, slice_, 1e9, 64, 4)
  # 12 million cycles at 1.5 GHz are 8 ms, of four steps. Two links send the rest in 1 ms.
  assert run().parts['kernels'] == pytest.approx(2e-3)
  assert run().step == pytest.approx(3e-3) and run().tokens == pytest.approx(64 / 3e-3)
  assert run(memory_bound=5e-3).step == pytest.approx(6e-3)


TIMING = Timing({'kernels': 1e-3, 'exposed_collectives': 1e-3}, 3e-3, 0.1, 20_000.0)


def summary_of(decoding):
  """Returns the report of a train step and some decoding on v5e:2x2, for 2 USD per hour."""
  functions = components.build_components(text(), V, jax.devices()[:1])
  step = train_step.Step(functions, abstract_state(functions)[0], {}, 100, 1.0)
  result = train_step.Result(step, {'parameters': 1}, 2.0**30, None, TIMING, [], '', 1.0)
  return report.summary(result, parse('v5e:2x2'), 'some.py', 2.0, decoding)


def test_report_of_a_decoding_step():
  memory = {'parameters': 2**28, 'cache': 2**29, 'temporaries': 2**20}
  sent = [Collective('all-gather', ('fsdp',), (0, 1), 3e6, 2.0, False)]
  values = summary_of(decode.Decoding(64, 3, 48, 16, memory, 5e9, sent, TIMING, 7.0))
  found = values['decode']
  assert found['memory']['cache'] == 2**29 and found['fits']
  assert found['collectives'] == [{'kind': 'all-gather', 'axes': ('fsdp',), 'bytes': 6e6}]
  # 4 chips at 2 dollars per hour need 50,000 s for a billion tokens.
  assert found['timing']['usd_per_billion_tokens'] == pytest.approx(2 * 4 * 50_000 / 3600)
  lines = '\n'.join(report.lines(values)).partition('decoding step: ')[2]
  for words in ('64 rows of 3 hypotheses', '5.0 GFLOPs', '48 tokens per row, sources of 16'):
    assert words in lines
  for words in ('cache', 'all-gather over fsdp', '6.0', '3.00 ms', '20,000', 'USD'):
    assert words in lines


def test_report_of_a_decoding_step_that_does_not_fit():
  values = summary_of(train_step.DoesNotFit(3 * 2**30, 2**30))
  memory = {'total': 3 * 2**30, 'capacity': 2**30}
  assert values['decode'] == {'fits': False, 'memory': memory}
  assert 'decoding step: 3.0 GiB do not fit into 1.0 GiB' in report.lines(values)
  assert summary_of(None)['decode'] is None


SMALL = (
  '--config=experiments/llama_160m.py:smoke',
  '--config.data.tokenizer.vocab_size=2048',
  '--topology=v5e:2x2',
  '--config.mesh.fsdp=4',
  '--decode',
)


@pytest.mark.slow
def test_decoding_of_a_small_config_is_compiled_for_a_slice():
  pytest.importorskip('libtpu')
  done = preflight(*SMALL, '--json', '--price=2')
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  decoding, memory = found['decode'], found['decode']['memory']
  assert (decoding['rows'], decoding['beam'], decoding['cache_tokens']) == (64, 1, 32)
  assert decoding['fits'] and memory['parameters'] == found['memory']['parameters']
  # bfloat16 keys and values of two layers with two heads of 8, for a quarter of the rows.
  cache = 2 * 2 * 2 * 2 * 8 * 32 * 64 / 4
  assert cache <= memory['cache'] < cache + 4 * 4 * 32 * 64
  assert {tuple(one['axes']) for one in decoding['collectives']} == {('fsdp',)}
  # The weights stay sharded: nothing as large as a table is all-gathered.
  gathered = sum(one['bytes'] for one in decoding['collectives'] if one['kind'] == 'all-gather')
  assert gathered < 2048 * 32 * 2 * 3 / 4
  timing = decoding['timing']
  assert timing['step'] >= timing['parts']['memory_bandwidth'] > 0
  assert timing['tokens'] == pytest.approx(64 / timing['step'])
  hours = 1e9 / timing['tokens'] / 3600
  assert timing['usd_per_billion_tokens'] == pytest.approx(2 * 4 * hours)


@pytest.mark.slow
def test_decoding_that_does_not_fit_exits_with_2():
  pytest.importorskip('libtpu')
  # Keys and values of 21 GB on each of four devices.
  long = ('--config.model.context=65536', '--config.decode.max_tokens=65536')
  done = preflight(*SMALL, *long, '--config.decode.batch_size=10000')
  assert done.returncode == 2
  (line,) = [x for x in done.stderr.splitlines() if x.startswith('lm.preflight:')]
  assert '--decode needs' in line and 'decode.batch_size=10000' in line
