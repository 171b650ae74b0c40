"""Characters of Shakespeare's plays, the task of nanoGPT's CPU recipe.

  LM_DATA=DIR python -m lm.train --config=experiments/shakespeare_char.py --workdir=runs/shakespeare

Reads $LM_DATA/tinyshakespeare/input.txt (1.1 MB). The first 90 % of its characters are for
training, the rest for validation. `:tfds` reads the same text through the TensorFlow Datasets
builder `tiny_shakespeare`. Preparing it needs `pip install -e '.[tfds]'`; without network, an error
names the path for the file. `:best` is our best recipe for 80 seconds on two CPU cores. Figures:
experiments/LOG.md.
"""

from ml_collections import ConfigDict

from lm.config.base import base, gpt2, llama, select_variant, smoke


def get_config(arg=''):
  config = base()
  config.steps = 2000
  config.batch_size = 12
  config.data.source = (
    "lm.data.sources:text(files='$LM_DATA/tinyshakespeare/input.txt', validation=0.1)"
  )
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:characters'})
  config.data.seq_len = 64
  config.model = gpt2(depth=4, d_model=128, heads=4, context=64)
  config.model.bias = False
  config.optim.learning_rate = 3e-3
  config.optim.warmup_steps = 100
  config.optim.b2 = 0.99
  config.eval.batch_size = 64
  config.log.sample_prompts = ('ROMEO:\n',)
  return select_variant(config, arg, smoke=smoke, tfds=tfds, best=best)


def tfds(config):
  config.data.source = (
    "lm.data.sources:tfds(name='tiny_shakespeare', "
    "splits={'train': 'train', 'validation': 'validation'})"
  )
  return config


def best(config):
  config.steps = 1000
  config.batch_size = 8
  config.data.seq_len = 128
  config.model = llama(depth=3, d_model=128, heads=4, kv_heads=4, d_mlp=384, context=128)
  config.model.tie_embeddings = True
  with config.unlocked():
    config.optim.newton_schulz = 3
  config.optim.fn = 'lm.optim.optimizers:muon'
  config.optim.learning_rate = 8e-3
  config.optim.schedule = 'lm.optim.optimizers:linear'
  config.optim.final_lr_fraction = 0.0
  config.optim.warmup_steps = 50
  config.eval.every = 1000
  config.checkpoint.every = 1000
  return config
