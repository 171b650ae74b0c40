"""Two tasks and plain text in one encoder-decoder, each evaluated (Raffel et al. 2020, T5).

  python -m lm.train --config=experiments/multitask.py --workdir=runs/multitask

The model translates names of countries and currencies, writes the language of a text, and generates
the spans that are missing in documentation. The first word of an input names its task. Each source
of the mixture has its own task or transforms, and its evaluation set has the same. `:tasks` leaves
the plain text out. All data is built in. Two CPU cores.
"""

import dataclasses
from collections.abc import Callable

from ml_collections import ConfigDict

from lm.config.base import base, component, encoder_decoder, evaluation, select_variant
from lm.config.resolve import ref
from lm.config.tasks import small
from lm.task import Task
from lm.text.tokenizers import sentinels

LANGUAGES = ('de', 'en', 'es', 'fr', 'it', 'nl', 'pl', 'zh')
SPANS = ('lm.data.denoising:span_corruption',)


def named(task: Callable[[], Task], name: str) -> Task:
  """Returns a task whose inputs begin with its name (section 2.4)."""
  of = task()
  return dataclasses.replace(of, inputs=lambda example: [f'{name}: ', *of.inputs(example)])


def get_config(arg=''):
  config = base()
  config.steps, config.batch_size = 2000, 8
  config.model = encoder_decoder(depth=2, d_model=128, heads=4, context=128)
  data = config.data
  data.source, data.too_long = '', 'skip'
  # The task of programs such as lm.translate, and of components that have no other.
  data.task = ref(named, task='lm.tasks.text:text_to_text', name='translate')
  data.converter = 'lm.tasks.seq2seq:encoder_decoder'
  data.special_tokens = sentinels(30)
  identify = ref(named, task='lm.tasks.text:classification', name='language')
  names = "lm.data.sources:names(source_language='de', target_language='en')"
  languages = f'lm.data.sources:languages(languages={LANGUAGES})'
  sections = {
    'names': component(names),
    'languages': component(languages, task=identify),
    'docs': component('lm.data.sources:python_docs', task=None, transforms=SPANS),
  }
  data.mixture = ConfigDict(sections)
  targets, match = ('lm.metrics.tokens:targets',), ('lm.metrics.labels:exact_match',)
  sets = {
    'names': evaluation('validation', '', targets, match, component='names'),
    'languages': evaluation('validation', '', targets, match, component='languages'),
    'docs': evaluation('validation', '', targets, transforms=SPANS, component='docs'),
  }
  for section in sets.values():
    section.limit = 200
  config.eval.sets = ConfigDict(sets)
  config.eval.every = 500
  config.checkpoint.monitor = 'eval/names/exact_match'
  config.decode.max_tokens = 32
  config.log.sample_prompts = ()
  config.optim.learning_rate, config.optim.b2 = 1e-3, 0.98
  return select_variant(config, arg, tasks=tasks, smoke=smoke)


def tasks(config):
  config.data.mixture.docs.weight = 0.0
  return config


def smoke(config):
  return small(config, '')
