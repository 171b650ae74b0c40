"""Masked language modeling: a small BERT (Devlin et al. 2019) on the embedded English text.

  python -m lm.train --config=experiments/bert_pretrain.py --workdir=runs/bert
  echo '{"text": "The <|mask|> of a list."}' | python -m lm.predict --workdir=runs/bert

Entire words are masked, others in each epoch. `:modernbert` masks 30 % of the tokens, and no token
is kept or random. `:english` reads the text of ngram.py, 2.9M words;
experiments/finetune.py:sst2,runs/bert and :squad,runs/bert start from such a run. `:bert` has the
architecture of the paper: `python -m lm.convert to_hf` writes its runs for other libraries.

For two CPU cores; the full run is still to be measured.
"""

from ml_collections import ConfigDict

from lm.config.base import base, bert, encoder, select_variant, smoke, unrolled
from lm.config.pretraining import masked


def get_config(arg=''):
  config = masked(recipe(encoder(depth=4, d_model=256, heads=4, context=128)))
  variants = {'modernbert': modernbert, 'english': english, 'bert': published, 'smoke': smoke}
  return select_variant(config, arg, **variants)


def recipe(model):
  """Returns the config of a small model with rotary positions on the embedded text."""
  config = base()
  config.steps, config.batch_size = 2000, 16
  config.model = unrolled(model)
  config.model.position = 'lm.nn.position:rope'
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bpe', 'vocab_size': 4000})
  config.optim.learning_rate, config.optim.b2 = 1e-3, 0.98
  config.optim.warmup_steps, config.eval.every = 200, 500
  return config


def modernbert(config):
  transform = "lm.data.masking:masked(rate=0.3, unit='token', kept=0.0, random=0.0)"
  config.data.transforms = config.eval.sets.validation.transforms = (transform,)
  return config


def published(config):
  config.model = unrolled(bert(depth=4, d_model=256, heads=4, context=128))
  return masked(config)


def english(config):
  config.data.source, config.data.tokenizer.vocab_size = 'ngram:english', 8000
  config.steps, config.batch_size, config.eval.every = 3000, 32, 500
  return config
