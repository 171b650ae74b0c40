"""Models whose speed on TPUs was published, to hold `lm.preflight` against (experiments/LOG.md).

  python -m lm.preflight --config=experiments/published_rows.py:v5e_16b --topology=v5e:16x16 --json
  python -m lm.train --config=experiments/published_rows.py:v5e_16b --workdir=gs://BUCKET/RUN

`:v5e_16b`, `:v5e_32b`, `:v5e_64b` are for slices of 256 chips, one or two, `:v5p_32b` and
`:v5p_64b` for slices of 64 chips (v5p-128), `:v6e_8b_16` and its like for v6e slices of as many
chips as the name ends in. Two slices take twice the batch (--config.batch_size). Sizes, batches and
meshes are those of MaxText's configs/tpu/v5e and v5p, whose READMEs have the figures in PUBLISHED,
and of AI-Hypercomputer/tpu-recipes, training/trillium, whose logs have those in SECONDS. Here
nothing is kept of the pass forward but the inputs of layers; theirs on v5p keep products, which
does not fit here, and those on v6e keep queries, keys, values and inputs of layers in the memory of
the host. They are compiled for a TPU slice and not trained.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from lm.config.base import base, llama, select_variant, smoke

NOTHING = 'jax:checkpoint_policies.nothing_saveable'


class Row(NamedTuple):
  """A model and what it is trained on; by default one of MaxText's `global_parameter_scale`."""

  depth: int
  d_model: int
  heads: int
  d_mlp: int
  rows: int  # of a chip
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
# TFLOP a second and chip, by row and number of slices. Their FLOPs are those of `flops`.
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
# Seconds of a step, by row: the last of each recipe's log.
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
  """Returns the published seconds of a step."""
  return SECONDS.get(name) or flops(name) / 1e12 / PUBLISHED[name, slices]


def flops(name: str) -> float:
  """Returns the FLOPs of a chip in a step as MaxText counted them: attention without its mask."""
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
