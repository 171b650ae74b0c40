"""Models whose speed on TPUs was published, to hold `lm.preflight` against (experiments/LOG.md).

  python -m lm.preflight --config=experiments/published_rows.py:v5e_16b --topology=v5e:16x16 --json
  python -m lm.train --config=experiments/published_rows.py:v5e_16b --workdir=gs://BUCKET/RUN

`:v5e_16b`, `:v5e_32b`, `:v5e_64b` are for slices of 256 chips, one or two, `:v5p_32b` and
`:v5p_64b` for slices of 64 chips (v5p-128). Sizes, batches, meshes and what is kept of the pass
forward are those of MaxText's configs/v5e and configs/v5p, whose READMEs have the figures in
PUBLISHED; but theirs on v5p keep products (`minimal`), which does not fit here, and here nothing is
kept. Two slices take twice the batch (--config.batch_size). They are compiled for a TPU slice and
not trained.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from lm.config import base, choose, llama, smoke

NOTHING = 'jax:checkpoint_policies.nothing_saveable'


class Row(NamedTuple):
  """A model of MaxText's `global_parameter_scale`: heads of 256, rows of 2,048 tokens."""

  depth: int
  d_model: int
  heads: int
  d_mlp: int
  rows: int  # of a chip
  chips: int
  tensor: int
  remat: str


ROWS = {
  'v5e_16b': Row(32, 4096, 64, 28_672, 6, 256, 1, NOTHING),
  'v5e_32b': Row(32, 8192, 64, 28_672, 4, 256, 1, NOTHING),
  'v5e_64b': Row(64, 8192, 64, 28_672, 2, 256, 1, NOTHING),
  'v5p_32b': Row(32, 8192, 64, 28_672, 7, 64, 4, NOTHING),
  'v5p_64b': Row(64, 8192, 64, 28_672, 3, 64, 4, NOTHING),
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


def flops(name: str) -> float:
  """Returns the FLOPs of a chip in a step as MaxText counts them: attention without its mask."""
  row, T, K, V = ROWS[name], 2048, 256, 32_000
  layer = 4 * row.d_model * row.heads * K + 3 * row.d_model * row.d_mlp
  products = 6 * row.rows * T * (row.depth * layer + row.d_model * V)
  return products + 12 * row.rows * T * T * row.heads * K * row.depth


def get_config(arg=''):
  return choose(_config('v5e_16b'), arg, smoke=_smoke, **{name: _of(name) for name in ROWS})


def _of(name):
  return lambda config: _config(name)


def _config(name):
  row, config = ROWS[name], base()
  config.batch_size = row.rows * row.chips
  config.data.source = "lm.data.sources:tfds(name='wiki40b/en')"
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bpe', 'vocab_size': 32_000})
  config.data.context = 2048
  config.model = llama(row.depth, row.d_model, row.heads, row.heads, row.d_mlp, 2048)
  config.model.head_dim = 256
  config.model.dtype = 'bfloat16'
  config.model.remat = row.remat
  config.mesh.update({'data': -1, 'fsdp': row.chips // row.tensor, 'tensor': row.tensor})
  config.eval.batch_size = 2 * row.chips
  return config


def _smoke(config):
  config.mesh.update({'fsdp': 1, 'tensor': 1})
  return smoke(config)
