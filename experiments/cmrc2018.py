"""Extractive question answering on Chinese Wikipedia: CMRC 2018 (Cui et al. 2019).

  LM_DATA=DIR python -m lm.train --config=experiments/cmrc2018.py --workdir=runs/cmrc2018

Reads $LM_DATA/cmrc2018/train.json and dev.json, 2,515 and 704 questions. Tokens are characters, so
answers start and end at token boundaries. From scratch, F1 is 9.7; the overlap baseline
(baselines.py) has 22.47. A higher F1 needs pretraining. Two CPU cores, 4 minutes.
"""

from ml_collections import ConfigDict

from lm.config.base import base, encoder, select_variant
from lm.config.tasks import extraction, small


def get_config(arg=''):
  config = base()
  config.steps = 400
  config.eval.every = 200
  config.batch_size = 8
  config.data.source = "lm.data.sources:squad(files='$LM_DATA/cmrc2018/{split}.json')"
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:characters', 'min_count': 2})
  config.data.seq_len = 512
  config.model = encoder(depth=2, d_model=128, heads=4, context=512)
  config.model.position = 'lm.nn.position:rope'
  config.model.dropout = 0.3
  extraction(config, 'dev', 'lm.metrics.answers:cmrc')
  config.data.converter = 'lm.tasks.extractive_qa:converter(stride=256, longest=60, threshold=None)'
  config.optim.learning_rate = 5e-4
  return select_variant(config, arg, smoke=_smoke)


def _smoke(config):
  # Some of the built-in questions have no answer, which CMRC's metric does not support.
  config.eval.sets.validation.scores = ('lm.metrics.answers:squad',)
  return small(config, 'lm.data.sources:python_questions(functions=1)', context=256)
