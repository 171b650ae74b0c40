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
  config.data.task = 'lm.tasks.text:text_to_text'
  config.data.converter = 'lm.tasks.seq2seq:encoder_decoder'
  bleu, ter = (f'lm.metrics.translation:{name}(language="{language}")' for name in ('bleu', 'ter'))
  scores = (bleu, 'lm.metrics.translation:chrf', ter)
  config.eval.sets.validation = _evaluation(split, scores)
  config.decode.max_length_ratio = 2.0
  config.checkpoint.monitor = 'eval/validation/bleu'
  config.log.sample_prompts = ()
  return config


def classification(config: ConfigDict, labels: Sequence[str], split: str) -> ConfigDict:
  """An encoder with pooling predicts the `label` of a `text`; accuracy selects the best."""
  config.data.task = 'lm.tasks.text:classification'
  config.data.converter = 'lm.tasks.classification:classifier'
  config.data.labels = tuple(labels)
  config.eval.sets.validation = _predicted(split, 'lm.metrics.labels:classification')
  config.checkpoint.monitor = 'eval/validation/accuracy'
  config.log.sample_prompts = ()
  return config


def regression(config: ConfigDict, split: str) -> ConfigDict:
  """An encoder with pooling predicts the `value` of a `text`; the error selects the best."""
  config.data.task = 'lm.tasks.text:regression'
  config.data.converter = 'lm.tasks.classification:regressor'
  config.model.num_classes = 1
  config.objective = ConfigDict({'fn': 'lm.objectives.supervised:squared_error'})
  config.eval.sets.validation = evaluation(
    split,
    metrics=('lm.metrics.tokens:squared_error',),
    scores=('lm.metrics.labels:regression',),
  )
  config.checkpoint.monitor = 'eval/validation/mse'
  config.log.sample_prompts = ()
  return config


def tagging(config: ConfigDict, labels: Sequence[str], split: str, score: str) -> ConfigDict:
  """An encoder predicts the tag of each word; F1 selects the best checkpoint.

  Args:
    config: has the model of an encoder.
    labels: all tags.
    split: the split to evaluate during training.
    score: 'lm.metrics.spans:entities' for entity tags, or another corpus metric with 'f1'.
  """
  config.data.task = 'lm.tasks.text:tagging'
  config.data.converter = 'lm.tasks.classification:tagger'
  config.data.labels = tuple(labels)
  config.model.pooling = placeholder(str)  # a head on each token
  config.eval.sets.validation = _predicted(split, score)
  config.checkpoint.monitor = 'eval/validation/f1'
  config.log.sample_prompts = ()
  return config


def extraction(config: ConfigDict, split: str, score: str) -> ConfigDict:
  """An encoder predicts the span that answers a question; F1 selects the best checkpoint.

  Args:
    config: has the model of an encoder.
    split: the split to evaluate during training.
    score: 'lm.metrics.answers:squad', or the metric of another language.
  """
  config.data.task = 'lm.tasks.extractive_qa:extraction'
  config.data.converter = 'lm.tasks.extractive_qa:converter'
  config.model.pooling = placeholder(str)  # a head on each token
  config.model.num_classes = 2  # the first and the last token
  config.objective = ConfigDict({'fn': 'lm.tasks.extractive_qa:objective'})
  config.eval.sets.validation = evaluation(
    split, metrics=('lm.tasks.extractive_qa:metric',), scores=(score,)
  )
  config.checkpoint.monitor = 'eval/validation/f1'
  config.log.sample_prompts = ()
  return config


def test_set(config: ConfigDict, split: str) -> ConfigDict:
  """Adds a set 'test' with the metrics of the set 'validation', which selects nothing."""
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


def _evaluation(split: str, scores: tuple[str, ...]) -> ConfigDict:
  return evaluation(split, metrics=('lm.metrics.tokens:targets',), scores=scores)


def _predicted(split: str, score: str) -> ConfigDict:
  """Returns an evaluation set with the loss and one corpus metric."""
  return evaluation(split, metrics=('lm.metrics.tokens:cross_entropy',), scores=(score,))
