"""Sentiment classification of sentences from film reviews: SST-2 (Socher et al. 2013).

  LM_DATA=DIR python -m lm.train --config=experiments/sst2.py --workdir=runs/sst2

Trains from scratch. Reads $LM_DATA/sst2: 6,920 training, 872 validation and 1,821 test sentences.
Two CPU cores, half a minute; test accuracy 81.5 %.
"""

from ml_collections import ConfigDict

from lm.config.base import base, encoder, select_variant
from lm.config.tasks import classification, small, test_set


def get_config(arg=''):
  config = base()
  config.steps = 400
  config.batch_size = 8
  config.model = encoder(depth=1, d_model=128, heads=4, context=128)
  config.model.dropout = 0.5
  classification(config, ('0', '1'), 'dev')
  test_set(config, 'test')
  config.data.source = (
    "lm.data.sources:table(files='$LM_DATA/sst2/{split}.tsv', "
    "columns={'text': 'text', 'label': 'label'})"
  )
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:words', 'min_count': 2})
  config.optim.learning_rate = 1e-3
  config.optim.weight_decay = 0.5
  config.eval.every = 100
  return select_variant(config, arg, smoke=_smoke)


def _smoke(config):
  config.data.labels = ('de', 'en', 'fr', 'zh')
  return small(config, f'lm.data.sources:languages(languages={config.data.labels}, size=2000)')
