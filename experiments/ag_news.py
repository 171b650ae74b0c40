"""Topic classification of news, four classes: AG News (Zhang et al. 2015), from scratch.

  LM_DATA=DIR python -m lm.train --config=experiments/ag_news.py --workdir=runs/ag_news

Reads $LM_DATA/ag_news: 5,100 training and 1,000 test items, all from the original test set. Word
dropout at read time reduces overfitting. Two CPU cores, a minute; accuracy 88.7 %.
"""

from ml_collections import ConfigDict

from lm.config.base import base, encoder, select_variant
from lm.config.tasks import classification, small


def get_config(arg=''):
  config = base()
  config.steps = 500
  config.batch_size = 8
  config.model = encoder(depth=1, d_model=256, heads=4, context=256)
  config.model.dropout = 0.5
  classification(config, ('1', '2', '3', '4'), 'test')
  config.data.source = (
    "lm.data.sources:table(files='$LM_DATA/ag_news/{split}.tsv', "
    "columns={'text': ('title', 'description'), 'label': 'label'})"
  )
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:words', 'min_count': 2})
  config.data.seq_len = 256
  config.data.special_tokens = ('<|mask|>',)
  config.data.transforms = ('lm.data.transforms:word_dropout(stream="inputs", rate=0.4)',)
  config.data.too_long = 'truncate'
  config.optim.learning_rate = 1e-3
  config.optim.weight_decay = 0.5
  config.eval.every = 100
  return select_variant(config, arg, smoke=_smoke)


def _smoke(config):
  config.data.labels = ('de', 'en', 'fr', 'zh')
  return small(config, f'lm.data.sources:languages(languages={config.data.labels}, size=2000)')
