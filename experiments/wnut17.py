"""New and rare entities in English posts: WNUT 2017 (Derczynski et al. 2017), from scratch.

  LM_DATA=DIR python -m lm.train --config=experiments/wnut17.py --workdir=runs/wnut17

Reads $LM_DATA/wnut17_ner: 3,394 training and 1,009 validation posts. Most validation entities do
not occur in training. Two CPU cores, a minute; F1 on dev 0.144, at the best step.
"""

from ml_collections import ConfigDict

from lm.config.base import base, encoder, select_variant
from lm.config.tasks import small, tagging

KINDS = ('corporation', 'creative-work', 'group', 'location', 'person', 'product')
TAGS = ('O', *(f'{place}-{kind}' for kind in KINDS for place in 'BI'))


def get_config(arg=''):
  config = base()
  config.steps = 500
  config.batch_size = 8
  config.model = encoder(depth=2, d_model=128, heads=4, context=256)
  config.model.position = 'lm.nn.position:rope'
  config.model.dropout = 0.3
  tagging(config, TAGS, 'dev', 'lm.metrics.spans:entities')
  config.data.source = "lm.data.sources:conll(files='$LM_DATA/wnut17_ner/{split}.tsv')"
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bpe', 'vocab_size': 4000})
  config.data.seq_len = 256
  config.data.too_long = 'truncate'
  config.optim.learning_rate = 1e-3
  config.eval.every = 100
  return select_variant(config, arg, smoke=_smoke)


def _smoke(config):
  from python_tags import TAGS

  config.data.labels = TAGS
  config.eval.sets.validation.scores = ('lm.metrics.labels:tags',)
  return small(config, 'lm.data.sources:python_tags(modules=10)', context=128)
