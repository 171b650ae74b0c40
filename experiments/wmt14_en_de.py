"""English to German, WMT 2014 (4.5 M pairs): the base model of Vaswani et al. 2017 with pre-norm.

  python -m lm.prepare --config=experiments/wmt14_en_de.py
  python -m lm.train --config=experiments/wmt14_en_de.py --workdir=runs/wmt14

Reads TensorFlow Datasets' `wmt14_translate/de-en`, which is downloaded on first use. Preparing it
needs `pip install -e '.[tfds]'`. For one GPU with 40 GB or more, or a TPU slice (v4-8 and larger).
"""

from ml_collections import ConfigDict

from lm.config.base import base, encoder_decoder, select_variant
from lm.config.tasks import small, translation


def get_config(arg=''):
  config = base()
  config.steps = 100_000
  config.batch_size = 96  # rows of 256 source and 256 target tokens: about 25,000 of each
  config.model = encoder_decoder(depth=6, d_model=512, heads=8, context=256)
  config.model.dropout = 0.1
  config.model.init_std = 0.03
  config.model.vocab_multiple = 128
  config.model.dtype = 'bfloat16'
  translation(config, 'de', 'validation')
  config.data.source = (
    "lm.data.sources:tfds(name='wmt14_translate/de-en', "
    "splits={'train': 'train', 'validation': 'validation', 'test': 'test'}, "
    "columns={'source': 'en', 'target': 'de'})"
  )
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bpe', 'vocab_size': 32_000})
  config.data.seq_len = config.data.source_len = 256
  config.data.too_long = 'skip'
  config.objective.label_smoothing = 0.1
  config.optim.learning_rate = 7e-4
  config.optim.b2 = 0.98
  config.optim.schedule = 'lm.optim.optimizers:inverse_sqrt'
  config.optim.warmup_steps = 4000
  config.optim.weight_decay = 0.0
  config.eval.every = 5000
  config.checkpoint.every = 1000
  return select_variant(config, arg, smoke=_smoke)


def _smoke(config):
  return small(config, "lm.data.sources:names(source_language='en', target_language='de')")
