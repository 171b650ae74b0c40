"""A model with the sizes of Llama 3.1 70B (Grattafiori et al. 2024), on Wikipedia.

  python -m lm.preflight --config=experiments/llama_70b.py --topology=v5p:4x4x8
  python -m lm.train --config=experiments/llama_70b.py --workdir=gs://BUCKET/llama_70b

For a TPU slice: parameters, optimizer state and batch are sharded over 128 chips (`mesh.fsdp`).
Everything else is as in llama_8b. It was compiled for TPUs (experiments/LOG.md), and never trained.
"""

import llama_8b

from lm.config.base import llama, select_variant


def get_config(arg=''):
  model = llama(depth=80, d_model=8192, heads=64, kv_heads=8, d_mlp=28_672, context=4096)
  return select_variant(llama_8b.recipe(model, rows=256, chips=128), arg, smoke=llama_8b.small)
