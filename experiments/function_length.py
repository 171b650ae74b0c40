"""Regression on built-in data: the length of a function from its signature and docstring.

  python -m lm.train --config=experiments/function_length.py --workdir=runs/function_length

Reads Python's standard library (no network). The target is log2 of the lines of code. The split is
by module, so the modules of validation do not occur in training. `r2` is the fraction of explained
variance; predicting the mean has 0. `python experiments/baselines.py python_functions` reports the
mean and ridge regression. Two CPU cores, a minute.
"""

from ml_collections import ConfigDict

from lm.config.base import base, encoder, select_variant
from lm.config.tasks import regression, small


def get_config(arg=''):
  config = base()
  config.steps = 300
  config.batch_size = 16
  config.model = encoder(depth=1, d_model=128, heads=4, context=128)
  config.model.dropout = 0.3
  regression(config, 'validation')
  config.data.source = 'lm.data.sources:python_functions'
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bpe', 'vocab_size': 2000})
  config.data.too_long = 'truncate'
  config.optim.learning_rate = 1e-3
  config.optim.weight_decay = 0.5
  config.optim.schedule = 'lm.optim.optimizers:linear'
  config.optim.final_lr_fraction = 0.0
  config.eval.every = 100
  return select_variant(config, arg, smoke=_smoke)


def _smoke(config):
  return small(config, config.data.source)
