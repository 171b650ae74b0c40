"""A run with a frozen teacher, a second trained model, LoRA and an average of the parameters."""

import dataclasses
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from lm.components import Components, build_components
from lm.config.base import base
from lm.errors import UserError
from lm.evaluation.sets import Sets
from lm.parallel import mesh
from lm.parallel.host import Never
from lm.text.tokenizers import vocabulary_size
from lm.training import named_trees, train_step, trainer
from lm.training.train_step import abstract_state
from lm.types import Objective, Optimizer, Output, View
from lm.workdir import experiment, load
from lm.workdir.checkpoints import Checkpoints
from lm.workdir.run_data import metrics_at

FOLDER = pathlib.Path(__file__).parents[2] / 'experiments'
SOURCE = """
import distillation
from ml_collections import ConfigDict
from lm.config.base import another_model, base
from lm.types import Objective

def get_config(arg=''):
  config = base()
  config.steps = 4
  config.batch_size = 4
  config.data.source = "lm.data.sources:text(files={corpus!r}, validation=0.1, documents='line')"
  config.data.tokenizer = ConfigDict({{'fn': 'lm.text.tokenizers:bytes'}})
  config.data.seq_len = 16
  config.model.update({{'context': 16, 'd_model': 16, 'depth': 2, 'heads': 2, 'kv_heads': 2,
                       'head_dim': 8, 'd_mlp': 32}})
  config.optim.warmup_steps = 0
  config.checkpoint.every = 2
  config.eval.every = 4
  config.eval.evaluators = ('lm.evaluation.sets:sets',)
  config.log.every = 1
  config.report = ''
  return config

def both(**distilled):
  student = distillation.distillation(**distilled)
  def loss_sums(apply, params, batch, key):
    output = apply['second'](params['second'], batch)
    kernel = output.head(output.hidden)
    second = (batch['weights'][..., None] * kernel**2).sum()
    return student.loss_sums(apply, params, batch, key) | {{'second': second}}
  def normalizers(batch):
    return student.normalizers(batch) | {{'second': batch['weights'].sum()}}
  return Objective(loss_sums, normalizers)
"""


def config_of(folder, teacher=None):
  """Returns the config of the teacher, or of the run with several trees."""
  config = experiment.load(f'{folder / "trees.py"}')
  if teacher is None:
    return config
  from lm.config.base import another_model

  second = ConfigDict({**config.model, 'depth': 1})
  with config.unlocked():
    config.models = {
      'teacher': another_model(str(teacher)),
      'second': another_model(frozen=False, model=second),
    }
    config.objective = {'fn': 'trees:both', 'weight': 0.5}
    config.view = 'lora:lora(rank=2)'
    config.warm_start.workdir = str(teacher)
    config.allow_zero = '/a$|^second/embedding'
    config.optim.update({'fn': 'ema:ema', 'decay': 0.5, 'weight_decay_mask': '/b$'})
  return config


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('trees')
  corpus = folder / 'corpus.txt'
  corpus.write_text('\n'.join(f'the {i} words of a line' for i in range(200)))
  (folder / 'trees.py').write_text(SOURCE.format(corpus=str(corpus)))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, 'path', [*sys.path, str(FOLDER)])
    yield folder


def train(folder, workdir, teacher=None):
  trainer.train(config_of(folder, teacher), f'{folder / "trees.py"}', workdir, Never())


@pytest.fixture(scope='module')
def teacher(folder):
  train(folder, folder / 'teacher')
  return folder / 'teacher'


@pytest.fixture(scope='module')
def run(folder, teacher):
  train(folder, folder / 'run', teacher)
  return folder / 'run'


def training_item(workdir, teacher, folder, step):
  """Returns the item `training` of a checkpoint, and the functions of the run."""
  config = config_of(folder, teacher)
  functions = build_components(config, vocabulary_size(experiment.read_tokenizer(workdir)))
  checkpoints = Checkpoints(workdir)
  state, _ = checkpoints.restore(step, abstract_state(functions)[0])
  checkpoints.close()
  return state, functions


@pytest.mark.slow  # these three train a teacher, a run and its resume
def test_checkpoints_have_no_frozen_tree_and_its_step_is_recorded(run, teacher):
  config = experiment.read_config(run)
  assert (config.models.teacher.step, config.warm_start.step) == (4, 4)
  checkpoints = Checkpoints(run)
  names = checkpoints.shapes(4, 'training').keys()
  theirs = Checkpoints(teacher)
  assert checkpoints.shapes(4, 'params') == theirs.shapes(4, 'params')
  assert not any('teacher' in name for name in names)
  assert any(name.startswith('params/second/') for name in names)
  own = {x for x in names if x.startswith(('params/model/', 'opt_state')) and '/second/' not in x}
  assert all(name.endswith(('/a', '/b')) for name in own if 'layers' in name)
  checkpoints.close()
  theirs.close()


@pytest.mark.slow  # these three train a teacher, a run and its resume
def test_programs_read_the_merged_average_that_was_evaluated(run, teacher, folder):
  import lora

  state, functions = training_item(run, teacher, folder, 4)
  adapters = functions.optimizer.evaluated(state.params, state.opt_state)['model']
  base = load.load(teacher, 4)
  loaded = load.load(run)
  expected = lora.lora(rank=2).merge(adapters, base.params)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), loaded.params, expected
  )
  moved = {
    k
    for k, x in flatten_dict(loaded.params, sep='/').items()
    if (x != flatten_dict(base.params, sep='/')[k]).any()
  }
  assert moved and all('/layers/' in name and name.endswith('/kernel') for name in moved)
  found = Sets(config_of(folder), functions, loaded.tokenizer).run(4, loaded.params)
  logged = metrics_at(run, 4)
  assert found.values['eval/validation/loss'] == pytest.approx(
    logged['eval/validation/loss'], rel=1e-5
  )
  assert {'train/loss', 'train/kl', 'train/second'} <= logged.keys()


@pytest.mark.slow  # these three train a teacher, a run and its resume
def test_a_resumed_run_reads_the_frozen_trees_again(run, teacher, folder, tmp_path):
  workdir = tmp_path / 'resumed'
  shutil.copytree(run, workdir)
  shutil.rmtree(workdir / 'checkpoints/4')
  train(folder, workdir, teacher)
  states = [training_item(each, teacher, folder, 4)[0] for each in (run, workdir)]
  jax.tree.map(np.testing.assert_array_equal, *states)
  # A copy of the teacher is as good as the teacher. Another one with the same step is not.
  other = shutil.copytree(teacher, tmp_path / 'other')
  assert named_trees.pinned(config_of(folder, other), run)[0].models.teacher.step == 4
  file = next((other / 'checkpoints/4/digests').glob('*.json'))
  file.write_text(file.read_text().replace('"0', '"1', 1).replace('"a', '"b', 1))
  with pytest.raises(
    UserError, match=r"teacher.workdir='.*other': checkpoint 4 is another one tha"
  ):
    named_trees.pinned(config_of(folder, other), run)


@pytest.mark.slow  # with those above
def test_a_teacher_that_reads_shorter_rows_or_lacks_tokens_is_refused(teacher, folder, tmp_path):
  config = config_of(folder, teacher)
  config.data.seq_len = config.model.context = config.models.second.model.context = 32
  with pytest.raises(UserError, match=r'it reads 16 tokens; data\.seq_len=32'):
    build_components(config, 257)
  config = config_of(folder, teacher)
  config.data.special_tokens = ('<|mask|>',)
  with pytest.raises(UserError, match=r'1 tokens of data\.tokenizer are not there'):
    trainer.train(config, f'{folder / "trees.py"}', tmp_path / 'run', Never())


def test_a_loss_of_a_layer_of_any_trained_model_is_not_dropped():
  def apply(params, batch):
    return Output(params, None, {'balance': params})

  def sums(apply, params, batch, key):
    other = apply['other'](jnp.ones(()), batch).hidden
    return {'loss': apply['model'](params['model'], batch).hidden + other}

  objective = Objective(sums, lambda batch: {'loss': 1.0})
  silent = lambda params, batch: Output(params, None, {})  # noqa: E731
  applies, trees = {'model': silent, 'other': apply}, {'model': jnp.ones(())}
  train_step.gradients(objective, applies, trees['model'], {}, None, join=lambda _: trees)
  with pytest.raises(UserError, match="the loss 'balance' of a layer would be dropped"):
    train_step.gradients(objective, applies, trees | {'other': jnp.ones(())}, {}, None)


def scaled() -> View:
  """Trains a factor of each parameter, which keeps its initial value."""

  def split(key, params):
    return {'factor': jax.tree.map(lambda x: jnp.ones(()), params)}, params

  return View(split, lambda own, kept: jax.tree.map(jnp.multiply, own['factor'], kept))


def test_a_step_trains_what_the_view_splits_off_and_saves_what_it_merges(tmp_path):
  config = base()
  config.view = 'test_named_trees:scaled'
  target = jnp.asarray([0.5, -1.0, 2.0])

  def loss_sums(apply, params, batch, key):
    return {'loss': batch['x'].sum() * jnp.vdot(params['kernel'], target)}

  devices = mesh.make_mesh({'data': 1}, jax.devices()[:1])
  objective = Objective(loss_sums, lambda batch: {'loss': jnp.ones(())})
  built = Components(
    None,
    None,
    devices,
    mesh.RULES,
    lambda key: {'kernel': jax.random.normal(key, (3,))},
    objective,
    Optimizer(optax.adam(0.1), lambda step: jnp.float32(0.1)),
    train_step.train_step,
  )
  built = dataclasses.replace(built, trees=named_trees.trees(config, built, 9))
  state, abstract = train_step.init_train_state(built, jax.random.key(0))
  kept = np.asarray(state.frozen['model']['kernel'])
  moments = jax.tree.leaves(state.opt_state)
  assert all(x.shape == () for x in moments)  # none for the parameters that stay
  step, merged = train_step.make_train_step(built, 0, 1, abstract), train_step.evaluated(built)
  for _ in range(2):
    state, _ = step(state, {'x': np.ones((1, 1), np.float32)})
  # Adam moves by its rate against a gradient that stays the same.
  factor = 1 - 0.2 * np.sign(kept @ np.asarray(target))
  np.testing.assert_allclose(state.params['factor']['kernel'], factor, rtol=1e-5)
  np.testing.assert_array_equal(state.frozen['model']['kernel'], kept)
  np.testing.assert_allclose(merged(state)['kernel'], factor * kept, rtol=1e-5)

  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(2, state, None, merged(state))
  checkpoints.wait()
  found, _ = checkpoints.restore(2, abstract)
  assert found.frozen == {}
  jax.tree.map(np.testing.assert_array_equal, found, state.replace(frozen={}))
  whole = train_step.abstract_params(built)
  read = checkpoints.restore_params(2, whole)
  np.testing.assert_array_equal(read['kernel'], merged(state)['kernel'])
  checkpoints.close()


@pytest.mark.parametrize(
  ('models', 'message'),
  [
    ({'model': {'workdir': 'x'}}, 'models.model'),
    ({'teacher': {'workdir': ''}}, 'models.teacher: give either'),
    (
      {'teacher': {'path': 'x'}},
      'models.teacher has the keys frozen, model, path, shared, step, not',
    ),
    ({'teacher': {'workdir': 'x', 'shared': ('embedding',)}}, 'models.teacher.shared=.*a workdir'),
    ({'teacher': {'workdir': '/nowhere'}}, "models.teacher.workdir='/nowhere': no run there"),
  ],
)
def test_wrong_models_are_named_in_one_line(folder, models, message):
  config = config_of(folder)
  section = {'step': None, 'frozen': True, 'model': {}, 'shared': ()}
  with config.unlocked():
    config.models = {name: {**section, **changes} for name, changes in models.items()}
  with pytest.raises(UserError, match=message):
    build_components(config, 300)
