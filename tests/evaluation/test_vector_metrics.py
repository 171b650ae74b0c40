"""Evaluations of word vectors: metrics, samples, the map; and runs without sets."""

import json

import numpy as np
import pytest

from lm import components
from lm.config.base import gpt2
from lm.errors import UserError
from lm.evaluation import vectors as word_vectors
from lm.evaluation.evaluators import Evaluators
from lm.evaluation.vectors import of_run, write_run
from lm.metrics.scores import Scores
from lm.metrics.word_vectors import VectorMetric
from lm.parallel.host import Never
from lm.text import tokenizers
from lm.text.vectors import make_vectors, nearest_words
from lm.training import early_stopping, trainer
from lm.workdir import experiment, run_data

WORDS = {'digits': ['one', 'two', 'three'], 'colours': ['red', 'green', 'blue']}
GROUPS = f'lm.metrics.word_vectors:groups(groups={WORDS!r}, name="kinds")'
SOURCE = """
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder
from lm.config.base import base

def get_config(arg=''):
  config = base()
  config.steps = 4
  config.batch_size = 4
  config.data.source = "lm.data.sources:text(files={corpus!r}, validation=0.1, documents='line')"
  config.data.tokenizer = ConfigDict({{'fn': 'lm.text.tokenizers:words'}})
  config.data.seq_len = 16
  with config.unlocked():
    config.model = ConfigDict({{
      'fn': 'lm.models.embeddings:Embeddings',
      'vocab_size': placeholder(int),
      'vocab_multiple': 16,
      'd_model': 8,
      'context': 16,
    }})
    config.eval.sets = ConfigDict()
  config.eval.every = 2
  config.eval.vector_metrics = ({groups!r},)
  config.eval.evaluators = ('lm.evaluation.vectors:word_vectors',)
  config.checkpoint.monitor = 'eval/vectors/kinds/accuracy'
  config.checkpoint.keep_last = 1
  config.allow_zero = '^embedding$'  # output vectors begin at 0
  config.optim.learning_rate = 0.1
  config.optim.warmup_steps = 1
  config.log.sample_prompts = ('one', 'red')
  return config
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('vectors')
  corpus = folder / 'corpus.txt'
  lines = (f'{" ".join(words)} are {kind}' for kind, words in WORDS.items())
  corpus.write_text('\n'.join(list(lines) * 50))
  (folder / 'tiny_vectors.py').write_text(SOURCE.format(corpus=str(corpus), groups=GROUPS))
  return folder


def load(folder):
  return experiment.load(str(folder / 'tiny_vectors.py'))


def train(folder, name, config=None):
  path = str(folder / 'tiny_vectors.py')
  trainer.train(config or load(folder), path, folder / name, Never())
  return folder / name


def evaluations(workdir):
  rows = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return {row['step']: row for row in rows if any(key.startswith('eval/') for key in row)}


@pytest.fixture(scope='module')
def workdir(folder):
  return train(folder, 'run')


def test_a_run_without_sets_measures_its_vectors(workdir):
  found = evaluations(workdir)
  assert sorted(found) == [2, 4]
  vectors = of_run(workdir, 4)
  assert {'one', 'red', 'are'} <= vectors.index.keys() and '<unk>' not in vectors.index
  metrics = word_vectors.of_config(load(workdir.parent))
  expected = word_vectors.scores(metrics, vectors).values
  assert expected.keys() == {'kinds/accuracy', 'kinds/coverage'}
  length = np.linalg.norm(vectors.matrix, axis=1).mean()
  values = {f'eval/vectors/{k}': v for k, v in (expected | {'mean_length': length}).items()}
  assert found[4] == pytest.approx({'step': 4} | values)


def test_the_best_checkpoint_is_that_of_the_vectors(workdir):
  scores = {step: -row['eval/vectors/kinds/accuracy'] for step, row in evaluations(workdir).items()}
  assert run_data.losses_by_step(workdir, 'eval/vectors/kinds/accuracy') == scores
  kept = {int(path.name) for path in (workdir / 'checkpoints').iterdir()}
  assert kept == {4, min(scores, key=scores.__getitem__)}


def test_prompts_are_words_with_their_neighbors(workdir):
  vectors = of_run(workdir, 4)
  ((_, first), (step, last)) = run_data.read_run(workdir).samples
  assert (step, len(first)) == (4, 2)
  for (_, prompt, text), word in zip(last, ('one', 'red'), strict=True):
    others = ', '.join(f'{other} {cos:.2f}' for other, cos in nearest_words(vectors, word, 8))
    assert (prompt, text) == (word, f': {others}')


def test_the_newest_map_is_in_the_report(workdir):
  (file,) = (workdir / 'word_map').iterdir()
  assert file.name == 'embedding-4.json'
  found = json.loads(file.read_text())
  assert found['step'] == 4
  assert found['words'] == list(of_run(workdir).words)
  page = (workdir / 'report.html').read_text()
  assert f'Step 4. {len(found["words"])} words along' in page and 'vectors/kinds' in page


def test_a_finished_run_has_nothing_to_do(workdir):
  before = evaluations(workdir), run_data.read_run(workdir).samples
  train(workdir.parent, 'run')
  assert (evaluations(workdir), run_data.read_run(workdir).samples) == before


def test_vectors_alone_are_measured_without_metrics(folder):
  config = load(folder)
  config.eval.vector_metrics = ()
  config.checkpoint.keep_best = 0
  workdir = train(folder, 'bare', config)
  assert [set(row) for row in evaluations(workdir).values()] == [
    {'step', 'eval/vectors/mean_length'}
  ] * 2
  train(folder, 'bare', config)
  assert [len(texts) for _, texts in run_data.read_run(workdir).samples] == [2, 2]
  assert (workdir / 'word_map/embedding-4.json').exists()


def open_evaluators(config, texts=('one two red', 'one two red')):
  tokenizer = tokenizers.words(texts)
  functions = components.build_components(config, tokenizer.get_vocab_size())
  return Evaluators(config, functions, tokenizer), functions.model


def letters():
  """A metric of a user's own."""
  count = {'letters': 0.0}
  directions = {'letters': False, 'words': None}

  def score(vectors):
    return Scores(count | {'words': len(vectors.words)})

  return VectorMetric('mine', score, higher_is_better=directions)


def no_metric():
  return {'spearman': 1.0}


def test_a_decoder_has_word_vectors_too(folder, params_of):
  config = load(folder)
  config.eval.vector_metrics = ('test_vector_metrics:letters',)
  config.log.sample_prompts = ()
  config.model = gpt2(depth=1, d_model=8, heads=2, context=16)
  evaluators, model = open_evaluators(config)
  params = params_of(model)
  found = evaluators.evaluate(0, params)
  length = np.linalg.norm(params['embedding'][2:], axis=1).mean()
  assert found.values == {
    'eval/vectors/mine/letters': 0,
    'eval/vectors/mine/words': 3,
    'eval/vectors/mean_length': pytest.approx(float(length)),
  }


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'log.sample_prompts': ('tow',)},
      "log.sample_prompts=('tow',): 'tow' is not among the 3 words (did you",
    ),
    (
      {'eval.vector_metrics': ('lm.metrics.word_vectors:pair',)},
      "has no function 'pair' (did you mean",
    ),
    (
      {'eval.vector_metrics': ('lm.metrics.word_vectors:pairs',)},
      "missing a required argument: 'file'",
    ),
    (
      {'eval.vector_metrics': ('lm.metrics.word_vectors:pairs(file="none.tsv")',)},
      'none.tsv cannot be read: No such file or directory',
    ),
    (
      {'eval.vector_metrics': ('test_vector_metrics:no_metric',)},
      'returns dict, not a VectorMetric',
    ),
    (
      {'eval.vector_metrics': (GROUPS, GROUPS)},
      "name one of them with name=; two are called 'kinds'",
    ),
  ],
)
def test_a_mistake_raises_before_training(folder, changes, message):
  config = load(folder)
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError) as error:
    open_evaluators(config)
  assert message in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('metric', 'message'),
  [
    ('groups(groups={"a": ["one", "red"], "b": ["no", "none"]})', 'groups: groups: metric on an'),
    (
      'pairs(file="{folder}/pairs.tsv")',
      'pairs: similarity: metric on an empty set; none of the 1 pairs',
    ),
    (
      'questions(file="{folder}/asked.txt")',
      'asked: accuracy: metric on an empty set; none of the',
    ),
    ('drift', 'drift: {folder}/other has none of the words'),
  ],
)
def test_vectors_that_could_not_be_scored_are_not_trained(folder, metric, message):
  (folder / 'pairs.tsv').write_text('one\tunheard\t1\n')
  (folder / 'asked.txt').write_text(': all\none two red unheard\n')
  if metric == 'drift':
    write_run(make_vectors(['unheard'], [[1.0]]), folder / 'other')
    path = f'lm.evaluation.vectors:drift(workdir="{folder}/other")'
  else:
    path = f'lm.metrics.word_vectors:{metric.replace("{folder}", str(folder))}'
  config = load(folder)
  config.eval.vector_metrics = (path,)
  with pytest.raises(UserError) as error:
    train(folder, 'never', config)
  line = f'eval.vector_metrics: {message.replace("{folder}", str(folder))}'
  assert str(error.value).startswith(line) and '\n' not in str(error.value)
  assert str(error.value).endswith('the vocabulary of data.tokenizer has 9 words')
  assert not (folder / 'never').exists()


def test_a_metric_that_covers_nothing_is_named(folder):
  metrics = word_vectors.of_config(load(folder))
  with pytest.raises(UserError, match=r'^kinds: groups: metric on an empty set'):
    word_vectors.scores(metrics, make_vectors(['a'], [[1.0]]))


def test_early_stopping_monitors_vectors(folder):
  config = load(folder)
  config.early_stopping.patience = 1
  directions = {'eval/vectors/kinds/accuracy': True, 'eval/vectors/mean_length': None}
  early_stopping.check_monitored(config, directions)
  config.early_stopping.metric = 'eval/validation/loss'
  with pytest.raises(UserError, match=r'no metric of this run.*; there are eval/vectors/kinds/acc'):
    early_stopping.check_monitored(config, directions)
  config.checkpoint.keep_best = 0
  with pytest.raises(UserError, match=r"early_stopping\.metric='eval/validation/loss'.*are none"):
    early_stopping.check_monitored(config, {})
