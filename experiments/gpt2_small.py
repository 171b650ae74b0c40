"""GPT-2 small, 124M parameters (Radford et al. 2019), on English Wikipedia.

  python -m lm.train --config=experiments/gpt2_small.py --workdir=runs/gpt2_small

For one GPU with 40 GB or more, or a TPU slice. Batches have 0.5M tokens in 16 microbatches. On a
slice, set the mesh (--config.mesh.fsdp=8) and fewer microbatches, because each microbatch reduces
gradients across devices.

The data (TensorFlow Datasets, wiki40b/en) need the network once: `python -m lm.prepare` with the
same --config downloads and tokenizes them. Preparing this dataset needs
`pip install -e '.[tfds]' apache-beam`.
"""

from ml_collections import ConfigDict

from lm.config.base import base, gpt2, select_variant, smoke


def get_config(arg=''):
  config = base()
  config.steps = 20_000
  config.batch_size = 512
  config.microbatches = 16
  config.data.source = "lm.data.sources:tfds(name='wiki40b/en')"
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bpe', 'vocab_size': 50_257})
  config.data.seq_len = 1024
  config.model = gpt2(depth=12, d_model=768, heads=12, context=1024)
  config.model.vocab_multiple = 128
  config.model.dtype = 'bfloat16'
  config.optim.learning_rate = 6e-4
  config.optim.warmup_steps = 700
  config.eval.every = 1000
  config.eval.batch_size = 32
  config.checkpoint.every = 1000
  return select_variant(config, arg, smoke=_smoke)


def _smoke(config):
  config.microbatches = 2
  return smoke(config)
