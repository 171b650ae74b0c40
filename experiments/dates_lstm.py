"""Dates in text of four languages to YYYY-MM-DD, by an LSTM with attention.

  python -m lm.train --config=experiments/dates_lstm.py --workdir=runs/dates_lstm
  echo 'Donnerstag, 4. März 2021' | python -m lm.translate --workdir=runs/dates_lstm

The task of dates.py (`pip install -e '.[cldr]'`, no network), with additive attention and input
feeding. `:multiplicative` uses Luong's attention, `:gru` and `:elman` use other cells, and
`:convolutional` uses a convolutional encoder. Two CPU cores, a minute. Figures: experiments/LOG.md.
"""

from ml_collections import ConfigDict

from lm.config.base import base, select_variant
from lm.config.recurrent import convolutional, recurrent_encoder_decoder
from lm.config.tasks import small, translation


def get_config(arg=''):
  config = dates('additive')
  return select_variant(
    config,
    arg,
    smoke=_smoke,
    multiplicative=_multiplicative,
    gru=_gru,
    elman=_elman,
    convolutional=_convolutional,
  )


def dates(score):
  config = base()
  config.steps = 600
  config.batch_size = 16
  config.model = recurrent_encoder_decoder(128, 128, depth=1, context=140, score=score)
  translation(config, 'en', 'validation')
  config.data.source = 'lm.data.sources:dates'
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:characters'})
  config.data.seq_len = 44  # four targets of eleven characters
  config.data.source_len = 140
  config.optim.learning_rate = 4e-3
  config.optim.b2 = 0.98
  config.optim.schedule = 'lm.optim.optimizers:linear'
  config.optim.final_lr_fraction = 0.0
  config.optim.weight_decay = 0.0
  config.eval.every = 200
  config.eval.sets.validation.scores = ('lm.metrics.labels:exact_match',)
  config.checkpoint.monitor = 'eval/validation/exact_match'
  config.decode.max_tokens = 16
  config.decode.batch_size = 256
  return config


def _multiplicative(config):
  config.model.attention_score = 'lm.nn.recurrent:multiplicative'
  return config


def _gru(config):
  config.model.cell = config.model.encoder.cell = 'lm.nn.recurrent:gru'
  return config


def _elman(config):
  config.model.cell = config.model.encoder.cell = 'lm.nn.recurrent:elman'
  return config


def _convolutional(config):
  config.model.encoder = convolutional(d_hidden=128, depth=4, width=3)
  config.model.summary = 'lm.nn.pooling:mean'
  return config


def _smoke(config):
  return small(config, config.data.source)
