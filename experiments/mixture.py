"""A variant: a mixture of two sources, documentation and lines of code, each evaluated.

  python -m lm.train --config=experiments/mixture.py --workdir=runs/mixture

The share of a source is proportional to its tokens to the power of 0.3 (Conneau et al. 2020,
section 3.1). `train/NAME/epoch` counts the passes over each source. `:docs` and `:code` train on
one of them, with the same tokenizer. Two CPU cores, 3 minutes.
"""

from lm.config.base import base, mixture, select_variant, smoke
from lm.data.sources import python_tags


def code(split):
  """Returns the lines of code of `python_tags` as texts."""
  return [{'text': line['separator'].join(line['words'])} for line in python_tags(split)]


def of_docs(config):
  config.data.mixture.code.weight = 0.0
  return config


def of_code(config):
  config.data.mixture.docs.weight = 0.0
  return config


def small(config):
  config = smoke(config)
  config.data.source = ''
  return config


def get_config(arg=''):
  config = base()
  mixture(config, {'docs': 'lm.data.sources:python_docs', 'code': 'mixture:code'})
  config.data.mix = 'lm.data.mixture:mix(alpha=0.3)'
  return select_variant(config, arg, docs=of_docs, code=of_code, smoke=small)
