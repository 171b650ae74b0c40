"""Config changes for each kind of task; see lm.config.base.

Each function takes a config, sets the leaves that the kind of task needs, and returns it.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from lm.config.base import evaluation, smoke


def translation(config: ConfigDict, language: str, split: str) -> ConfigDict:
  """An encoder-decoder generates `target` from `source`; BLEU selects the best checkpoint.

  Args:
    config: has the model of an encoder-decoder.
    language: of the targets; it selects the tokenizer of BLEU.
    split: the split to evaluate during training.
  """
  bleu, ter = (f'lm.metrics.translation:{name}(language="{language}")' for name in ('bleu', 'ter'))
  scores = (bleu, 'lm.metrics.translation:chrf', ter)
  validation = evaluation(split, metrics=('lm.metrics.tokens:targets',), scores=scores)
  config.decode.max_length_ratio = 2.0
  return _with_task(config, 'text:text_to_text', 'seq2seq:encoder_decoder', validation, 'bleu')


def classification(config: ConfigDict, labels: Sequence[str], split: str) -> ConfigDict:
  """An encoder with pooling predicts the `label` of a `text`; accuracy selects checkpoints."""
  config.data.labels = tuple(labels)
  scores = ('lm.metrics.labels:classification', 'lm.metrics.labels:calibration')
  validation = evaluation(split, metrics=('lm.metrics.tokens:cross_entropy',), scores=scores)
  converter = 'classification:classifier'
  return _with_task(config, 'text:classification', converter, validation, 'accuracy')


def multilabel(config: ConfigDict, labels: Sequence[str], split: str) -> ConfigDict:
  """An encoder with pooling predicts all `labels` of a `text`; micro F1 selects checkpoints."""
  config.data.labels = tuple(labels)
  config.objective = ConfigDict({'fn': 'lm.objectives.supervised:binary_cross_entropy'})
  metrics, scores = 'lm.metrics.tokens:binary_cross_entropy', 'lm.metrics.labels:multilabel'
  validation = evaluation(split, metrics=(metrics,), scores=(scores,))
  converter = 'classification:multilabel'
  return _with_task(config, 'text:multilabel', converter, validation, 'micro_f1')


def regression(config: ConfigDict, split: str) -> ConfigDict:
  """An encoder with pooling predicts the `value` of a `text`; MSE selects the best checkpoint."""
  config.model.num_classes = 1
  config.objective = ConfigDict({'fn': 'lm.objectives.supervised:squared_error'})
  validation = evaluation(
    split,
    metrics=('lm.metrics.tokens:squared_error',),
    scores=('lm.metrics.labels:regression',),
  )
  return _with_task(config, 'text:regression', 'classification:regressor', validation, 'mse')


def tagging(config: ConfigDict, labels: Sequence[str], split: str, score: str) -> ConfigDict:
  """An encoder predicts the tag of each word; F1 selects the best checkpoint.

  Args:
    config: has the model of an encoder.
    labels: all tags.
    split: the split to evaluate during training.
    score: 'lm.metrics.spans:entities' for entity tags, or another corpus metric with 'f1'.
  """
  config.data.labels = tuple(labels)
  config.model.pooling = placeholder(str)  # a head on each token
  validation = _loss_and_score(split, score)
  return _with_task(config, 'text:tagging', 'classification:tagger', validation, 'f1')


def extraction(config: ConfigDict, split: str, score: str) -> ConfigDict:
  """An encoder predicts the span that answers a question; F1 selects the best checkpoint.

  Args:
    config: has the model of an encoder.
    split: the split to evaluate during training.
    score: 'lm.metrics.answers:squad', or the metric of another language.
  """
  config.model.pooling = placeholder(str)  # a head on each token
  config.model.num_classes = 2  # the first and the last token
  config.objective = ConfigDict({'fn': 'lm.tasks.extractive_qa:objective'})
  metrics = ('lm.tasks.extractive_qa:metric',)
  validation = evaluation(split, metrics=metrics, scores=(score,))
  task, converter = 'extractive_qa:extraction', 'extractive_qa:converter'
  return _with_task(config, task, converter, validation, 'f1')


def _with_task(
  config: ConfigDict, task: str, converter: str, validation: ConfigDict, monitor: str
) -> ConfigDict:
  """Returns the config with a task and a converter of lm.tasks; `monitor` selects checkpoints."""
  config.data.task = f'lm.tasks.{task}'
  config.data.converter = f'lm.tasks.{converter}'
  config.eval.sets.validation = validation
  config.checkpoint.monitor = f'eval/validation/{monitor}'
  config.log.sample_prompts = ()
  return config


def test_set(config: ConfigDict, split: str) -> ConfigDict:
  """Adds a set 'test' with the metrics of the set 'validation'.

  The set 'test' selects no checkpoint.
  """
  of_test = config.eval.sets.validation.to_dict() | {'split': split}
  config.eval.sets = ConfigDict({**config.eval.sets, 'test': of_test})
  return config


def small(config: ConfigDict, source: str, context: int = 64) -> ConfigDict:
  """Returns a task's config reduced as by `lm.config.base.smoke`, on an embedded source."""
  smoke(config)
  config.data.source = source
  config.data.train_split = 'train'
  config.data.seq_len = config.data.source_len = config.model.context = context
  config.data.too_long = 'skip'
  config.decode.max_tokens = 16
  for section in config.eval.sets.values():
    section.split, section.limit = 'validation', 8
  return config


def _loss_and_score(split: str, score: str) -> ConfigDict:
  """Returns an evaluation set with the loss and one corpus metric."""
  return evaluation(split, metrics=('lm.metrics.tokens:cross_entropy',), scores=(score,))
