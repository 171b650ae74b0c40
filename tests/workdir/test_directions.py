"""The best step, early stopping and the report use the direction that a metric declares."""

import json

import pytest
from ml_collections import ConfigDict

from lm.config import resolve
from lm.config.base import base
from lm.errors import UserError
from lm.evaluation import evaluators
from lm.metrics import word_vectors
from lm.training import early_stopping
from lm.workdir import run_data
from lm.workdir.checkpoints import kept_steps
from lm.workdir.run_data import best_step, losses_by_step

# Written by hand: a lower loss or error is better.
DIRECTIONS = {
  'lm.metrics.tokens:cross_entropy': {'loss': False, 'perplexity': False},
  'lm.metrics.tokens:targets': {'loss': False, 'perplexity': False, 'accuracy': True},
  'lm.metrics.tokens:language_model': {
    'loss': False,
    'perplexity': False,
    'accuracy': True,
    'bits_per_byte': False,
  },
  'lm.metrics.tokens:squared_error': {'loss': False, 'absolute_error': False},
  'lm.tasks.extractive_qa:metric': {'loss': False, 'accuracy': True},
  'lm.metrics.translation:bleu(language="en")': {'bleu': True},
  'lm.metrics.translation:chrf(word_order=1)': {'chrf_plus': True},
  'lm.metrics.translation:chrf(word_order=2)': {'chrf_plus_plus': True},
  'lm.metrics.translation:ter': {'ter': False},
  'lm.metrics.labels:classification(positive="x")': {
    'accuracy': True,
    'f1': True,
    'f1_positive': True,
  },
  'lm.metrics.labels:tags': {'accuracy': True, 'f1': True},
  'lm.metrics.labels:exact_match': {'exact_match': True},
  'lm.metrics.labels:regression': {'mse': False, 'r2': True, 'pearson': True, 'spearman': True},
  'lm.metrics.answers:squad': {'exact_match': True, 'f1': True},
  'lm.metrics.answers:cmrc': {'exact_match': True, 'f1': True},
  'lm.metrics.spans:entities': {
    'precision': True,
    'recall': True,
    'f1': True,
    'accuracy': True,
  },
  'lm.metrics.spans:segmentation': {'precision': True, 'recall': True, 'f1': True},
}


@pytest.mark.parametrize('path', DIRECTIONS)
def test_every_metric_declares_its_values(path):
  assert resolve.call(resolve.resolve(path, 'key'), 'key').higher_is_better == DIRECTIONS[path]


@pytest.mark.parametrize(
  ('path', 'outputs', 'references'),
  [
    ('lm.metrics.translation:bleu(language="en")', ['a b'], ['a b']),
    ('lm.metrics.translation:chrf(word_order=2)', ['a b'], ['a b']),
    ('lm.metrics.translation:ter', ['a b'], ['a b']),
    ('lm.metrics.labels:classification(positive="x")', ['x', 'y'], ['x', 'x']),
    ('lm.metrics.labels:tags', [['x']], [['x']]),
    ('lm.metrics.labels:exact_match', ['x'], ['x']),
    ('lm.metrics.labels:regression', [1.0, 2.0], [1.0, 3.0]),
    ('lm.metrics.answers:squad', ['x'], ['x']),
    ('lm.metrics.answers:cmrc', ['x'], ['x']),
    ('lm.metrics.spans:entities', [['B-X']], [['B-X']]),
    ('lm.metrics.spans:segmentation', [[(0, 1)]], [[(0, 1)]]),
  ],
)
def test_a_corpus_metric_returns_its_declared_names(path, outputs, references):
  metric = resolve.call(resolve.resolve(path, 'key'), 'key')
  assert metric(outputs, references).values.keys() == metric.higher_is_better.keys()


def test_analogies_declare_the_directions_of_their_sections(tmp_path):
  file = tmp_path / 'questions.txt'
  file.write_text(': kin\nking queen man woman\n')
  metric = word_vectors.questions(str(file), sections=True)
  own = {'add_accuracy', 'mul_accuracy', 'coverage'}
  assert set(metric.higher_is_better) == own | {f'kin/{name}' for name in own}
  assert set(word_vectors.questions(str(file)).higher_is_better) == own


def _workdir(tmp_path, directions, **values):
  run_data.write_directions(tmp_path, directions)
  lines = [
    {'step': step} | {name: series[step - 1] for name, series in values.items()}
    for step in range(1, 1 + len(next(iter(values.values()))))
  ]
  (tmp_path / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  return tmp_path


def test_the_best_value_follows_the_declared_direction(tmp_path):
  # Names that suggest the opposite direction, or none.
  directions = {'eval/a/inaccuracy': False, 'eval/a/chrf_plus_plus': True, 'eval/a/size': None}
  workdir = _workdir(tmp_path, directions, **{name: [2.0, 1.0, 3.0] for name in directions})
  bests = {name: best_step(workdir, [1, 2, 3], name) for name in directions}
  assert {name: best for name, (best, _) in bests.items()} == {
    'eval/a/inaccuracy': 2,
    'eval/a/chrf_plus_plus': 3,
    'eval/a/size': None,
  }
  assert bests['eval/a/size'][1].startswith('the newest')
  series = run_data.read_run(workdir).series
  assert series['eval/a/inaccuracy'].best(False) == (2, 1.0)
  assert series['eval/a/chrf_plus_plus'].best(True) == (3, 3.0)
  assert series['eval/a/size'].best(None) is None
  assert losses_by_step(workdir, 'eval/a/chrf_plus_plus') == {1: -2.0, 2: -1.0, 3: -3.0}


def test_a_run_stops_in_the_declared_direction():
  config = base()
  config.early_stopping.update({'metric': 'eval/a/reward', 'patience': 1})
  seen = early_stopping.restore(config, None)
  for step, value in enumerate([1.0, 2.0, 3.0], 1):
    seen = early_stopping.update(
      seen, step, {'eval/a/reward': value}, config, higher_is_better=True
    )
  assert (seen.best, seen.best_step, seen.since) == (3.0, 3, 0)


def _monitors(**leaves):
  config = base()
  config.update_from_flattened_dict(leaves)
  return config


def test_a_metric_without_a_direction_cannot_be_monitored():
  directions = {'eval/a/reward': None, 'eval/a/loss': False}
  early_stopping.check_monitored(_monitors(**{'checkpoint.monitor': 'eval/a/loss'}), directions)
  with pytest.raises(UserError) as error:
    early_stopping.check_monitored(_monitors(**{'checkpoint.monitor': 'eval/a/reward'}), directions)
  assert "checkpoint.monitor='eval/a/reward'" in str(error.value)
  assert "higher_is_better={'reward': True}" in str(error.value)
  wrong = {
    'checkpoint.monitor': 'eval/a/loss',
    'early_stopping.patience': 1,
    'early_stopping.metric': 'eval/a/reward',
  }
  with pytest.raises(UserError, match=r"early_stopping\.metric='eval/a/reward'"):
    early_stopping.check_monitored(_monitors(**wrong), directions)
  with pytest.raises(UserError, match=r"monitor='eval/a/los' is no metric .*mean 'eval/a/loss'"):
    early_stopping.check_monitored(_monitors(**{'checkpoint.monitor': 'eval/a/los'}), directions)
  # Without best checkpoints the name of the metric does not matter.
  nothing = {'checkpoint.monitor': 'eval/a/los', 'checkpoint.keep_best': 0}
  early_stopping.check_monitored(_monitors(**nothing), directions)


def test_two_metrics_of_one_name_are_refused():
  evaluators.check_disjoint(['loss'], ['accuracy'], 'metrics of the set')
  with pytest.raises(UserError, match="two metrics of the set have a value 'loss'"):
    evaluators.check_disjoint({'loss': 1.0}, {'accuracy': 1, 'loss': 1}, 'metrics of the set')


def test_without_a_score_the_newest_checkpoint_is_kept_and_loaded(tmp_path):
  directions = {'eval/a/loss': False}
  workdir = _workdir(tmp_path, directions, **{'eval/a/loss': ['NaN', 'NaN']})
  assert kept_steps([1, 2], losses_by_step(workdir, 'eval/a/loss'), last=0, best=1) == {2}
  assert best_step(workdir, [1, 2], 'eval/a/loss')[0] is None
  assert losses_by_step(workdir, 'eval/a/loss') == {}
  # A workdir without metrics.json.
  (tmp_path / 'metrics.json').unlink()
  assert losses_by_step(workdir, 'eval/a/loss') == {}


def test_a_run_without_a_best_or_a_newest_checkpoint_is_refused():
  config = _monitors(**{'checkpoint.keep_last': 0})
  config.eval.sets = ConfigDict()
  with pytest.raises(UserError, match=r'checkpoint\.keep_last=0 keeps no'):
    early_stopping.check_monitored(config, {'eval/vectors/mean_length': None})
  early_stopping.check_monitored(config, {'eval/validation/loss': False})
