"""Language identification from names of countries, languages and currencies in that language.

  python -m lm.train --config=experiments/language_id.py --workdir=runs/language_id

An example has a few names from the Unicode CLDR (`pip install -e '.[cldr]'`, no network). Tokens
are bytes. In `:write` an encoder-decoder generates the language code, in `:prefix` a decoder-only
prefix language model: one task, three architectures. Two CPU cores, 2 minutes.
"""

from ml_collections import ConfigDict

from lm.config.base import base, encoder, encoder_decoder, gpt2, select_variant
from lm.config.tasks import classification, small

LANGUAGES = ('cs', 'de', 'en', 'es', 'fr', 'it', 'nl', 'pl', 'pt', 'ru', 'sv', 'tr', 'zh')


def get_config(arg=''):
  config = base()
  config.steps = 500
  config.batch_size = 8
  config.model = encoder(depth=2, d_model=128, heads=4, context=512)
  classification(config, LANGUAGES, 'validation')
  config.data.source = f'lm.data.sources:languages(languages={LANGUAGES})'
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bytes'})
  config.data.seq_len = config.data.source_len = 512
  config.optim.learning_rate = 1e-3
  config.eval.every = 250
  config.decode.max_tokens = 4
  return select_variant(config, arg, smoke=_smoke, write=_write, prefix=_prefix)


def _write(config):
  config.model = encoder_decoder(depth=2, d_model=128, heads=4, context=512)
  config.data.converter = 'lm.tasks.seq2seq:encoder_decoder'
  config.data.seq_len = 128  # targets are much shorter than sources
  return config


def _prefix(config):
  config.model = gpt2(depth=2, d_model=128, heads=4, context=512)
  config.data.converter = 'lm.tasks.seq2seq:decoder'
  return config


def _smoke(config):
  return small(config, config.data.source, context=256)
