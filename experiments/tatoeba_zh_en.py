"""Chinese to English sentences, Tatoeba; `:en_zh` is the opposite direction.

  LM_DATA=DIR python -m lm.train --config=experiments/tatoeba_zh_en.py --workdir=runs/tatoeba
  echo 她穿著跟昨天相同的衣服。 | python -m lm.translate --workdir=runs/tatoeba

Reads $LM_DATA/tatoeba_zh_en: 23,442 training, 1,000 validation and 1,000 test pairs. BLEU on dev is
23.7. One CPU core, 25 minutes.
"""

from ml_collections import ConfigDict

from lm.config.base import base, encoder_decoder, select_variant
from lm.config.tasks import small, translation


def get_config(arg=''):
  config = base()
  config.steps = 4000
  config.batch_size = 4
  config.model = encoder_decoder(depth=3, d_model=256, heads=4, context=128)
  config.model.dropout = 0.1
  config.model.init_std = 0.05
  translation(config, 'en', 'dev')
  config.data.source = _pairs('zh', 'en')
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:unigram', 'vocab_size': 8000})
  config.data.too_long = 'skip'
  config.objective.label_smoothing = 0.1
  config.optim.learning_rate = 1e-3
  config.optim.b2 = 0.98
  config.optim.schedule = 'lm.optim.optimizers:linear'
  config.optim.final_lr_fraction = 0.0
  config.optim.warmup_steps = 600
  config.optim.weight_decay = 0.0
  config.eval.every = 1000
  return select_variant(config, arg, smoke=_smoke, en_zh=_en_zh)


def _pairs(source, target):
  columns = {'source': source, 'target': target}
  return f"lm.data.sources:table(files='$LM_DATA/tatoeba_zh_en/{{split}}.tsv', columns={columns})"


def _en_zh(config):
  translation(config, 'zh', 'dev')
  config.data.source = _pairs('en', 'zh')
  return config


def _smoke(config):
  return small(config, "lm.data.sources:names(source_language='zh', target_language='en')")
