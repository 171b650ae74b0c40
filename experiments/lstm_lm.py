"""A recurrent language model: two LSTM layers on the quickstart's text and with its budget.

  python -m lm.train --config=experiments/lstm_lm.py --workdir=runs/lstm_lm
  python -m lm.generate --workdir=runs/lstm_lm --prompt='The '

Training uses rows of a fixed length; the length of generated text has no limit. `:gru` uses GRU
cells. One CPU core, 7 minutes; 2.161 bits per byte. Figures, also of the quickstart's Transformer:
experiments/LOG.md.
"""

from lm.config.base import base, select_variant, smoke
from lm.config.recurrent import recurrent


def get_config(arg=''):
  config = base()
  config.model = recurrent(d_model=128, d_hidden=384, depth=2, context=128)
  config.optim.learning_rate = 3e-3
  config.optim.weight_decay = 0.0
  return select_variant(config, arg, gru=_gru, smoke=smoke)


def _gru(config):
  config.model.cell = 'lm.nn.recurrent:gru'
  return config
