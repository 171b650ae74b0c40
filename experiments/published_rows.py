"""Models with published speed on TPUs, to validate `lm.preflight` (experiments/LOG.md).

  python -m lm.preflight --config=experiments/published_rows.py:v5e_16b --topology=v5e:16x16 --json
  python -m lm.train --config=experiments/published_rows.py:v5e_16b --workdir=gs://BUCKET/RUN

`:v5e_16b`, `:v5e_32b` and `:v5e_64b` are for one or two slices of 256 chips. `:v5p_32b` and
`:v5p_64b` are for slices of 64 chips (v5p-128). The v6e rows, such as `:v6e_8b_16`, are for v6e
slices; the end of the name is the chip count. Two slices need twice the batch
(--config.batch_size).

Sizes, batches and meshes have two sources. MaxText's configs/tpu/v5e and v5p have the figures of
PUBLISHED in their READMEs. AI-Hypercomputer/tpu-recipes, training/trillium, has those of SECONDS in
its logs.

These configs use full remat: the forward pass saves only the inputs of layers. The published v5p
runs also save matmul outputs, which does not fit into memory here. The published v6e runs offload
queries, keys, values and the inputs of layers to host memory. The configs are compiled for a TPU
slice and not trained.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from lm.config.base import base, llama, select_variant, smoke

NOTHING = 'jax:checkpoint_policies.nothing_saveable'


class Row(NamedTuple):
  """A model, its batch and its slice; the defaults fit MaxText's `global_parameter_scale`."""

  depth: int
  d_model: int
  heads: int
  d_mlp: int
  rows: int  # per chip
  chips: int
  tensor: int = 1
  kv_heads: int = 64
  head_dim: int = 256
  vocab_size: int = 32_000
  context: int = 2048


def _llama_8b(rows, chips, vocab_size=128_256):
  return Row(32, 4096, 32, 14_336, rows, chips, 1, 8, 128, vocab_size, 8192)


ROWS = {
  'v5e_16b': Row(32, 4096, 64, 28_672, 6, 256),
  'v5e_32b': Row(32, 8192, 64, 28_672, 4, 256),
  'v5e_64b': Row(64, 8192, 64, 28_672, 2, 256),
  'v5p_32b': Row(32, 8192, 64, 28_672, 7, 64, 4),
  'v5p_64b': Row(64, 8192, 64, 28_672, 3, 64, 4),
  'v6e_mistral_7b_8': _llama_8b(6, 8, 32_000),
  'v6e_8b_8': _llama_8b(3, 8),
  'v6e_8b_16': _llama_8b(3, 16),
  'v6e_8b_32': _llama_8b(3, 32),
  'v6e_8b_64': _llama_8b(5, 64),
  'v6e_8b_128': _llama_8b(4, 128),
  'v6e_8b_256': _llama_8b(4, 256),
  'v6e_70b_256': Row(80, 8192, 64, 28_672, 3, 256, 1, 8, 128, 32_000, 4096),  # Llama 2
}
# TFLOP/s per chip, by row and slice count. `flops` counts FLOPs in the same way.
PUBLISHED = {
  ('v5e_16b', 1): 120,
  ('v5e_16b', 2): 117,
  ('v5e_32b', 1): 132,
  ('v5e_32b', 2): 128,
  ('v5e_64b', 1): 118,
  ('v5e_64b', 2): 112,
  ('v5p_32b', 1): 328,
  ('v5p_32b', 2): 319,
  ('v5p_64b', 1): 323,
  ('v5p_64b', 2): 309,
}
# Seconds per step, by row: the last step in each recipe's log.
SECONDS = {
  'v6e_mistral_7b_8': 6.320,
  'v6e_8b_8': 3.443,
  'v6e_8b_16': 3.393,
  'v6e_8b_32': 3.495,
  'v6e_8b_64': 5.652,
  'v6e_8b_128': 4.602,
  'v6e_8b_256': 4.546,
  'v6e_70b_256': 9.052,
}


def published(name: str, slices: int = 1) -> float:
  """Returns the published seconds per step."""
  return SECONDS.get(name) or flops(name) / 1e12 / PUBLISHED[name, slices]


def flops(name: str) -> float:
  """Returns FLOPs per chip and step as MaxText counts them: masked attention counts in full."""
  row = ROWS[name]
  T, K, V = row.context, row.head_dim, row.vocab_size
  layer = 4 * row.d_model * row.heads * K + 3 * row.d_model * row.d_mlp
  products = 6 * row.rows * T * (row.depth * layer + row.d_model * V)
  return products + 12 * row.rows * T * T * row.heads * K * row.depth


def get_config(arg=''):
  return select_variant(_config('v5e_16b'), arg, smoke=_smoke, **{name: _of(name) for name in ROWS})


def _of(name):
  return lambda config: _config(name)


def _config(name):
  row, config = ROWS[name], base()
  config.batch_size = row.rows * row.chips
  config.data.source = "lm.data.sources:tfds(name='wiki40b/en')"
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bpe', 'vocab_size': row.vocab_size})
  config.data.seq_len = row.context
  config.model = llama(row.depth, row.d_model, row.heads, row.kv_heads, row.d_mlp, row.context)
  config.model.head_dim = row.head_dim
  config.model.dtype = 'bfloat16'
  config.model.remat_policy = NOTHING
  config.mesh.update({'data': -1, 'fsdp': row.chips // row.tensor, 'tensor': row.tensor})
  config.eval.batch_size = 2 * row.chips
  return config


def _smoke(config):
  config.mesh.update({'fsdp': 1, 'tensor': 1})
  return smoke(config)
