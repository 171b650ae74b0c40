"""A model with the sizes of Llama 3.2 1B (Grattafiori et al. 2024), on Wikipedia.

  python -m lm.preflight --config=experiments/llama_1b.py --topology=v5e:4x4
  python -m lm.train --config=experiments/llama_1b.py --workdir=gs://BUCKET/llama_1b

For a TPU slice: parameters, optimizer state and batch are sharded over 16 chips (`mesh.fsdp`).
Everything else is as in llama_8b. It was compiled for TPUs (experiments/LOG.md), and never trained.
"""

import llama_8b

from lm.config.base import llama, select_variant


def get_config(arg=''):
  model = llama(depth=16, d_model=2048, heads=32, kv_heads=8, d_mlp=8192, context=4096)
  model.tie_embeddings = True
  return select_variant(llama_8b.recipe(model, rows=64, chips=16), arg, smoke=llama_8b.small)
