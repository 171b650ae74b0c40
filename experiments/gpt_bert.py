"""One decoder that is both GPT and BERT (Charpentier and Samuel 2024), on the embedded text.

  python -m lm.train --config=experiments/gpt_bert.py --workdir=runs/gpt_bert

Half of the rows are causal. In the others the attention is bidirectional, and each masked token is
predicted at the place before it. `validation` has the loss of a causal language model, in bits per
byte too, and `masked` that of masked tokens. `:english` reads $LM_DATA, as bert_pretrain does.

For two CPU cores; the full run is still to be measured.
"""

from bert_pretrain import english, recipe

from lm.config.base import gpt2, select_variant, smoke
from lm.config.pretraining import masked_or_causal


def get_config(arg=''):
  config = masked_or_causal(recipe(gpt2(depth=4, d_model=256, heads=4, context=128)))
  return select_variant(config, arg, english=english, smoke=smoke)
