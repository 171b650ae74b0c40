"""Is a Chinese hotel review good or bad: ChnSentiCorp, from scratch.

  LM_DATA=DIR python -m lm.train --config=experiments/chnsenticorp.py --workdir=runs/chnsenticorp

Reads $LM_DATA/chnsenticorp_hotel: 6,365 reviews, 700 to validate, 700 to test; long ones are cut
off. Tokens are characters. Two CPU cores, 6 minutes.
"""

from ml_collections import ConfigDict

from lm.config import base, choose, encoder
from lm.task_config import classification, small, test_set


def get_config(arg=''):
  config = base()
  config.steps = 600
  config.batch_size = 8
  config.model = encoder(depth=2, d_model=128, heads=4, context=512)
  config.model.dropout = 0.3
  classification(config, ('0', '1'), 'dev')
  test_set(config, 'test')
  config.data.source = (
    "lm.data.sources:table(files='$LM_DATA/chnsenticorp_hotel/{split}.tsv', "
    "columns={'text': 'text', 'label': 'label'})"
  )
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:characters', 'min_count': 2})
  config.data.context = 512
  config.data.too_long = 'truncate'
  config.optim.learning_rate = 1e-3
  config.eval.every = 200
  return choose(config, arg, smoke=_smoke)


def _smoke(config):
  config.data.labels = ('en', 'zh')
  return small(config, f'lm.data.sources:languages(languages={config.data.labels}, size=2000)')
