"""Replaced-token detection (Clark et al. 2020, ELECTRA) on the embedded English text.

  python -m lm.train --config=experiments/electra_small.py --workdir=runs/electra

A generator of a quarter of the width predicts masked words, and the model detects the samples that
differ from the text. Both train from scratch, with one embedding table. `train/loss` is the
generator's, `train/detection` 50 times the model's. The evaluation replaces words by random ones.
`:english` reads $LM_DATA, as bert_pretrain does.

For two CPU cores; the full run is still to be measured.
"""

import bert_pretrain

from lm.config.base import encoder, select_variant, unrolled
from lm.config.base import smoke as small
from lm.config.pretraining import replaced_tokens


def get_config(arg=''):
  config = bert_pretrain.get_config()
  config.data.special_tokens = ()
  generator = unrolled(encoder(depth=4, d_model=64, heads=4, context=128))
  generator.position = config.model.position
  replaced_tokens(config, generator)
  return select_variant(config, arg, english=bert_pretrain.english, smoke=smoke)


def smoke(config):
  generator = config.models.generator.model
  generator.depth, generator.d_model, generator.context = 1, 16, 32
  return small(config)
