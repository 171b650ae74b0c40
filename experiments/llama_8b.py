"""A model with the sizes of Llama 3.1 8B (Grattafiori et al. 2024), on Wikipedia.

  python -m lm.preflight --config=experiments/llama_8b.py --topology=v5p:4x4x4
  python -m lm.train --config=experiments/llama_8b.py --workdir=gs://BUCKET/llama_8b

For a TPU slice: parameters, optimizer state and batch are sharded over 64 chips (`mesh.fsdp`).
With full remat, the forward pass saves only the input of each layer. The data are those of
gpt2_small. The vocabulary has the size of Llama 3's, and is trained on the corpus. The model was
compiled for TPUs (experiments/LOG.md), and never trained.
"""

from ml_collections import ConfigDict

from lm.config.base import base, llama, select_variant, smoke


def get_config(arg=''):
  model = llama(depth=32, d_model=4096, heads=32, kv_heads=8, d_mlp=14_336, context=4096)
  return select_variant(recipe(model, rows=256, chips=64), arg, smoke=small)


def recipe(model, rows, chips):
  """Returns a config with a context of 4,096 tokens, `rows` per batch and `chips` per slice."""
  config = base()
  config.steps = 20_000
  config.batch_size = config.eval.batch_size = rows
  config.data.source = "lm.data.sources:tfds(name='wiki40b/en')"
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bpe', 'vocab_size': 128_256})
  config.data.seq_len = 4096
  config.model = model
  config.model.remat_policy = 'jax:checkpoint_policies.nothing_saveable'
  config.model.dtype = 'bfloat16'
  config.optim.learning_rate = 3e-4
  config.optim.warmup_steps = 2000
  config.mesh.update({'data': -1, 'fsdp': chips})
  config.eval.every = 1000
  config.checkpoint.every = 500
  return config


def small(config):
  config.mesh.fsdp = 1
  return smoke(config)
