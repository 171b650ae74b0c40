"""A model of the sizes of Llama 3.1 70B (Grattafiori et al. 2024), on Wikipedia.

  python -m lm.preflight --config=experiments/llama_70b.py --topology=v5p:4x4x8
  python -m lm.train --config=experiments/llama_70b.py --workdir=gs://BUCKET/llama_70b

For a TPU slice: parameters, optimizer and batch are split over 128 chips (`mesh.fsdp`), and a layer
keeps nothing of the pass forward but its input. Data as in gpt2_small; the vocabulary is as large
as Llama 3's, and made of the corpus. It was compiled for TPUs (experiments/LOG.md), and never
trained.
"""

from ml_collections import ConfigDict

from lm.config import base, choose, llama, smoke


def get_config(arg=''):
  config = base()
  config.steps = 20_000
  config.batch_size = 256
  config.data.source = "lm.data.sources:tfds(name='wiki40b/en')"
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bpe', 'vocab_size': 128_256})
  config.data.context = 4096
  config.model = llama(depth=80, d_model=8192, heads=64, kv_heads=8, d_mlp=28_672, context=4096)
  config.model.tied = False
  config.model.remat = 'jax:checkpoint_policies.nothing_saveable'
  config.model.dtype = 'bfloat16'
  config.optim.learning_rate = 3e-4
  config.optim.warmup = 2000
  config.mesh.update({'data': -1, 'fsdp': 128})
  config.eval.every = 1000
  config.eval.batch_size = 256
  config.checkpoint.every = 500
  return choose(config, arg, smoke=_smoke)


def _smoke(config):
  config.mesh.fsdp = 1
  return smoke(config)
