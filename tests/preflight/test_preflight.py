"""The program and compiled train steps; tests that compile need libtpu."""

import json
import pathlib
import subprocess
import sys

import in_process
import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm import components
from lm.config.base import base, encoder, encoder_decoder, llama
from lm.config.pretraining import masked, replaced_tokens
from lm.errors import UserError
from lm.preflight import search, train_step
from lm.preflight.hlo import Timing
from lm.preflight.topology import parse

ROOT = pathlib.Path(__file__).parents[2]
AXES = ('data', 'fsdp', 'tensor')


def preflight(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'lm.preflight', *arguments], cwd=ROOT, capture_output=True, text=True
  )


@pytest.mark.slow
def test_small_config_is_compiled_for_a_slice():
  pytest.importorskip('libtpu')
  small = ('--config=experiments/llama_160m.py:smoke', '--config.data.tokenizer.vocab_size=2048')
  done = preflight(*small, '--topology=v5e:2x2', '--config.mesh.fsdp=4', '--json', '--price=2')
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert (found['chips'], found['mesh']) == (4, {'data': 1, 'fsdp': 4, 'tensor': 1})
  # Adam has two float32 values per parameter. A chip holds a quarter of all but the small arrays,
  # which are replicated.
  memory = found['memory']
  assert memory['parameters'] == pytest.approx(found['parameters'], rel=0.05)
  assert memory['optimizer'] == pytest.approx(2 * memory['parameters'], rel=0.001)
  assert found['fits'] and memory['total'] < memory['capacity']
  assert {tuple(one['axes']) for one in found['collectives']} == {('fsdp',)}
  assert found['timing']['step'] > 0
  hours = 1e9 / found['timing']['tokens'] / 3600
  assert found['timing']['usd_per_billion_tokens'] == pytest.approx(2 * 4 * hours)


@pytest.mark.slow
@pytest.mark.parametrize(('topology', 'chips'), [('v5e:4x4', 16), ('v5p:2x2x2', 8)])
def test_compiled_layers_send_at_most_one_percent_more_than_the_lower_bound(topology, chips):
  pytest.importorskip('libtpu')
  done = preflight(
    '--config=experiments/llama_1b.py',
    f'--topology={topology}',
    f'--config.mesh.fsdp={chips}',
    '--config.model.depth=4',
    '--config.model.d_mlp=4096',
    '--config.data.seq_len=512',
    '--config.batch_size=64',
    '--config.data.tokenizer.vocab_size=2048',
    '--json',
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  # Each kernel is all-gathered twice, and its gradient is reduce-scattered. The compiler alone
  # would all-reduce it over the torus (1.3 and 1.9 times the bound). The table is all-gathered
  # once. The rest are the gradients of norms.
  assert (
    sum(one['bytes'] for one in found['collectives']) < 1.01 * found['comm_lower_bound']['fsdp']
  )


@pytest.mark.slow
def test_search_compiles_and_ranks():
  pytest.importorskip('libtpu')
  small = ('--config=experiments/llama_160m.py:smoke', '--config.microbatches=1')
  done = preflight(*small, '--topology=v5e:2x2', '--search', '--most=2', '--json')
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)['candidates']
  assert len(found) == 2 and all(one['fits'] for one in found)
  assert found[0]['tokens'] >= found[1]['tokens'] and found[0]['flags'] != found[1]['flags']


@pytest.mark.slow
def test_model_that_does_not_fit_exits_with_2_and_the_chips_that_it_needs():
  pytest.importorskip('libtpu')
  done = preflight(
    '--config=experiments/llama_70b.py', '--topology=v5e:2x2', '--config.mesh.fsdp=4'
  )
  assert (done.returncode, done.stdout) == (2, '')
  (line,) = [x for x in done.stderr.splitlines() if x.startswith('lm.preflight:')]
  assert 'do not fit' in line and 'or more chips' in line


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('--topology=v5e:4x',), 'v5e needs 2 size'),
    ((), '--topology is required'),
    (('--topology=v5e:2x2', '--price=-1'), '--price=-1'),
    (('--topology=v5e:2x2', '--most=0'), '--most=0'),
    (('--topology=v5e:2x2', '--search', '--decode'), '--decode'),
  ],
)
def test_wrong_arguments_exit_with_2_and_one_line(arguments, message):
  done = preflight('--config=experiments/quickstart.py', *arguments)
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr.startswith('lm.preflight: ') and message in done.stderr


def test_help_names_the_flags():
  text = preflight('--help').stdout
  assert all(f'--{name}: ' in text for name in ('topology', 'slices', 'price', 'search', 'json'))


def config_of(model):
  config = base()
  config.model = model
  config.batch_size = config.eval.batch_size = 8
  config.data.seq_len = config.data.source_len = 16
  return config


class Shape(dict):
  """The sizes of a mesh of more devices than this machine has."""

  @property
  def shape(self):
    return self


class Leaf:
  def __init__(self, size, *spec):
    self.size = size
    one = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)
    self.sharding = NamedSharding(one, PartitionSpec(*spec))


def test_comm_lower_bound_equals_figures_by_hand():
  model = llama(depth=2, d_model=8, heads=2, kv_heads=2, d_mlp=16, context=16)
  model.dtype = 'bfloat16'
  config = config_of(model)
  functions = components.build_components(config, 32, jax.devices()[:1])
  params = {'kernel': Leaf(800, 'fsdp', 'tensor'), 'unembedding': Leaf(400, 'tensor', 'fsdp')}
  params |= {'scale': Leaf(10, None)}
  mesh = Shape(data=2, fsdp=4, tensor=2)
  found = train_step.comm_lower_bound(config, functions.model, mesh, params)
  # In bfloat16, kernels are all-gathered twice and their gradients reduce-scattered. The table is
  # all-gathered once, and the gradient of the scale is all-reduced.
  fsdp = (3 * 400 + 2 * 200 + 2 * 10) * 2 * 3 / 4
  data = 2 * (400 / 4 + 200 / 4 + 10) * 2 / 2
  # Two sublayers of two layers, forward and backward, and the vocabulary in both directions.
  tensor = 2 * (2 * 2 * 2 + 2) * (8 / 8 * 16 * 8) * 2 / 2
  assert found == {'fsdp': fsdp, 'data': data, 'tensor': tensor}
  # An embedding table that is not tied: the looked up vectors and their gradients, or the table.
  small, large = (
    train_step.comm_lower_bound(
      config, functions.model, mesh, {'embedding': Leaf(size, 'tensor', 'fsdp')}
    )
    for size in (200, 400)
  )
  assert small['fsdp'] == 2 * (200 / 2) * 2 * 3 / 4
  assert large['fsdp'] == 2 * (8 / 8 * 16 * 8) * 2 * 3 / 4
  tied = functions.model.clone(tie_embeddings=True)
  again = train_step.comm_lower_bound(
    config, tied, mesh, {'embedding': Leaf(400, 'tensor', 'fsdp')}
  )
  assert again['fsdp'] == 2 * 200 * 2 * 3 / 4
  config.model.remat_policy = 'jax:checkpoint_policies.nothing_saveable'
  again = train_step.comm_lower_bound(config, functions.model, mesh, params)
  assert again['tensor'] == tensor * (2 * 2 * 3 + 2) / (2 * 2 * 2 + 2)


def test_fresh_models_are_part_of_the_step():
  config = masked(config_of(encoder(depth=2, d_model=16, heads=2, context=16)))
  config.data.tokenizer.vocab_size = 64
  alone = train_step.describe(config, jax.devices()[:1])
  replaced_tokens(config, encoder(depth=1, d_model=8, heads=2, context=16))
  step = train_step.describe(config, jax.devices()[:1])
  assert set(step.state.params) == {'model', 'generator'}
  own, first = (components.parameter_count(x.state.params) for x in (step, alone))
  assert own > first
  params, batch = step.state.params, step.batch
  assert train_step.activations(step.functions, params, batch) > train_step.activations(
    alone.functions, alone.state.params, alone.batch
  )
  assert (
    train_step.comm_lower_bound(config, step.functions.model, step.functions.mesh, params) is None
  )
  config.models.generator.frozen = True
  with pytest.raises(UserError, match='no frozen tree'):
    train_step.describe(config, jax.devices()[:1])


@pytest.mark.parametrize('flags', [['--topology=h100:8'], ['--topology=v5e:4x4', '--search']])
def test_several_models_need_a_compiled_step(flags):
  config = f'--config={ROOT}/experiments/electra_small.py'
  assert 'need a config with one model' in in_process.mistake('preflight', config, *flags)


def test_remat_saves_fewer_activations():
  def saved(remat):
    config = config_of(encoder_decoder(depth=2, d_model=16, heads=2, context=16))
    config.model.remat_policy = remat
    step = train_step.describe(config, jax.devices()[:1])
    return train_step.activations(step.functions, step.state.params, step.batch)

  everything, nothing = saved(None), saved('jax:checkpoint_policies.nothing_saveable')
  # The inputs of two layers of both stacks, of 8 rows of 16 tokens with 16 float32 values.
  assert 4 * 8 * 16 * 16 * 4 <= nothing < everything / 3


def test_candidates_use_all_devices():
  config = base()
  config.batch_size = 64
  found = list(search.candidates(config, 8, 2))
  meshes = {tuple(x[f'mesh.{axis}'] for axis in AXES) for x in found}
  assert meshes == {(2, 4, 1), (4, 2, 1), (8, 1, 1), (2, 2, 2), (4, 1, 2), (2, 1, 4)}
  assert {x['batch_size'] for x in found} == {64, 128}
  other = train_step.changed(config, found[0])
  assert (other.mesh.data, config.mesh.data) == (found[0]['mesh.data'], -1)
  assert not any('microbatches' in x for x in found), 'the config has no gradient accumulation'
  config.microbatches = 16
  assert all(x['microbatches'] == 1 for x in search.candidates(config, 8, 2))


@pytest.mark.slow
def test_search_first_tries_candidates_without_gradient_accumulation(monkeypatch):
  pytest.importorskip('libtpu')
  config, slice_ = base(), parse('v5e:2x2')
  config.microbatches, config.mesh.fsdp = 16, 4
  compiled = []

  def check(config, slice_):
    compiled.append(config.microbatches)
    if config.microbatches == 1:
      raise train_step.DoesNotFit(20e9, 16e9)
    timing = Timing({}, 1.0, 0.5, config.batch_size)
    step = train_step.Step(None, None, None, 1, 1.0)
    return train_step.Result(step, {'parameters': 1e9}, 16e9, None, timing)

  monkeypatch.setattr(train_step, 'check', check)
  found = search.search(config, slice_, 2)
  assert compiled == [1, 16, 1, 16]
  assert all(one.fits and 'microbatches' not in one.flags for one in found)
  monkeypatch.setattr(train_step, 'activations', lambda *args: 20e9)  # a sixteenth fits
  compiled.clear()
  search.search(config, slice_, 2)
  assert compiled == [16, 16], 'a variant that cannot fit is not compiled'


def test_config_without_vocabulary_size_raises():
  config = base()
  assert train_step.vocabulary(config) == 2048
  with config.unlocked():
    config.data.tokenizer = {'fn': 'lm.text.tokenizers:bytes'}
  with pytest.raises(UserError, match=r'--config\.model\.vocab_size=N'):
    train_step.vocabulary(config)
