"""Text infilling with permuted sentences (Lewis et al. 2020, BART) on the embedded English text.

  python -m lm.train --config=experiments/bart_pretrain.py --workdir=runs/bart

The decoder generates the text, and the encoder reads it with masked spans and its sentences in
another order. `:english` reads $LM_DATA, as bert_pretrain does.

For two CPU cores; the full run is still to be measured.
"""

import t5_pretrain

from lm.config.base import select_variant
from lm.config.pretraining import infilling


def get_config(arg=''):
  config = t5_pretrain.get_config()
  config.data.special_tokens = ()
  infilling(config)
  return select_variant(config, arg, english=t5_pretrain.english, smoke=t5_pretrain.smoke)
