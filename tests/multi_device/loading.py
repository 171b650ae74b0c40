"""Evaluation on eight fake devices, in a subprocess of test_multi_device.py."""

import json

import flax.linen as nn
import in_process
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from lm import components
from lm.config.base import base, encoder_decoder, evaluation, gpt2
from lm.data import pipeline
from lm.evaluation import ensembles
from lm.evaluation.evaluators import Evaluators
from lm.parallel import mesh
from lm.text.tokenizers import vocabulary_size
from lm.types import TrainState
from lm.workdir import experiment, load, run_data
from lm.workdir.checkpoints import Checkpoints


def lines(split):
  return [{'text': f'{n} times {n} is {n * n}.'} for n in range(20)]


def pairs(split):
  return [{'source': f'{n} and {n}', 'target': str(2 * n)} for n in range(10)]


def language_model(d_model=64):
  config = base()
  config.model = gpt2(depth=2, d_model=d_model, heads=2, context=16)
  config.data.update({'source': 'loading:lines', 'seq_len': 16})
  return config


def translator():
  config = base()
  config.model = encoder_decoder(depth=1, d_model=32, heads=2, context=16)
  config.data.update({'source': 'loading:pairs', 'task': 'lm.tasks.text:text_to_text'})
  config.data.update({'converter': 'lm.tasks.seq2seq:encoder_decoder'})
  config.data.update({'seq_len': 16, 'source_len': 16})
  metrics, scores = ('lm.metrics.tokens:targets',), ('lm.metrics.translation:chrf',)
  with config.unlocked():
    config.eval.sets = {'validation': evaluation('validation', metrics=metrics, scores=scores)}
  config.decode.beam_size = 2
  return config


def saved(config, workdir, mesh_sizes, seed=0):
  """Creates a workdir with two checkpoints of a sharded model."""
  config.batch_size, config.eval.batch_size = 8, 3
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bytes'})
  config.log.sample_prompts = ()
  config.model.vocab_multiple = 2
  config.mesh.update(mesh_sizes)
  tokenizer = pipeline.tokenizer(config.data)
  model = components.model(config, vocabulary_size(tokenizer))
  boxed = jax.eval_shape(components.init_of(model, 16), jax.random.key(0))
  shardings = mesh.shardings(boxed, mesh.make_mesh(mesh_sizes), mesh.logical_axis_rules({}))
  rng = np.random.default_rng(seed)
  values = jax.tree.map(lambda x: np.float32(rng.normal(0, 0.1, x.shape)), nn.unbox(boxed))
  zeros = {name: jnp.int32(0) for name in ('step', 'skipped', 'streak')}
  experiment.write_run_config(config, 'x.txt', tokenizer, workdir, '')
  checkpoints = Checkpoints(workdir)
  for at in (2, 4):
    params = jax.tree.map(lambda x, s, at=at: jax.device_put(x * at, s), values, shardings)
    checkpoints.save(at, TrainState(**zeros, params=params, opt_state=()))
    checkpoints.wait()
  checkpoints.close()
  run_data.write_directions(workdir, {})
  return workdir


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A sharded language model, another ensemble member, and an encoder-decoder."""
  folder = tmp_path_factory.mktemp('loading')
  sharded = {'data': 2, 'fsdp': 2, 'tensor': 2}
  return {
    'one': saved(language_model(), folder / 'one', sharded),
    'other': saved(language_model(32), folder / 'other', {'data': -1}, seed=1),
    'writer': saved(translator(), folder / 'writer', {'fsdp': 8, 'data': 1}),
  }


def values(monkeypatch, count, *flags):
  """Returns the output of lm.evaluate on a number of devices, all of which are used."""
  devices, used = jax.devices()[:count], []
  plain = Evaluators.evaluate

  def evaluate(self, step, params):
    used.extend(len(x.sharding.device_set) for x in jax.tree.leaves(params))
    return plain(self, step, params)

  with monkeypatch.context() as patch:
    patch.setattr(jax, 'devices', lambda: devices)
    patch.setattr(Evaluators, 'evaluate', evaluate)
    result = in_process.run('evaluate', *flags)
  assert result.returncode == 0, result.stderr
  assert set(used) == {count}
  return json.loads(result.stdout)


@pytest.mark.parametrize(
  'flags',
  [
    ['--workdir={one}'],
    ['--workdir={one}', '--average_checkpoints=2'],
    ['--workdir={one},{other}', '--step=4'],
    ['--workdir={writer}'],
  ],
)
def test_evaluation_on_eight_devices_gives_the_values_of_one(flags, runs, monkeypatch):
  given = [flag.format(**runs) for flag in flags]
  one, eight = (values(monkeypatch, count, *given) for count in (1, 8))
  assert one.pop('notes', None) == eight.pop('notes', None)
  assert one.keys() == eight.keys() and len(one) > 2
  for name, value in one.items():
    assert eight[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize('average', [1, 2])
def test_each_device_reads_only_its_shards(average, runs, monkeypatch):
  read = []
  restore = Checkpoints.restore_params

  def restored(self, step, abstract):
    read.append(restore(self, step, abstract))
    return read[-1]

  monkeypatch.setattr(Checkpoints, 'restore_params', restored)
  workdirs = f'{runs["one"]},{runs["other"]}'
  loaded = ensembles.open_runs(workdirs, average=average, devices=jax.devices())
  assert loaded.mesh.shape == {'data': 1, 'fsdp': 8, 'tensor': 1}
  assert len(read) == 2 * average
  for tree in (*read, loaded.params):
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
      assert isinstance(x.sharding, NamedSharding)
      if path[-1].key in ('kernel', 'embedding'):  # others are vectors, replicated in training too
        assert {shard.data.size for shard in x.addressable_shards} == {x.size // 8}
    sizes = [x.size for x in jax.tree.leaves(tree)]
    held = [x.addressable_shards[0].data.size for x in jax.tree.leaves(tree)]
    assert sum(held) < sum(sizes) / 6


def test_load_uses_the_given_mesh_or_one_device(runs):
  alone = load.load(runs['one'])
  on_mesh = load.load(runs['one'], mesh=mesh.make_mesh({'fsdp': 4}, jax.devices()[:4]))

  def compare(x, y):
    assert len(x.sharding.device_set) == 1 and len(y.sharding.device_set) == 4
    np.testing.assert_array_equal(x, y)

  jax.tree.map(compare, alone.params, on_mesh.params)


def test_parameters_are_sharded_as_far_as_they_divide():
  def boxed(d_model):
    model = components.model(language_model(d_model), 257)
    return jax.eval_shape(components.init_of(model, 16), jax.random.key(0))

  rules = mesh.logical_axis_rules({})
  widths = {64: 8, 20: 4, 22: 2}
  for d_model, fsdp in widths.items():
    found = mesh.spread([boxed(64), boxed(d_model)], rules, jax.devices())
    assert found.shape == {'data': 8 // fsdp, 'fsdp': fsdp, 'tensor': 1}
  assert mesh.spread([boxed(20)], rules, jax.devices()[:6]).shape['fsdp'] == 2
