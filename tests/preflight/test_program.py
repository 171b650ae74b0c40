"""The compiler of TPUs for real; without libtpu these are skipped."""

import json
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm import components
from lm.config.base import base, encoder_decoder, llama
from lm.errors import UserError
from lm.preflight import check, chips, least, program, search
from lm.training.train_step import abstract_state

ROOT = pathlib.Path(__file__).parents[2]
AXES = ('data', 'fsdp', 'tensor')


def preflight(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'lm.preflight', *arguments], cwd=ROOT, capture_output=True, text=True
  )


@pytest.mark.slow
def test_a_small_config_is_compiled_for_a_slice():
  pytest.importorskip('libtpu')
  small = ('--config=experiments/llama_160m.py:smoke', '--config.data.tokenizer.vocab_size=2048')
  done = preflight(*small, '--topology=v5e:2x2', '--config.mesh.fsdp=4', '--json', '--price=2')
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert (found['chips'], found['mesh']) == (4, {'data': 1, 'fsdp': 4, 'tensor': 1})
  # Adam keeps two numbers for each parameter, all of four bytes, and a chip has a quarter, but for
  # the small ones, which are whole.
  memory = found['memory']
  assert memory['parameters'] == pytest.approx(found['parameters'], rel=0.05)
  assert memory['optimizer'] == pytest.approx(2 * memory['parameters'], rel=0.001)
  assert found['fits'] and memory['total'] < memory['room']
  assert {tuple(one['axes']) for one in found['sent']} == {('fsdp',)}
  assert found['estimate']['step'] > 0
  hours = 1e9 / found['estimate']['tokens'] / 3600
  assert found['usd_per_billion_tokens'] == pytest.approx(2 * 4 * hours)


@pytest.mark.slow
@pytest.mark.parametrize(('topology', 'chips'), [('v5e:4x4', 16), ('v5p:2x2x2', 8)])
def test_layers_send_no_more_than_they_must(topology, chips):
  pytest.importorskip('libtpu')
  done = preflight(
    '--config=experiments/llama_1b.py',
    f'--topology={topology}',
    f'--config.mesh.fsdp={chips}',
    '--config.model.depth=4',
    '--config.model.d_mlp=4096',
    '--config.data.context=512',
    '--config.batch_size=64',
    '--config.data.tokenizer.vocab_size=2048',
    '--json',
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  # Each kernel comes together for the pass forward and for that backward, and of its gradient a
  # device gets its part: no sum is sent whole, as the compiler does it by itself over a whole torus
  # (1.3 and 1.9 times the least). The table comes together once for all that it is for. Beside
  # them there are the gradients of norms.
  assert sum(one['bytes'] for one in found['sent']) < 1.01 * found['least_sent']['fsdp']


@pytest.mark.slow
def test_a_search_ranks_what_it_compiles():
  pytest.importorskip('libtpu')
  small = ('--config=experiments/llama_160m.py:smoke', '--config.microbatches=1')
  done = preflight(*small, '--topology=v5e:2x2', '--search', '--most=2', '--json')
  assert done.returncode == 0, done.stderr
  tried = json.loads(done.stdout)['tried']
  assert len(tried) == 2 and all(one['fits'] for one in tried)
  assert tried[0]['tokens'] >= tried[1]['tokens'] and tried[0]['flags'] != tried[1]['flags']


@pytest.mark.slow
def test_a_model_that_is_too_large_is_refused_with_what_holds_it():
  pytest.importorskip('libtpu')
  done = preflight(
    '--config=experiments/llama_70b.py', '--topology=v5e:2x2', '--config.mesh.fsdp=4'
  )
  assert (done.returncode, done.stdout) == (2, '')
  (line,) = [x for x in done.stderr.splitlines() if x.startswith('lm.preflight:')]
  assert 'do not fit' in line and 'chips and more hold it' in line


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('--topology=v5e:4x',), 'slices of v5e have 2 sizes'),
    ((), '--topology is required'),
    (('--topology=v5e:2x2', '--price=-1'), '--price=-1.0 is not 0 or more'),
    (('--topology=v5e:2x2', '--most=0'), '--most=0 is not a positive number'),
    (('--topology=v5e:2x2', '--search', '--decode'), '--decode is of one mesh'),
  ],
)
def test_wrong_arguments_are_told_in_a_line(arguments, message):
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
  config.data.context = config.data.source_context = 16
  return config


class Shape(dict):
  """What `least` asks of a mesh, for more devices than there are here."""

  @property
  def shape(self):
    return self


class Leaf:
  def __init__(self, size, *spec):
    self.size = size
    one = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)
    self.sharding = NamedSharding(one, PartitionSpec(*spec))


def test_the_least_that_is_sent_by_hand():
  model = llama(depth=2, d_model=8, heads=2, kv_heads=2, d_mlp=16, context=16)
  model.dtype = 'bfloat16'
  config = config_of(model)
  functions = components.build_components(config, 32, jax.devices()[:1])
  params = {'kernel': Leaf(800, 'fsdp', 'tensor'), 'unembedding': Leaf(400, 'tensor', 'fsdp')}
  params |= {'scale': Leaf(10, None)}
  mesh = Shape(data=2, fsdp=4, tensor=2)
  found = least.least(config, functions.model, mesh, params)
  # Of two bytes each. Kernels come together twice and their gradient is added up in parts; the
  # table comes together once; the scale's gradient is added up whole.
  fsdp = (3 * 400 + 2 * 200 + 2 * 10) * 2 * 3 / 4
  data = 2 * (400 / 4 + 200 / 4 + 10) * 2 / 2
  # Two sublayers of two layers, forward and backward, and one more of each for the vocabulary.
  tensor = 2 * (2 * 2 * 2 + 2) * (8 / 8 * 16 * 8) * 2 / 2
  assert found == {'fsdp': fsdp, 'data': data, 'tensor': tensor}
  # Of a table that is only looked up in, a device's vectors and their gradients, or less.
  small, large = (
    least.least(config, functions.model, mesh, {'embedding': Leaf(size, 'tensor', 'fsdp')})
    for size in (200, 400)
  )
  assert small['fsdp'] == 2 * (200 / 2) * 2 * 3 / 4
  assert large['fsdp'] == 2 * (8 / 8 * 16 * 8) * 2 * 3 / 4
  tied = functions.model.clone(tie_embeddings=True)
  again = least.least(config, tied, mesh, {'embedding': Leaf(400, 'tensor', 'fsdp')})
  assert again['fsdp'] == 2 * 200 * 2 * 3 / 4
  config.model.remat_policy = 'jax:checkpoint_policies.nothing_saveable'
  again = least.least(config, functions.model, mesh, params)
  assert again['tensor'] == tensor * (2 * 2 * 3 + 2) / (2 * 2 * 2 + 2)


def test_what_is_kept_of_the_pass_forward_is_less_where_it_is_computed_again():
  def kept(remat):
    config = config_of(encoder_decoder(depth=2, d_model=16, heads=2, context=16))
    config.model.remat_policy = remat
    functions = components.build_components(config, 32, jax.devices()[:1])
    state, _ = abstract_state(functions)
    return program.activations(functions, state, program.batch_of(config, functions))

  everything, nothing = kept(None), kept('jax:checkpoint_policies.nothing_saveable')
  # What goes into a layer, of 8 rows of 16 with 16 numbers, for the two layers of both stacks.
  assert 4 * 8 * 16 * 16 * 4 <= nothing < everything / 3


def test_candidates_split_all_devices():
  config = base()
  config.batch_size = 64
  found = list(search.candidates(config, 8, 2))
  meshes = {tuple(x[f'mesh.{axis}'] for axis in AXES) for x in found}
  assert meshes == {(2, 4, 1), (4, 2, 1), (8, 1, 1), (2, 2, 2), (4, 1, 2), (2, 1, 4)}
  assert {x['batch_size'] for x in found} == {64, 128}
  other = search.changed(config, found[0])
  assert (other.mesh.data, config.mesh.data) == (found[0]['mesh.data'], -1)
  assert not any('microbatches' in x for x in found), 'it is one part already'
  config.microbatches = 16
  assert all(x['microbatches'] == 1 for x in search.candidates(config, 8, 2))


@pytest.mark.slow
def test_a_search_takes_the_batch_in_one_part_and_then_in_those_of_the_config(monkeypatch):
  pytest.importorskip('libtpu')
  config, slice_ = base(), chips.parse('v5e:2x2')
  config.microbatches, config.mesh.fsdp = 16, 4
  asked = []

  def compile_(config, slice_):
    asked.append((config.mesh.fsdp, config.microbatches))
    if config.microbatches == 1:
      raise program.NoRoom(20e9, 16e9)
    estimate = SimpleNamespace(tokens=config.batch_size, utilisation=0.5)
    step = SimpleNamespace(memory=SimpleNamespace(total=1e9))
    return SimpleNamespace(step=step, estimate=estimate, fits=True)

  monkeypatch.setattr(check, 'check', compile_)
  found = search.search(config, slice_, 2)
  assert [parts for _, parts in asked] == [1, 16, 1, 16]
  assert all(one.fits and 'microbatches' not in one.flags for one in found)
  monkeypatch.setattr(program, 'activations', lambda *args: 20e9)  # a sixteenth fits
  asked.clear()
  search.search(config, slice_, 2)
  assert [parts for _, parts in asked] == [16, 16], 'what cannot fit is not compiled'


def test_a_vocabulary_that_the_config_does_not_say_is_asked_for():
  config = base()
  assert program.vocabulary(config) == 2048
  with config.unlocked():
    config.data.tokenizer = {'fn': 'lm.text.tokenizers:bytes'}
  with pytest.raises(UserError, match=r'--config\.model\.vocab_size=N'):
    program.vocabulary(config)
