"""Llama with 160M parameters: RoPE, RMSNorm, SwiGLU, grouped-query attention, untied embeddings.

  python -m lm.train --config=experiments/llama_160m.py --workdir=runs/llama_160m

For one GPU with 40 GB or more, or a TPU slice. The data are those of gpt2_small.
"""

from ml_collections import ConfigDict

from lm.config.base import base, llama, select_variant, smoke


def get_config(arg=''):
  config = base()
  config.steps = 20_000
  config.batch_size = 256
  config.microbatches = 16
  config.data.source = "lm.data.sources:tfds(name='wiki40b/en')"
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bpe', 'vocab_size': 32_000})
  config.data.seq_len = 2048
  config.model = llama(depth=12, d_model=768, heads=12, kv_heads=4, d_mlp=3072, context=2048)
  config.model.dtype = 'bfloat16'
  config.objective.z_loss = 1e-4
  config.optim.learning_rate = 6e-4
  config.optim.schedule = 'lm.optim.optimizers:warmup_stable_decay'
  config.optim.warmup_steps = 1000
  config.eval.every = 1000
  config.eval.batch_size = 16
  config.checkpoint.every = 1000
  return select_variant(config, arg, smoke=_smoke)


def _smoke(config):
  config.microbatches = 2
  return smoke(config)
