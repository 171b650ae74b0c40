"""Tags for each word of a line of Python, from the standard library: the smallest tagging task.

  python -m lm.train --config=experiments/python_tags.py --workdir=runs/python_tags

Reads Python's standard library (no network). There are eleven tags, such as KEYWORD, CALL and
ATTRIBUTE. The split is by module, so the modules of validation do not occur in training. Two CPU
cores, 2 minutes.
"""

from ml_collections import ConfigDict

from lm.config.base import base, encoder, select_variant
from lm.config.tasks import small, tagging

TAGS = (
  'NAME', 'KEYWORD', 'BUILTIN', 'FUNCTION', 'CLASS', 'CALL', 'ATTRIBUTE', 'NUMBER', 'STRING',
  'COMMENT', 'OPERATOR',
)  # fmt: skip


def get_config(arg=''):
  config = base()
  config.steps = 500
  config.batch_size = 8
  config.model = encoder(depth=2, d_model=128, heads=4, context=256)
  config.model.dropout = 0.1
  tagging(config, TAGS, 'validation', 'lm.metrics.labels:tags')
  config.data.source = 'lm.data.sources:python_tags'
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bpe', 'vocab_size': 2000})
  config.data.seq_len = 256
  config.data.too_long = 'skip'
  config.optim.learning_rate = 1e-3
  config.eval.every = 250
  config.checkpoint.monitor = 'eval/validation/accuracy'
  return select_variant(config, arg, smoke=_smoke)


def _smoke(config):
  return small(config, 'lm.data.sources:python_tags(modules=10)', context=128)
