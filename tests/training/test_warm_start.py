"""Runs that begin with the parameters of another one."""

import json
import os
import shutil
import subprocess
import sys

import in_process
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from lm import components
from lm.errors import UserError
from lm.training import trainer, warm_start
from lm.training.train_step import abstract_state
from lm.types import TrainState
from lm.workdir import experiment, load, run_data
from lm.workdir.checkpoints import Checkpoints

PARAMS = {
  'embedding': np.arange(8.0).reshape(4, 2),
  'decoder': {
    'position': np.arange(6.0).reshape(3, 2),
    'layers': {'layer_0': {'mlp': {'up': {'kernel': np.arange(12.0).reshape(2, 2, 3)}}}},
  },
}
UP = 'layers/layer_0/mlp/up/kernel'
TOKENS = ('<|end|>', 'a', 'b', 'c')
BEST = 'eval/validation/loss'
UNSCORED = f'the newest, because none has a score by {BEST}'


def tokenizer_of(*tokens):
  table = {token: i for i, token in enumerate(tokens)}
  return tokenizers.Tokenizer(tokenizers.models.WordLevel(table, unk_token=tokens[0]))


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """A workdir with PARAMS at step 7 and ten times as much at step 3."""
  workdir = tmp_path_factory.mktemp('source')
  (workdir / 'config.json').write_text(f'{{"checkpoint": {{"monitor": "{BEST}"}}}}')
  tokenizer_of(*TOKENS).save(str(workdir / 'tokenizer.json'))
  checkpoints = Checkpoints(workdir)
  for step, factor in ((3, 10), (7, 1)):
    params = jax.tree.map(lambda x, by=factor: jnp.asarray(by * x, jnp.float32), PARAMS)
    counters = {name: jnp.int32(step) for name in ('step', 'skipped', 'streak')}
    checkpoints.save(step, TrainState(**counters, params=params, opt_state=()))
  checkpoints.wait()
  checkpoints.close()
  return workdir


def take(source, shapes, *rules, step=None, tokens=TOKENS):
  """Takes into parameters of these shapes, by path, that were all drawn as -1."""
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = {k: jax.ShapeDtypeStruct(s, jnp.float32, sharding=sharding) for k, s in shapes.items()}
  section = ConfigDict({'workdir': str(source), 'step': step, 'rules': rules})

  def draw(paths):
    return {path: jnp.full(shapes[path], -1.0) for path in paths}

  wanted = unflatten_dict(abstract, sep='/')
  params, taken = warm_start.take(section, draw, wanted, tokenizer_of(*tokens))
  return flatten_dict(params, sep='/'), taken


SAME = {'embedding': (4, 2), 'decoder/position': (3, 2), f'decoder/{UP}': (2, 2, 3)}


@pytest.mark.parametrize(('step', 'factor'), [(None, 1), (7, 1), (3, 10)])
def test_equal_trees_are_taken_whole_from_the_newest_step_or_the_one_named(source, step, factor):
  found, taken = take(source, SAME, step=step)
  expected = flatten_dict(PARAMS, sep='/')
  assert found.keys() == expected.keys()
  for name, x in expected.items():
    np.testing.assert_array_equal(found[name], factor * x)
  why = '' if step else UNSCORED
  assert taken == warm_start.Taken(str(source), step or 7, 3, (), (), why=why)


@pytest.mark.parametrize(
  ('shapes', 'message'),
  [
    (SAME | {'head/kernel': (3, 2)}, 'missing head/kernel; .*warm_start.rules'),
    (
      {k: v for k, v in SAME.items() if 'pos' not in k},
      'extra decoder/position; .*warm_start.rules',
    ),
    (
      SAME | {'embedding': (5, 2)},
      r'embedding is \(4, 2\) and should be \(5, 2\); .*warm_start.rules',
    ),
    (
      {k.replace('position', 'positions'): v for k, v in SAME.items()},
      r"missing decoder/positions \(did you mean 'decoder/position'\?\); extra decoder/position;",
    ),
  ],
)
def test_trees_that_differ_are_told_in_one_line(source, shapes, message):
  with pytest.raises(UserError, match=f'step 7 does not fit the model: {message}') as error:
    take(source, shapes)
  assert '\n' not in str(error.value)


def test_rules_rename_and_keep_what_was_drawn_and_tell_what_is_left(source):
  shapes = {'embedding': (4, 2), f'encoder/{UP}': (2, 2, 3), 'head/kernel': (5, 2)}
  found, taken = take(source, shapes, '^encoder/ -> decoder/', 'head/ ->')
  np.testing.assert_array_equal(found['embedding'], PARAMS['embedding'])
  np.testing.assert_array_equal(found[f'encoder/{UP}'], np.arange(12.0).reshape(2, 2, 3))
  assert (np.asarray(found['head/kernel']) == -1).all()
  assert (taken.taken, taken.fresh, taken.unread) == (2, ('head/kernel',), ('decoder/position',))
  assert taken.line() == (
    f'2 parameters from step 7 of {source} ({UNSCORED}), 1 freshly initialized (head/kernel); '
    '1 others are not used (decoder/position)'
  )


def test_the_first_rule_that_is_found_counts(source):
  rules = (r'(posi)tion$ -> \1tion', 'tion ->', 'r/pos -> nowhere')
  found, _ = take(source, SAME, *rules)
  np.testing.assert_array_equal(found['decoder/position'], PARAMS['decoder']['position'])
  found, taken = take(source, SAME, *rules[1:])
  assert (np.asarray(found['decoder/position']) == -1).all()
  assert taken.fresh == taken.unread == ('decoder/position',)


def test_what_no_rule_is_about_stays_strict(source):
  with pytest.raises(UserError, match=r'decoder/position is \(3, 2\) and should be \(9, 2\)'):
    take(source, SAME | {'decoder/position': (9, 2), 'head/kernel': (1, 1)}, 'head/ ->')
  # Here the rule leads nowhere, and the name that is near is told.
  with pytest.raises(UserError, match=r"missing embeding \(did you mean 'embedding'\?\)"):
    take(source, SAME, 'embedding -> embeding')


def test_the_first_rows_of_a_table_are_taken_and_the_rest_stay_as_drawn(source):
  rule = '(embedding|position)$ -> \\1[rows]'
  shapes = SAME | {'embedding': (6, 2), 'decoder/position': (2, 2)}
  found, taken = take(source, shapes, rule, tokens=(*TOKENS, '<|sep|>', '<|mask|>'))
  np.testing.assert_array_equal(found['embedding'][:4], PARAMS['embedding'])
  assert (np.asarray(found['embedding'][4:]) == -1).all()
  np.testing.assert_array_equal(found['decoder/position'], PARAMS['decoder']['position'][:2])
  assert (taken.taken, taken.fresh, taken.unread) == (3, (), ())
  with pytest.raises(UserError, match=r'embedding is \(4, 2\) and should be \(4, 3\)'):
    take(source, SAME | {'embedding': (6, 3)}, rule)


def test_two_parameters_may_take_the_same_one(source):
  rule = '^source_embedding -> embedding'
  found, taken = take(source, SAME | {'source_embedding': (4, 2)}, rule)
  for name in ('embedding', 'source_embedding'):
    np.testing.assert_array_equal(found[name], PARAMS['embedding'])
  assert (taken.taken, taken.unread) == (4, ())
  for wrong, right in (('embedding', 'source_embedding'), ('source_embedding', 'embedding')):
    with pytest.raises(UserError, match=r'embedding is \(4, 2\) and should be \(4, 3\)'):
      take(source, SAME | {wrong: (4, 3), right: (4, 2)}, rule)


def test_rows_of_other_tokens_are_not_taken(source):
  other = ('<|end|>', 'a', 'c', 'b')
  message = r"its token 2 is 'b', here it is 'c'; .*'\^embedding\$ ->'"
  with pytest.raises(UserError, match=message):
    take(source, SAME, tokens=other)
  with pytest.raises(UserError, match=r"'\^head_bias\$ ->'"):  # it has a row for each token, too
    take(
      source,
      SAME | {'head_bias': (4, 2)},
      '^head_bias -> embedding',
      '^embedding$ ->',
      tokens=other,
    )
  found, _ = take(source, SAME, '^embedding$ ->', tokens=other)
  assert (np.asarray(found['embedding']) == -1).all()


@pytest.mark.parametrize(
  ('rules', 'message'),
  [
    (('head/',), "warm_start.rules[0]='head/' is not of the form 'PATTERN -> VALUE'"),
    ((' -> head/',), "warm_start.rules[0]=' -> head/' is not of the form"),
    (('embed ->', '(pos -> x'), "warm_start.rules[1]='(pos' is no regular expression: missing )"),
    (('heads/ ->',), "warm_start.rules[0]='heads/ ->' is found in no parameter path"),
    (
      (r'embed -> \2',),
      r"warm_start.rules: '\\2' is not a valid replacement: invalid group reference 2",
    ),
    (('. ->',), "warm_start.rules=('. ->',) leave no parameter to restore"),
  ],
)
def test_wrong_rules_are_told(source, rules, message):
  with pytest.raises(UserError) as error:
    take(source, SAME, *rules)
  assert message in str(error.value)


def test_a_source_that_cannot_be_read_is_told(source, tmp_path):
  with pytest.raises(UserError, match=r'warm_start.workdir=.*nowhere.*no run there'):
    take(tmp_path / 'nowhere', SAME)
  assert not (tmp_path / 'nowhere').exists()
  with pytest.raises(UserError, match=r'warm_start.step=5: .* has checkpoints at 3, 7'):
    take(source, SAME, step=5)
  copy = shutil.copytree(source, tmp_path / 'copy')
  for file in (copy / 'checkpoints/7/params').rglob('*'):
    if file.is_file():
      file.write_bytes(file.read_bytes()[:50])
  with pytest.raises(
    UserError, match=r'checkpoint 7 is damaged .*; choose another one by warm_start.step'
  ):
    take(copy, SAME)
  assert take(copy, SAME, step=3)[1].step == 3
  shutil.rmtree(copy / 'checkpoints')
  with pytest.raises(UserError, match='no checkpoint there'):
    take(copy, SAME)


SOURCE = """
from ml_collections import ConfigDict
from lm.config.base import base

def get_config(arg=''):
  config = base()
  config.steps = 4
  config.batch_size = 4
  config.data.source = "lm.data.sources:text(files={corpus!r}, validation=0.1, documents='line')"
  config.data.tokenizer = ConfigDict({{'fn': 'lm.text.tokenizers:bytes'}})
  config.data.seq_len = 16
  config.model.update({{'context': 16, 'd_model': 16, 'depth': 2, 'heads': 2, 'kv_heads': 2,
                       'head_dim': 8, 'd_mlp': 32}})
  config.optim.warmup_steps = 2
  config.checkpoint.every = 2
  config.log.every = 1
  config.log.sample_prompts = ()
  return config
"""


class Never:
  signal = None

  def begin(self):
    pass


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with an experiment and a run of it, `pretrained`."""
  folder = tmp_path_factory.mktemp('init')
  corpus = folder / 'corpus.txt'
  corpus.write_text('\n'.join(f'{n} times {n} is {n * n}.' for n in range(200)))
  (folder / 'tiny_init.py').write_text(SOURCE.format(corpus=str(corpus)))
  run(folder, 'pretrained')
  return folder


def run(folder, name, until_step=None, **changes):
  path = str(folder / 'tiny_init.py')
  config = experiment.load(path)
  config.update_from_flattened_dict(changes)
  trainer.train(config, path, folder / name, Never(), until_step)
  return folder / name


def lines(file):
  return [json.loads(line) for line in file.read_text().splitlines()]


def losses(workdir):
  rows = lines(workdir / 'metrics.jsonl')
  return {row['step']: row['train/loss'] for row in rows if 'train/loss' in row}


# More than 5 seconds: it trains twice.
def test_a_run_begins_where_another_ended_and_says_so(folder):
  changes = {
    'warm_start.workdir': str(folder / 'pretrained'),
    'optim.learning_rate': 0.0,
    'seed': 1,
  }
  workdir = run(folder, 'still', **changes)
  pretrained, still = (load.load(folder / name).params for name in ('pretrained', 'still'))
  jax.tree.map(np.testing.assert_array_equal, still, pretrained)
  (event,) = [e for e in lines(workdir / 'events.jsonl') if e['event'] == 'warm_start']
  leaves = len(jax.tree.leaves(pretrained))
  assert event['source'] == str(folder / 'pretrained') and event['source_step'] == 4
  assert (event['taken'], event['fresh'], event['unread']) == (leaves, 0, 0)


def test_the_rest_of_the_state_is_that_of_a_new_run(folder):
  config = experiment.load(str(folder / 'tiny_init.py'))
  config.warm_start.workdir = str(folder / 'pretrained')
  tokenizer = experiment.read_tokenizer(folder / 'pretrained')
  functions = components.build_components(config, tokenizer.get_vocab_size())
  abstract, _ = abstract_state(functions)
  state, _ = warm_start.initial_state(config, functions, tokenizer, abstract)
  pretrained = load.load(folder / 'pretrained').params
  jax.tree.map(np.testing.assert_array_equal, state.params, pretrained)
  rest = jax.tree.leaves(state.replace(params=None))
  assert len(rest) > 3 and all((np.asarray(x) == 0).all() for x in rest)
  for x, wanted in zip(*map(jax.tree.leaves, (state, abstract)), strict=True):
    assert (x.shape, x.dtype, x.sharding) == (wanted.shape, wanted.dtype, wanted.sharding)


def test_another_architecture_of_equal_shapes_is_named(folder):
  config = experiment.load(str(folder / 'tiny_init.py'))
  changes = {'embed_scale': 2.0, 'dropout': 0.1, 'attention_fn': 'lm.nn.attention:blockwise'}
  config.model.update(changes)
  config.warm_start.workdir = str(folder / 'pretrained')
  tokenizer = experiment.read_tokenizer(folder / 'pretrained')
  functions = components.build_components(config, tokenizer.get_vocab_size())
  _, taken = warm_start.initial_state(config, functions, tokenizer, abstract_state(functions)[0])
  assert taken.differences == ('model.embed_scale is 2.0 and 1.0 in the run of warm_start.workdir',)


@pytest.mark.slow
def test_a_resumed_run_takes_nothing_again(folder):
  shutil.copytree(folder / 'pretrained', folder / 'gone')
  changes = {'warm_start.workdir': str(folder / 'gone'), 'warm_start.step': 2}
  whole = run(folder, 'whole', **changes)
  run(folder, 'parts', until_step=2, **changes)
  shutil.rmtree(folder / 'gone')
  parts = run(folder, 'parts', **changes)
  assert losses(parts) == losses(whole) and len(losses(whole)) == 4
  assert len([e for e in lines(parts / 'events.jsonl') if e['event'] == 'warm_start']) == 1
  with pytest.raises(UserError, match=r'was made with warm_start\.step=2, not 4'):
    run(folder, 'parts', **changes | {'warm_start.step': 4})


def train(folder, name, *flags, devices=1):
  count = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={devices}'
  command = [sys.executable, '-m', 'lm.train', f'--config={folder}/tiny_init.py']
  return subprocess.run(
    [*command, f'--workdir={folder / name}', *flags],
    env=os.environ | {'XLA_FLAGS': count},
    capture_output=True,
    text=True,
  )


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (
      ['--config.warm_start.workdir={pretrained}', '--config.model.norm=lm.nn.layers:RMSNorm'],
      'step 4 does not fit the model: extra decoder/final_norm/bias; extra decoder/layers/layer_0/',
    ),
    (
      ['--config.warm_start.workdir={pretrained}', "--config.warm_start.rules=('hed/ ->',)"],
      "warm_start.rules[0]='hed/ ->' is found in no parameter path",
    ),
    (
      ["--config.warm_start.rules=('head/ ->',)"],
      'warm_start.workdir, the run to take from, is empty',
    ),
  ],
)
def test_a_source_that_does_not_fit_is_one_line_and_leaves_no_run(folder, flags, message):
  given = [flag.replace('{pretrained}', str(folder / 'pretrained')) for flag in flags]
  files = (f'--config={folder}/tiny_init.py', f'--workdir={folder / "wrong"}')
  assert message in in_process.mistake('train', *files, *given)
  assert not (folder / 'wrong').exists()


@pytest.mark.slow
def test_a_grown_table_is_taken_onto_another_mesh(folder):
  flags = [
    f'--config.warm_start.workdir={folder / "pretrained"}',
    '--config.model.vocab_multiple=8',  # 264 rows and not 257, which four devices cannot share
    "--config.warm_start.rules=('embedding -> embedding[rows]',)",
  ]
  mesh = ['--config.mesh.fsdp=2', '--config.mesh.tensor=2']
  for name, more, devices in (('one', [], 1), ('four', mesh, 4)):
    result = train(folder, name, *flags, *more, devices=devices)
    assert result.returncode == 0, result.stderr
  assert losses(folder / 'four') == pytest.approx(losses(folder / 'one'), rel=1e-5)
  fresh = train(folder, 'fresh', '--config.model.vocab_multiple=8')
  assert fresh.returncode == 0, fresh.stderr
  assert losses(folder / 'one')[1] < losses(folder / 'fresh')[1]


@pytest.mark.parametrize(('higher', 'best'), [(True, 3), (False, 7)])
def test_the_best_checkpoint_is_taken_unless_a_step_is_named(source, higher, best, tmp_path):
  copy = shutil.copytree(source, tmp_path / 'scored')
  run_data.write_directions(copy, {BEST: higher})
  rows = [{'step': 3, BEST: 2.0}, {'step': 7, BEST: 1.0}]
  (copy / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  taken = take(copy, SAME)[1]
  assert taken.step == best
  assert f'step {best} of {copy} (the best by {BEST})' in taken.line()
  named = take(copy, SAME, step=10 - best)[1]
  assert named.step == 10 - best and 'the best by' not in named.line()
