"""One decoder that is both GPT and BERT (Charpentier and Samuel 2024), on the embedded text.

  python -m lm.train --config=experiments/gpt_bert.py --workdir=runs/gpt_bert

Half of the rows are causal. In the others the attention is bidirectional, and each masked token is
predicted at the place before it. `validation` has the loss of a causal language model, in bits per
byte too, and `masked` that of masked tokens. `:english` reads $LM_DATA, as bert_pretrain does.

For two CPU cores; the full run is still to be measured.
"""

from bert_pretrain import english
from ml_collections import ConfigDict

from lm.config.base import base, gpt2, select_variant
from lm.config.base import smoke as small
from lm.config.pretraining import masked_or_causal


def get_config(arg=''):
  config = base()
  config.steps, config.batch_size = 2000, 16
  config.model = gpt2(depth=4, d_model=256, heads=4, context=128)
  config.model.position = 'lm.nn.position:rope'
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bpe', 'vocab_size': 4000})
  config.optim.learning_rate, config.optim.b2 = 1e-3, 0.98
  config.optim.warmup_steps, config.eval.every = 200, 500
  masked_or_causal(config)
  return select_variant(config, arg, english=english, smoke=smoke)


def smoke(config):
  return small(config)
