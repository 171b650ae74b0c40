"""Runs that end when a metric no longer improves, however often they are interrupted."""

import json
import math

import in_process
import jax
import numpy as np
import pytest

from lm.config import validate
from lm.config.base import base
from lm.errors import UserError
from lm.evaluation.evaluators import Evaluators
from lm.training import early_stopping, trainer
from lm.training.early_stopping import Stopping
from lm.workdir import checkpoints, experiment, run_data

SOURCE = """
from ml_collections import ConfigDict
from lm.config.base import base

def get_config(arg=''):
  config = base()
  config.steps = 30
  config.batch_size = 4
  config.data.source = "lm.data.sources:text(files={corpus!r}, validation=0.1, documents='line')"
  config.data.tokenizer = ConfigDict({{'fn': 'lm.text.tokenizers:bytes'}})
  config.data.seq_len = 16
  config.model.update({{'context': 16, 'd_model': 16, 'depth': 2, 'heads': 2, 'kv_heads': 2,
                       'head_dim': 8, 'd_mlp': 32}})
  config.optim.learning_rate = 0.3
  config.optim.warmup_steps = 2
  config.eval.every = 2
  config.checkpoint.every = 3
  config.checkpoint.keep_last = 100
  config.log.every = 1
  config.log.sample_prompts = ()
  config.early_stopping.patience = 2
  return config
"""
LOSS = 'eval/validation/loss'


class Never:
  signal = None

  def begin(self):
    pass


def section(metric=LOSS, **leaves):
  config = base()
  config.early_stopping.update({'metric': metric, 'patience': 2} | leaves)
  return config


def over_at(metric, values, **leaves):
  """Returns after which of the values, from 1, the patience is out, and what was seen then."""
  config = section(metric, **leaves)
  seen = early_stopping.restore(config, None)
  for step, value in enumerate(values, 1):
    seen = early_stopping.update(seen, step, {metric: value}, config, metric.endswith('bleu'))
    if early_stopping.should_stop(seen, config):
      return step, seen
  return None, seen


@pytest.mark.parametrize(
  ('metric', 'values', 'leaves', 'step', 'best'),
  [
    (LOSS, [3, 2, 2.5, 2.1], {}, 4, (2, 2)),
    (LOSS, [3, 2, 2.5, 1.9, 1.9, 1.9], {}, 6, (1.9, 4)),
    (LOSS, [3, 2, 2.5, 2.1], {'patience': 3}, None, (2, 2)),
    (LOSS, [3, 3], {'patience': 1}, 2, (3, 1)),
    ('eval/validation/bleu', [3, 2, 2.5], {}, 3, (3, 1)),
    ('eval/validation/bleu', [3, 2, 4, 3.5, 5], {}, None, (5, 5)),
    # What is gained little by little counts once it is enough.
    (LOSS, [3, 2.8, 2.4, 2.2, 2.0], {'min_delta': 0.5}, 5, (2.4, 3)),
    (LOSS, [3, 2.5], {'min_delta': 0.5, 'patience': 1}, 2, (3, 1)),
    (LOSS, [math.nan, 3, math.nan, -math.inf], {}, 4, (3, 2)),
    (LOSS, [math.nan, math.inf], {}, 2, (None, None)),
  ],
)
def test_the_patience_by_hand(metric, values, leaves, step, best):
  found, seen = over_at(metric, values, **leaves)
  assert found == step
  assert (seen.best, seen.best_step) == best


def test_what_was_seen_of_another_metric_does_not_count():
  saved = Stopping(LOSS, 2.0, 5, 1)
  assert early_stopping.restore(section(), saved._asdict()) == saved
  assert early_stopping.restore(section('eval/validation/bleu'), saved._asdict()).since == 0
  assert early_stopping.restore(section(patience=0), saved._asdict()) is None


@pytest.mark.parametrize('leaf', [{'patience': -1}, {'min_delta': -0.1}, {'min_delta': math.nan}])
def test_values_out_of_range_are_refused(leaf):
  ((key, value),) = leaf.items()
  with pytest.raises(UserError, match=rf'^early_stopping\.{key}={value} is out of range'):
    validate.validate_config(section(**leaf))


@pytest.mark.parametrize('metric', ['eval/valid/loss', 'train/loss'])
def test_a_metric_of_no_evaluation_is_refused(metric):
  with pytest.raises(UserError, match=rf"^early_stopping\.metric='{metric}' is no metric"):
    early_stopping.check_monitored(section(metric), {LOSS: False})


def test_an_empty_metric_is_that_of_the_best_checkpoint():
  config = section('')
  config.checkpoint.monitor = 'eval/nowhere/bleu'
  config.checkpoint.keep_best = 0
  with pytest.raises(UserError, match=r"^checkpoint\.monitor='eval/nowhere/bleu' is no metric"):
    early_stopping.check_monitored(config, {LOSS: False})
  assert early_stopping.restore(config, None) == Stopping('eval/nowhere/bleu')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with an experiment and a run of it, `whole`, that stopped early."""
  folder = tmp_path_factory.mktemp('stopping')
  corpus = folder / 'corpus.txt'
  corpus.write_text('\n'.join(f'{n} times {n} is {n * n}.' for n in range(200)))
  (folder / 'tiny_stop.py').write_text(SOURCE.format(corpus=str(corpus)))
  run(folder, 'whole')
  return folder


def run(folder, name, until_step=None, **changes):
  path = str(folder / 'tiny_stop.py')
  config = experiment.load(path)
  config.update_from_flattened_dict(changes)
  trainer.train(config, path, folder / name, Never(), until_step)
  return folder / name


def lines(file):
  return [json.loads(line) for line in file.read_text().splitlines()]


def numbers(workdir):
  """Returns every number by step and name, but those of time."""
  found = {}
  for row in lines(workdir / 'metrics.jsonl'):
    for name, value in row.items():
      if name.startswith('eval/') or name in ('train/loss', 'train/gradient_norm'):
        found[row['step'], name] = value
  return found


def saved(workdir):
  """Returns what each checkpoint holds, by step."""
  kept = checkpoints.Checkpoints(workdir)
  found = {step: kept._manager.restore(step) for step in kept.steps()}
  kept.close()
  return {step: dict(items.items()) for step, items in found.items()}


def assert_same(a, b):
  assert numbers(a) == numbers(b)
  ours, theirs = saved(a), saved(b)
  last = max(ours)
  assert last == max(theirs)
  assert ours[last]['stopping'] == theirs[last]['stopping']
  for x, y in zip(*(jax.tree.leaves(s[last]) for s in (ours, theirs)), strict=True):
    np.testing.assert_array_equal(x, y)


def last_step(workdir):
  return max(step for step, _ in numbers(workdir))


def test_a_run_ends_when_its_metric_has_not_improved(folder):
  workdir = folder / 'whole'
  values = {step: v for (step, name), v in numbers(workdir).items() if name == LOSS}
  # By hand: the first step whose two last evaluations are no better than one before them.
  steps = sorted(values)
  ends = [
    s
    for i, s in enumerate(steps)
    if i >= 2
    and min(values[t] for t in steps[: i - 1]) <= min(values[t] for t in steps[i - 1 : i + 1])
  ]
  assert last_step(workdir) == ends[0] < 30
  *_, stopped, done = lines(workdir / 'events.jsonl')
  assert (stopped['event'], done['event']) == ('stopped_early', 'done')
  best = min(values, key=values.get)
  assert (stopped['metric'], stopped['best'], stopped['best_step']) == (LOSS, values[best], best)
  assert (stopped['step'], stopped['since']) == (ends[0], 2)
  assert run_data.status(run_data.read_run(workdir)).startswith('stopped')


def test_a_checkpoint_holds_what_was_seen_before_its_own_evaluation(folder):
  values = {step: v for (step, name), v in numbers(folder / 'whole').items() if name == LOSS}
  for step, items in saved(folder / 'whole').items():
    _, seen = over_at(LOSS, [v for s, v in sorted(values.items()) if s < step])
    assert (items['stopping']['best'], items['stopping']['since']) == (seen.best, seen.since)


@pytest.mark.slow
def test_the_same_command_again_does_not_go_on_and_more_patience_does(folder):
  workdir = run(folder, 'again')
  before = numbers(workdir)
  assert before == numbers(folder / 'whole')
  run(folder, 'again')
  assert numbers(workdir) == before
  assert [e['event'] for e in lines(workdir / 'events.jsonl')][-2:] == ['stopped_early', 'done']
  run(folder, 'again', **{'early_stopping.patience': 3})
  assert last_step(workdir) > last_step(folder / 'whole')
  assert_same(workdir, run(folder, 'patient', **{'early_stopping.patience': 3}))


@pytest.mark.slow
def test_a_run_in_parts_stops_where_the_whole_one_does(folder):
  last = last_step(folder / 'whole')
  # One that is evaluated, one that is saved only, one that is neither, and the last but one.
  for step in (2, 3, 5, last - 1):
    run(folder, 'parts', until_step=step)
  assert_same(run(folder, 'parts'), folder / 'whole')


@pytest.mark.slow
def test_a_run_killed_between_save_and_evaluation_stops_where_the_whole_one_does(
  folder, monkeypatch
):
  evaluate = Evaluators.run
  last = last_step(folder / 'whole')
  for step in (2, last - 2, last):

    def killed(self, at, *arguments, step=step):
      if at == step:
        raise RuntimeError('killed')
      return evaluate(self, at, *arguments)

    monkeypatch.setattr(Evaluators, 'run', killed)
    with pytest.raises(RuntimeError, match='killed'):
      run(folder, 'killed')
    assert max(saved(folder / 'killed')) == step
  monkeypatch.undo()
  assert_same(run(folder, 'killed'), folder / 'whole')


def test_a_metric_that_is_not_there_is_told_and_costs_nothing(folder):
  with pytest.raises(
    UserError, match=r"early_stopping\.metric='eval/validation/los' is no metric .*\(did"
  ):
    run(folder, 'named', **{'early_stopping.metric': 'eval/validation/los'})
  assert not (folder / 'named').exists()


def test_the_last_step_is_no_early_stop(folder):
  steps = last_step(folder / 'whole')
  workdir = run(folder, 'to the end', steps=steps)
  assert lines(workdir / 'events.jsonl')[-2]['event'] != 'stopped_early'
  assert run_data.status(run_data.read_run(workdir)) == 'done'


def test_without_patience_nothing_is_kept(folder):
  workdir = run(folder, 'endless', until_step=3, **{'early_stopping.patience': 0})
  assert all(
    'stopping' not in items or items['stopping'] is None for items in saved(workdir).values()
  )


def test_a_stopped_run_exits_0_and_says_why(folder):
  given = (f'--config={folder}/tiny_stop.py', f'--workdir={folder / "whole"}')
  result = in_process.run('train', *given)
  assert result.returncode == 0, result.stderr
  step = last_step(folder / 'whole')
  assert f'stopped early at step {step}: {LOSS} is no better since 2 evaluations' in result.stderr
