"""The loop as a whole: what a run leaves behind, and how it goes on after any kind of end."""

import dataclasses
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest

from lm.errors import Preempted, UserError
from lm.training import trainer
from lm.training.callbacks import open_callbacks
from lm.workdir import checkpoints, experiment, load
from lm.workdir.metrics_writer import read_lines
from lm.workdir.run_data import read_run

FILE = 'tiny.py'
SOURCE = """
from ml_collections import ConfigDict
from lm.config.base import base

def get_config(arg=''):
  config = base()
  config.steps = 8
  config.batch_size = 4
  config.data.source = "lm.data.sources:text(files={corpus!r}, validation=0.1, documents='line')"
  config.data.tokenizer = ConfigDict({{'fn': 'lm.text.tokenizers:bytes'}})
  config.data.seq_len = 16
  config.model.update({{'context': 16, 'd_model': 16, 'depth': 2, 'heads': 2, 'kv_heads': 2,
                       'head_dim': 8, 'd_mlp': 32, 'dropout': 0.1}})
  config.optim.warmup_steps = 2
  config.eval.every = 4
  config.checkpoint.every = 3
  config.checkpoint.keep_last = 10
  config.log.every = 1
  config.log.sample_tokens = 4
  return config

def mask(row, rng):
  return row | {{'weights': 0 * row['weights']}}

def aside(z_loss, label_smoothing, logits_chunk):
  from lm.types import Objective
  sums = lambda apply, params, batch, key: {{'loss': (params['embedding'] ** 2).sum()}}
  return Objective(sums, lambda batch: {{'loss': batch['weights'].sum()}})

def lengths(config, functions, tokenizer):
  from lm.evaluation.evaluators import Evaluation, Evaluator
  def run(step, params):
    return Evaluation({{'eval/words': step / 2}}, texts=[('of', ' lengths')],
                      files={{'lengths/words': {{'longest': 7}}}})
  return Evaluator(run, lambda params: {{'eval/words': True}}, notes={{'lengths': 'two words'}})

def losses_again(config, functions, tokenizer):
  from lm.evaluation.evaluators import Evaluation, Evaluator
  return Evaluator(lambda step, params: Evaluation(), lambda params: {{'eval/words': None}})

SEEN = []

def record(every):
  def norm(step, state, metrics):
    SEEN.append((step, int(state.step), float((state.params['embedding'] ** 2).sum()), metrics))
  return every, norm

def fails():
  return 2, lambda step, state, metrics: metrics['nothing']

def poison(row, rng):
  return row | {{'weights': row['weights'] * float('nan')}}
"""
TIMES = ('train/tokens_per_second', 'train/step_seconds', 'train/data_seconds', 'train/mfu')


@dataclasses.dataclass
class Never:
  """Stands for `host.Signals`; says stop after some questions."""

  after: int = 10**9

  def begin(self):
    pass

  @property
  def signal(self):
    self.after -= 1
    return None if self.after >= 0 else 'SIGTERM'


def made(folder):
  """Puts the experiment and its corpus into a folder, and returns it."""
  corpus = folder / 'corpus.txt'
  corpus.write_text('\n'.join(f'{n} times {n} is {n * n}.' for n in range(200)))
  (folder / FILE).write_text(SOURCE.format(corpus=str(corpus)))
  return folder


@pytest.fixture
def folder(tmp_path):
  return made(tmp_path)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """The folder of the runs that tests share; a test that changes one takes a copy."""
  return made(tmp_path_factory.mktemp('loop'))


@pytest.fixture(scope='module')
def whole(home):
  """The run from its first step to its last."""
  return run(home, 'whole')


@pytest.fixture(scope='module')
def five(home):
  """The run, stopped after five of its eight steps; checkpoints are at 3, 4 and 5."""
  return run(home, 'five', until_step=5)


@pytest.fixture
def parts(home, five, request):
  """A copy of `five` beside it, so that the experiment is the same file."""
  return shutil.copytree(five, home / request.node.name)


def run(folder, name, stop=None, until_step=None, **changes):
  path = str(folder / FILE)
  config = experiment.load(path)
  if name != 'whole':  # samples of one run are enough
    config.log.sample_prompts = ()
  config.update_from_flattened_dict(changes)
  trainer.train(config, path, folder / name, stop or Never(), until_step)
  return folder / name


def metrics(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def state_of(workdir, step):
  """Returns every array of a checkpoint, by file-independent names."""
  kept = checkpoints.Checkpoints(workdir)
  restored = kept._manager.restore(step)
  kept.close()
  leaves, _ = jax.tree_util.tree_flatten_with_path(dict(restored.items()))
  return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def assert_same_state(a, b):
  assert a.keys() == b.keys()
  for name in a:
    assert np.array_equal(a[name], b[name]), name


def command(folder, workdir, *more):
  return [
    sys.executable,
    '-m',
    'lm.train',
    f'--config={folder / FILE}',
    f'--workdir={workdir}',
    *more,
  ]


def wait_for(condition, process, seconds=120):
  end = time.time() + seconds
  while not condition():
    assert process.poll() is None, 'the process ended early'
    assert time.time() < end, 'nothing happened'
    time.sleep(0.05)


def steps_logged(workdir):
  file = workdir / 'metrics.jsonl'
  return len(file.read_bytes().splitlines()) if file.exists() else 0


def test_run_leaves_its_record(whole):
  workdir = whole
  names = {p.name for p in workdir.iterdir()}
  assert names >= {
    'config.json',
    'source',
    'metrics.jsonl',
    'events.jsonl',
    'environment.json',
    'tokenizer.json',
    'checkpoints',
    'samples',
    'report.html',
    'tensorboard',
  }
  rows = metrics(workdir)
  assert [r['step'] for r in rows if 'train/loss' in r] == list(range(1, 9))
  evaluated = [r for r in rows if 'eval/validation/loss' in r]
  assert [r['step'] for r in evaluated] == [4, 8]
  last = evaluated[-1]
  assert last['eval/validation/perplexity'] == pytest.approx(np.exp(last['eval/validation/loss']))
  assert {int(p.stem) for p in (workdir / 'samples').iterdir()} == {4, 8}
  loaded = load.load(workdir)
  assert loaded.step == 8
  assert loaded.params.keys() >= {'embedding', 'decoder'}
  events = [json.loads(x)['event'] for x in (workdir / 'events.jsonl').read_text().splitlines()]
  assert events[0] == 'start' and events[-1] == 'done'


# More than 5 seconds: it trains twice.
def test_resumed_run_equals_the_whole_run_bit_for_bit(home, whole, parts):
  run(home, parts.name)
  assert_same_state(state_of(whole, 8), state_of(parts, 8))
  assert metrics(whole) == metrics(parts)


@pytest.mark.slow
def test_frozen_parameters_survive_a_resume(folder):
  # What is frozen has no moments: a hole in the optimizer's state, on the mesh and on disk.
  frozen = 'embedding|attention'
  source = (folder / FILE).read_text()
  (folder / FILE).write_text(
    source.replace('config.optim.warmup_steps = 2', f'config.optim.freeze = {frozen!r}')
  )
  run(folder, 'parts', until_step=3)
  run(folder, 'parts')
  before, after = state_of(folder / 'parts', 3), state_of(folder / 'parts', 8)
  params = [name for name in before if name.startswith("['params']")]
  assert {bool(re.search(frozen, name)) for name in params} == {True, False}
  for name in params:
    assert np.array_equal(before[name], after[name]) == bool(re.search(frozen, name)), name


# More than 5 seconds: it trains twice.
def test_preempted_run_saves_and_goes_on(home, whole):
  with pytest.raises(Preempted, match='saved step 2'):
    run(home, 'preempted', stop=Never(after=1))
  assert [r['step'] for r in metrics(home / 'preempted')] == [1, 2]
  run(home, 'preempted')
  assert_same_state(state_of(whole, 8), state_of(home / 'preempted', 8))


def test_finished_run_has_nothing_to_do(home, whole):
  before = metrics(whole)
  state = state_of(whole, 8)
  run(home, 'whole')
  assert metrics(whole) == before
  assert_same_state(state_of(whole, 8), state)


@pytest.mark.slow
def test_damaged_checkpoint_is_set_aside_and_the_one_before_taken(home, whole, capsys):
  folder = home
  run(folder, 'parts', until_step=7)
  for file in (folder / 'parts/checkpoints/7').rglob('*'):
    if file.is_file() and 'params' in file.parts and file.stat().st_size > 500:
      file.write_bytes(file.read_bytes()[:100])
  with pytest.raises(UserError, match=r'damaged: 7|--step=7'):
    load.load(folder / 'parts', step=7)
  capsys.readouterr()
  run(folder, 'parts')
  assert 'checkpoint 7 is damaged' in capsys.readouterr().err
  assert any((folder / 'parts/damaged').iterdir())
  assert_same_state(state_of(whole, 8), state_of(folder / 'parts', 8))
  assert metrics(whole) == metrics(folder / 'parts')


def test_no_intact_checkpoint_is_an_error_and_not_a_new_start(home, parts):
  for step in (3, 4, 5):
    for file in (parts / f'checkpoints/{step}').rglob('*'):
      if file.is_file():
        file.write_bytes(b'')
  with pytest.raises(UserError, match='no intact checkpoint'):
    run(home, parts.name)


def test_named_steps_that_are_not_there(parts):
  with pytest.raises(UserError, match=r'--step=7: .* has checkpoints at 3, 4, 5'):
    load.load(parts, step=7)
  shutil.rmtree(parts / 'checkpoints')
  with pytest.raises(UserError, match='no checkpoint there'):
    load.load(parts)
  with pytest.raises(UserError, match='no run there'):
    load.load(parts / 'nowhere')


def test_checkpoint_of_another_shape_is_explained(parts):
  config = parts / 'config.json'
  config.write_text(config.read_text().replace('"d_mlp": 32', '"d_mlp": 48'))
  with pytest.raises(UserError, match=r'mlp/down/kernel is \(2, 32, 16\) and should be \(2, 48'):
    load.load(parts)


@pytest.mark.slow
def test_another_config_or_tokenizer_in_the_workdir(folder):
  run(folder, 'whole', until_step=3)
  with pytest.raises(UserError, match=r'model\.d_mlp=32, not 64'):
    run(folder, 'whole', **{'model.d_mlp': 64})
  with pytest.raises(UserError, match=r'data\.tokenizer\.fn='):
    run(folder, 'whole', **{'data.tokenizer.fn': 'lm.text.tokenizers:characters'})
  run(folder, 'whole', **{'log.every': 2, 'eval.every': 5, 'steps': 6})


@pytest.mark.slow
def test_best_and_newest_checkpoints_are_kept(folder):
  workdir = run(
    folder,
    'whole',
    **{
      'checkpoint.keep_last': 1,
      'checkpoint.every': 1,
      'eval.every': 2,
      'optim.learning_rate': 0.3,
    },
  )
  scores = {
    r['step']: r['eval/validation/loss']
    for r in metrics(workdir)
    if len(r) > 3 and 'eval/validation/loss' in r
  }
  kept = {int(p.name) for p in (workdir / 'checkpoints').iterdir() if p.name.isdigit()}
  assert kept == {8, min(scores, key=scores.get)}


def test_steps_that_are_not_finite_stop_the_run_with_evidence(folder):
  with pytest.raises(FloatingPointError, match='3 steps in a row'):
    run(folder, 'whole', **{'data.transforms': ('tiny:poison',), 'max_consecutive_nonfinite': 3})
  evidence = json.loads((folder / 'whole/nonfinite/3.json').read_text())
  assert evidence['parameters'] == {} and 'embedding' in evidence['gradients']
  assert np.isnan(np.load(folder / 'whole/nonfinite/3.npz')['weights']).all()
  assert evidence['metrics']['streak'] == '3.0' and evidence['parameters_after_step'] >= 3


def test_a_run_without_targets_does_not_begin(folder):
  with pytest.raises(UserError, match='all targets in the first batch have weight 0'):
    run(folder, 'whole', **{'data.transforms': ('tiny:mask',)})
  assert not (folder / 'whole').exists()


def test_a_parameter_without_a_gradient_stops_the_run_at_step_1(folder):
  changes = {'objective.fn': 'tiny:aside', 'eval.every': 2, 'checkpoint.every': 2}
  with pytest.raises(UserError, match=r'decoder/\S+ and of \d+ more is exactly 0 in step 1'):
    run(folder, 'refused', **changes, steps=2)
  assert not [p for p in (folder / 'refused/checkpoints').iterdir() if p.name.isdigit()]
  run(folder, 'allowed', **changes, steps=2, allow_zero='^decoder/')


@pytest.mark.slow
def test_a_finished_run_that_goes_on_says_how_its_rate_jumps(folder, capsys):
  linear = {
    'optim.schedule': 'lm.optim.optimizers:linear',
    'optim.warmup_steps': 0,
    'eval.every': 100,
  }
  run(folder, 'longer', **linear, steps=2)
  capsys.readouterr()
  workdir = run(folder, 'longer', **linear, steps=4)
  assert 'optim.decay_steps=4 and no longer 2' in capsys.readouterr().err
  lines = (workdir / 'events.jsonl').read_text().splitlines()
  (event,) = [e for e in map(json.loads, lines) if e['event'] == 'schedule']
  # A line from 1e-3 to 1e-4: at its end, and in the middle of one twice as long.
  found = [event[name] for name in ('step', 'before', 'after')]
  assert found == pytest.approx([2, 1e-4, 5.5e-4])


@pytest.mark.slow
def test_killed_run_goes_on_as_if_nothing_had_happened(folder):
  changes = ('--config.steps=60', '--config.checkpoint.every=7', '--config.eval.every=50')
  workdir = folder / 'killed'
  process = subprocess.Popen(command(folder, workdir, *changes), stderr=subprocess.DEVNULL)
  wait_for(lambda: steps_logged(workdir) > 16, process)
  process.kill()
  process.wait()
  with open(workdir / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 59, "train/lo')
  subprocess.run(command(folder, workdir, *changes), check=True, capture_output=True)
  whole = run(folder, 'whole', **{'steps': 60, 'checkpoint.every': 7, 'eval.every': 50})
  assert metrics(workdir) == metrics(whole)
  assert_same_state(state_of(workdir, 60), state_of(whole, 60))


# More than 5 seconds: a real process starts, trains and saves.
def test_sigterm_exits_75_with_the_step_saved(folder):
  workdir = folder / 'stopped'
  changes = ('--config.steps=100000', '--config.eval.every=100000')
  process = subprocess.Popen(
    command(folder, workdir, *changes, '--config.checkpoint.every=100000'),
    stderr=subprocess.PIPE,
    text=True,
  )
  wait_for(lambda: steps_logged(workdir) > 3, process)
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 75, errors
  saved = max(int(p.name) for p in (workdir / 'checkpoints').iterdir() if p.name.isdigit())
  assert metrics(workdir)[-1]['step'] == saved
  assert f'saved step {saved}' in errors.splitlines()[-1]


@pytest.mark.slow
def test_full_disk_while_saving_costs_neither_run_nor_older_checkpoint(folder):
  workdir = folder / 'full'
  changes = ('--config.steps=100000', '--config.eval.every=100000', '--config.log.every=100000')
  process = subprocess.Popen(
    command(folder, workdir, *changes, '--config.checkpoint.every=20'),
    stderr=subprocess.PIPE,
    text=True,
  )
  wait_for((workdir / 'checkpoints/20').exists, process)
  # Files may not grow beyond 4 kB from here on: checkpoints fail as on a full disk.
  resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
  failures = 0
  for line in process.stderr:  # two of them: training went on after the first
    failures += 'saving failed' in line
    if failures == 2:
      break
  process.kill()
  process.communicate()
  assert failures == 2
  assert load.load(workdir).step >= 20


def test_an_evaluator_of_the_experiment_is_monitored(folder):
  """A function of the experiment file gives values, files and samples; no report is written."""
  changes = {'eval.evaluators': ('tiny:lengths',), 'report': ''}
  changes |= {'checkpoint.monitor': 'eval/words', 'checkpoint.keep_last': 0}
  changes['callbacks'] = ('tiny:record(every=4)',)
  workdir = run(folder, 'lengths', **changes, steps=8)
  seen = sys.modules['tiny'].SEEN
  assert [found[:2] for found in seen] == [(4, 4), (8, 8)]
  logged = {row['step']: row['train/loss'] for row in metrics(workdir) if 'train/loss' in row}
  assert [found[3]['loss'] for found in seen] == [logged[4], logged[8]]
  # A callback receives the state of its step, which the checkpoint has too.
  embedding = np.square(state_of(workdir, 8)["['params']['embedding']"]).sum()
  assert seen[1][2] == pytest.approx(embedding, rel=1e-6) != pytest.approx(seen[0][2], rel=1e-6)
  found = read_run(workdir)
  assert found.series['eval/words'].values.tolist() == [2.0, 4.0]
  assert json.loads((workdir / 'lengths/words-8.json').read_text()) == {'step': 8, 'longest': 7}
  assert not (workdir / 'lengths/words-4.json').exists()
  assert found.samples[0][1] == [('sample 1', 'of', ' lengths')]
  assert [x['note'] for x in read_lines(workdir / 'events.jsonl') if x['event'] == 'note'] == [
    'two words'
  ]
  assert [p.name for p in (workdir / 'checkpoints').iterdir() if p.name.isdecimal()] == ['8']
  assert not (workdir / 'report.html').exists()


def test_callbacks_end_dispatches_and_name_themselves_where_they_fail(folder):
  config = experiment.load(str(folder / FILE))
  config.update({'steps_per_call': 4, 'callbacks': ('tiny:record(every=3)', 'tiny:fails')})
  config.eval.every = config.checkpoint.every = 8
  both = open_callbacks(config.callbacks)
  given = types.SimpleNamespace(config=config, callbacks=both[:1])
  spans = [(span.start, span.stop) for span in trainer.Trainer._dispatches(given, 0, 11)]
  assert spans == [(0, 3), (3, 6), (6, 8), (8, 9), (9, 11)]
  with pytest.raises(RuntimeError) as error:
    both[1](6, None, {})
  assert str(error.value) == "callbacks[1]='tiny:fails' failed at step 6: KeyError: 'nothing'"
  for path in ('tiny:lengths', 'tiny:record(every=0)', 'tiny:no'):
    with pytest.raises(UserError, match=r'^callbacks\[0\]'):
      open_callbacks((path,))


@pytest.mark.parametrize(
  ('evaluators', 'message'),
  [
    (('tiny:lengths', 'tiny:losses_again'), "two evaluators have a value 'eval/words'"),
    (('tiny:mask',), 'eval.evaluators: '),
    (('tiny:no',), "has no function 'no'"),
    (('lm.metrics.tokens:targets',), 'eval.evaluators'),
  ],
)
def test_wrong_evaluators_are_refused_in_one_line(folder, evaluators, message):
  with pytest.raises(UserError) as error:
    run(folder, 'wrong', **{'eval.evaluators': evaluators})
  assert message in str(error.value) and '\n' not in str(error.value)
  assert not (folder / 'wrong').exists()
