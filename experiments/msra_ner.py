"""Persons, places and organizations in Chinese news: MSRA NER (Levow 2006), tagged by character.

  LM_DATA=DIR python -m lm.train --config=experiments/msra_ner.py --workdir=runs/msra_ner

Reads $LM_DATA/msra_ner: 8,000 training, 1,000 validation and 1,000 test sentences. Two CPU cores, 4
minutes; test F1 0.614.
"""

from ml_collections import ConfigDict

from lm.config.base import base, encoder, select_variant
from lm.config.tasks import small, tagging, test_set

TAGS = ('O', 'B-PER', 'I-PER', 'B-LOC', 'I-LOC', 'B-ORG', 'I-ORG')


def get_config(arg=''):
  config = base()
  config.steps = 1500
  config.batch_size = 8
  config.model = encoder(depth=3, d_model=128, heads=4, context=256)
  config.model.position = 'lm.nn.position:rope'
  config.model.dropout = 0.2
  tagging(config, TAGS, 'dev', 'lm.metrics.spans:entities')
  test_set(config, 'test')
  config.data.source = "lm.data.sources:conll(files='$LM_DATA/msra_ner/{split}.tsv', separator='')"
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:characters', 'min_count': 2})
  config.data.seq_len = 256
  config.data.too_long = 'truncate'
  config.optim.learning_rate = 1e-3
  config.eval.every = 500
  return select_variant(config, arg, smoke=_smoke)


def _smoke(config):
  from python_tags import TAGS

  config.data.labels = TAGS
  for section in config.eval.sets.values():
    section.scores = ('lm.metrics.labels:tags',)
  return small(config, 'lm.data.sources:python_tags(modules=10)', context=128)
