"""From a task and a model to predictions, for each of the three architectures."""

import dataclasses
import sys
import textwrap

import flax.linen as nn
import jax
import numpy as np
import pytest

from lm import components
from lm.config import base as configs
from lm.data import batches, pipeline
from lm.errors import UserError
from lm.evaluation.evaluators import Evaluators
from lm.evaluation.predict import Predictor
from lm.evaluation.samples import samples
from lm.evaluation.sets import Sets, file_set
from lm.text.tokenizers import sentinels
from lm.training.train_step import init_train_state, make_train_step
from lm.types import apply_of

WORDS = {
  'de': ('und', 'nicht', 'schön', 'wir', 'zwei'),
  'en': ('and', 'not', 'with', 'we', 'two'),
  'fr': ('et', 'pas', 'avec', 'nous', 'deux'),
}
LABELS = tuple(WORDS)
# A module of the user: words with their language, and sentences with a tag a word.
SOURCE = f"""
  import numpy as np
  from lm.task import Converter, Features, Task

  WORDS = {WORDS!r}

  def words(split):
    pairs = [(word, label) for label, words in WORDS.items() for word in words]
    return [{{'text': word, 'label': label, 'value': len(word)}} for word, label in pairs]

  def sentences(split):
    found = []
    for i in range(6):
      pairs = [(word, label) for label, words in WORDS.items() for word in words[i % 3 :]]
      names, tags = zip(*pairs[: i + 1])
      found.append({{'words': list(names), 'tags': list(tags), 'separator': ' '}})
    return found

  def letters(task):
    '''Features for each letter of a word; what is read is which letters there were, in order.'''
    def features(tokenizer, labels, context):
      def convert(example):
        ids = tokenizer.encode(example['text']).ids
        return [Features({{'inputs': np.array([i])}}, {{}}, {{'letter': i}}) for i in ids]
      return convert
    def read(labels, example, pieces):
      return {{'letters': [int(piece['values/letter']) for piece in pieces]}}
    def predict(output, batch):
      return {{'values/letter': batch['letter']}}
    texts = lambda e: [e['text']]
    return Converter(texts, features, predict=predict, postprocess=read, answer='letters')
"""
MODELS = {
  'lm.tasks.seq2seq:encoder_decoder': configs.encoder_decoder,
  'lm.tasks.seq2seq:decoder': configs.gpt2,
  'lm.tasks.classification:classifier': configs.encoder,
}


@pytest.fixture(scope='module', autouse=True)
def module(tmp_path_factory):
  """Puts the user's module on the import path."""
  folder = tmp_path_factory.mktemp('module')
  (folder / 'some_words.py').write_text(textwrap.dedent(SOURCE), 'utf-8')
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(folder))
    yield
  sys.modules.pop('some_words', None)


def config_of(convert, source='words', task='lm.tasks.text:classification', **changes):
  """Returns the config of a tiny model that does a task."""
  config = configs.base()
  config.steps, config.batch_size = 80, 4
  config.data.update(
    {
      'source': f'some_words:{source}',
      'task': task,
      'converter': convert,
      'labels': LABELS,
      'seq_len': 24,
      'source_len': 24,
    }
  )
  with config.data.unlocked():
    config.data.tokenizer = {'fn': 'lm.text.tokenizers:characters'}
  build_model = MODELS.get(convert, configs.encoder)
  with config.unlocked():
    config.model = build_model(depth=1, d_model=32, heads=2, context=24)
  config.model.init_std = 0.1  # small models learn soon from large parameters
  if build_model is configs.encoder and task.endswith('tagging'):
    config.model.pooling = None
  config.optim.update({'learning_rate': 1e-2, 'warmup_steps': 5, 'weight_decay': 0.0})
  scores = ('lm.metrics.labels:classification',)
  with config.eval.unlocked():
    config.eval.sets = {
      'all': configs.evaluation('train', metrics=('lm.metrics.tokens:targets',), scores=scores)
    }
  config.decode.batch_size = 8
  config.log.sample_prompts = ()
  config.update_from_flattened_dict(changes)
  return config


def opened(config):
  """Returns the tokenizer, the functions and the rows of a config, and its predictor."""
  tokenizer = pipeline.tokenizer(config.data)
  functions = components.build_components(config, tokenizer.get_vocab_size(), jax.devices()[:1])
  rows = pipeline.packed_rows(config.data, 'train', tokenizer, config.seed)
  apply = apply_of(functions.model)
  predictor = Predictor(config, 'all', functions, tokenizer, rows, apply, (), config.data)
  return tokenizer, functions, rows, predictor


@pytest.mark.parametrize('convert', MODELS)
def test_one_task_is_learned_by_each_architecture(convert):
  config = config_of(convert)
  _, functions, rows, predictor = opened(config)
  state, _ = init_train_state(functions, jax.random.key(0))
  train_step = make_train_step(functions, 0, 1, state)
  before = predictor.predictions(state.params)
  for step in range(config.steps):
    state, _ = train_step(state, batches.batch_at(rows, (), config.batch_size, 0, step))
  found = predictor.predictions(state.params)
  references = [label for label, words in WORDS.items() for _ in words]
  assert found.inputs == [[word] for words in WORDS.values() for word in words]
  assert found.references == before.references == references
  assert found.outputs == references != before.outputs
  assert predictor.scores(found)[0]['accuracy'] == 1
  assert predictor.generates == (convert != 'lm.tasks.classification:classifier')


# 'nicht' and 'schön' have a letter more than there is room for, END and a separator included.
@pytest.mark.parametrize(
  ('convert', 'context'),
  [('lm.tasks.seq2seq:decoder', 6), ('lm.tasks.classification:classifier', 5)],
)
@pytest.mark.parametrize(
  ('too_long', 'left_out'), [('skip', {'nicht', 'schön'}), ('truncate', set())]
)
def test_long_examples_are_skipped_or_truncated(convert, context, too_long, left_out, params_of):
  config = config_of(convert, **{'data.too_long': too_long, 'data.seq_len': context})
  _, functions, _, predictor = opened(config)
  found = predictor.predictions(params_of(functions.model, seed=1))
  pairs = [(word, label) for label, words in WORDS.items() for word in words]
  kept = [(word, label) for word, label in pairs if word not in left_out]
  assert found.inputs == [[word] for word, _ in kept]
  assert found.references == [label for _, label in kept]
  assert len(found.outputs) == len(kept)


def test_the_first_examples_are_enough(params_of):
  config = config_of('lm.tasks.classification:classifier', **{'eval.sets.all.limit': 4})
  _, functions, _, predictor = opened(config)
  params = params_of(functions.model, seed=1)
  found = predictor.predictions(params)
  assert found.inputs == [['und'], ['nicht'], ['schön'], ['wir']]
  config.eval.sets['all'].limit = 0
  whole = opened(config)[-1].predictions(params)
  assert len(whole.outputs) == 15 and found.outputs == whole.outputs[:4]


def _alone(functions, params, texts):
  """Returns the logits (texts, places, classes) of texts that have a row each."""
  rows = np.zeros((len(texts), 64), np.int32)
  for row, text in zip(rows, texts, strict=True):
    row[: len(text)] = text
  there = np.arange(64)[None] < np.array([len(text) for text in texts])[:, None]
  batch = {'inputs': rows, 'segments': there.astype(np.int32), 'examples': rows[:, :1] + 1}
  batch['positions'] = np.cumsum(batch['segments'], axis=1) - 1
  output = jax.jit(functions.apply)(params, batch)
  return np.asarray(output.head(output.hidden))


def test_tags_do_not_depend_on_packing(params_of):
  config = config_of('lm.tasks.classification:tagger', 'sentences', 'lm.tasks.text:tagging')
  config.eval.sets['all'].scores = ('lm.metrics.labels:tags',)
  config.data.seq_len = config.model.context = 64
  tokenizer, functions, rows, predictor = opened(config)
  params = params_of(functions.model, seed=1)
  found = predictor.predictions(params)
  assert len(rows) < len(found.inputs) == 6
  texts = [text for (text,) in found.inputs]
  logits = _alone(functions, params, [tokenizer.encode(text).ids for text in texts])
  for text, tags, row in zip(texts, found.outputs, logits, strict=True):
    # Characters are tokens: a word starts at its place in the text.
    starts = np.cumsum([0, *(len(word) + 1 for word in text.split())])[:-1]
    assert tags == [LABELS[i] for i in row[starts].argmax(-1)]
  assert len({tag for tags in found.outputs for tag in tags}) > 1


def test_regression_does_not_depend_on_packing(params_of):
  config = config_of('lm.tasks.classification:regressor', task='lm.tasks.text:regression')
  config.eval.sets['all'].scores = ('lm.metrics.labels:regression',)
  config.data.labels, config.model.num_classes = (), 1
  tokenizer, functions, rows, predictor = opened(config)
  params = params_of(functions.model, seed=1)
  found = predictor.predictions(params)
  assert len(rows) < len(found.inputs)
  assert found.references == [len(word) for words in WORDS.values() for word in words]
  logits = _alone(functions, params, [[0, *tokenizer.encode(text).ids] for (text,) in found.inputs])
  np.testing.assert_allclose(found.outputs, logits[:, 0, 0], atol=1e-5)


def test_all_features_of_an_example_are_read_in_order(params_of):
  config = config_of('some_words:letters')
  tokenizer, functions, _, predictor = opened(config)
  found = predictor.predictions(params_of(functions.model, seed=1))
  assert found.outputs == [tokenizer.encode(text).ids for (text,) in found.inputs]


def test_prompts_for_a_model_without_decoder_raise():
  config = config_of('lm.tasks.seq2seq:encoder_decoder')
  config.log.sample_prompts = ('The ',)
  tokenizer, functions, *_ = opened(config)
  with pytest.raises(UserError) as error:
    Evaluators(config, functions, tokenizer)
  assert "log.sample_prompts=('The ',): model.fn=" in str(error.value)


@pytest.mark.parametrize(
  ('key', 'path', 'message'),
  [
    ('metrics', 'lm.metrics.labels:classification', 'returns no lm.types.Metric'),
    ('scores', 'lm.metrics.tokens:targets', 'returns Metric, not lm.metrics.scores.CorpusMetric'),
  ],
)
def test_metrics_in_the_wrong_place_raise_at_start_up(key, path, message):
  config = config_of('lm.tasks.classification:classifier')
  config.eval.sets['all'][key] = (path,)
  tokenizer = pipeline.tokenizer(config.data)
  functions = components.build_components(config, tokenizer.get_vocab_size(), jax.devices()[:1])
  with pytest.raises(UserError) as error:
    Evaluators(config, functions, tokenizer)
  assert str(error.value).startswith(f'eval.sets.all.{key}=') and message in str(error.value)


def test_an_empty_set_raises_at_start_up():
  # The first two words, 'und' and 'nicht', are longer than a row.
  changes = {'eval.sets.all.limit': 2, 'data.too_long': 'skip'}
  config = config_of('lm.tasks.classification:classifier', **changes)
  config.data.seq_len = config.model.context = 3
  with pytest.raises(UserError, match=r"sets\.all\.limit=2: data\.too_long='skip' leaves none"):
    opened(config)


def test_references_that_a_metric_cannot_score_raise_at_start_up():
  config = config_of('lm.tasks.classification:classifier')
  config.eval.sets['all'].scores = ("lm.metrics.labels:classification(positive='nowhere')",)
  with pytest.raises(
    UserError, match=r"eval\.sets\.all\.scores=.*positive='nowhere' does not occur"
  ):
    opened(config)


def test_no_sample_tokens_are_no_samples():
  """A model that continues no prompt needs no other setting then."""
  config = config_of('lm.tasks.seq2seq:encoder_decoder', **{'log.sample_tokens': 0})
  config.log.sample_prompts = ('The ',)
  tokenizer, functions, *_ = opened(config)
  assert samples(config, functions, tokenizer).run(3, {}).texts == ()


def test_a_model_that_says_nothing_of_prompts_continues_none():
  """A user's own model may lack `continues_prompts`."""
  config = config_of('lm.tasks.seq2seq:encoder_decoder')
  config.log.sample_prompts = ('The ',)
  tokenizer, functions, *_ = opened(config)
  functions = dataclasses.replace(functions, model=nn.Dense(3))
  with pytest.raises(UserError, match=r"^log\.sample_prompts=\('The ',\): model\.fn="):
    samples(config, functions, tokenizer)


def test_the_set_of_a_component_has_its_task_and_transforms(tmp_path):
  spans = ('lm.data.denoising:span_corruption(mean_length=1.0)',)
  config = config_of('lm.tasks.seq2seq:encoder_decoder', source='')
  config.data.special_tokens = sentinels(24)
  scores = ('lm.metrics.labels:exact_match',)
  with config.unlocked():
    config.data.update({'source': ''})
    config.data.mixture = {
      'labels': configs.component('some_words:words'),
      'spans': configs.component('some_words:words', task=None, transforms=spans),
    }
    config.eval.sets = {
      'spans': configs.evaluation('train', transforms=spans, component='spans'),
      'labels': configs.evaluation('train', scores=scores, component='labels'),
    }
  tokenizer = pipeline.tokenizer(config.data)
  functions = components.build_components(config, tokenizer.get_vocab_size(), jax.devices()[:1])
  found = Sets(config, functions, tokenizer)
  assert found.predictors.keys() == {'labels'}
  rows = {name: one.first_row() for name, one in found._sets.items()}
  assert rows['labels'].keys() - rows['spans'].keys() == {'examples'}
  masked = rows['spans']['source'][rows['spans']['source_segments'] > 0]
  assert set(masked.tolist()) & {tokenizer.token_to_id(name) for name in sentinels(24)}
  note = found.notes['transforms']
  assert f'data.mixture.spans.transforms={spans!r} apply to training rows alone' in note
  (tmp_path / 'rows.jsonl').write_text('{"text": "und", "label": "de"}\n')
  file_set(config, str(tmp_path / 'rows.jsonl'))
  assert Sets(config, functions, tokenizer)._sets['data'].rows.documents == 1
