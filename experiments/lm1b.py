"""The One Billion Word benchmark (Chelba et al. 2014), sentence by sentence.

  python -m lm.train --config=experiments/lm1b.py --workdir=runs/lm1b

The benchmark consists of shuffled sentences. They are packed by best fit, and no sentence attends
to another. The data need the network once (TensorFlow Datasets, lm1b, 1.7 GB). For one GPU or a TPU
slice.
"""

from ml_collections import ConfigDict

from lm.config.base import base, gpt2, select_variant, smoke


def get_config(arg=''):
  config = base()
  config.steps = 100_000
  config.batch_size = 256
  config.data.source = (
    "lm.data.sources:tfds(name='lm1b', splits={'train': 'train', 'validation': 'test'})"
  )
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:unigram', 'vocab_size': 30_000})
  config.data.seq_len = 256
  config.data.pack = 'lm.data.packing:best_fit'
  config.model = gpt2(depth=6, d_model=512, heads=8, context=256)
  config.model.dtype = 'bfloat16'
  config.optim.learning_rate = 1.6e-3
  config.optim.schedule = 'lm.optim.optimizers:inverse_sqrt'
  config.optim.warmup_steps = 1000
  config.eval.every = 5000
  config.checkpoint.every = 5000
  return select_variant(config, arg, smoke=smoke)
