"""Models with published speed on GPUs, to validate the roofline bound of `lm.preflight`.

  python experiments/published_gpu_rows.py
  python -m lm.preflight --config=experiments/published_gpu_rows.py:h100_7b --topology=h100:8 --json
  python -m lm.train --config=experiments/published_gpu_rows.py:h100_7b --workdir=runs/h100_7b

The first command needs neither a GPU nor a compiler. For each row of PUBLISHED it prints the lower
bound of the step time, the published step time, and their ratio. The rows are for nodes of 8 GPUs
and were never trained here. Sources:

- mpt: MosaicML's llm-foundry, scripts/train/benchmarking/README.md at 061f2c7. MPT models have
  GPT-2's layers. They are sharded over all GPUs (FULL_SHARD), in amp_bf16. "Activation
  Checkpointing" is full remat of each layer. The A100 nodes have 1,600 Gbit/s each; the source does
  not give the bandwidth of the H100 nodes.
- maxtext: NVIDIA's recipes "MaxText Llama2 70B" and "Llama3 70B" (catalog.ngc.nvidia.com, DGXC
  Benchmarking 25.01.1 and 25.02), for H100 in BF16. The figures are seconds of the last step.
  Parameters are sharded over all GPUs. MaxText's remat_policy is `full` there (configs/base.yml,
  configs/models/gpu).
- torchtitan: docs/performance.md at 0413364, Llama 2 and 3 on 64 A100 with FSDP2. Activation
  checkpointing is "full" or absent. Rows have 4,096 and 8,192 tokens.
"""

import sys
from typing import NamedTuple

from ml_collections import ConfigDict

from lm.config.base import base, gpt2, llama, select_variant, smoke

NOTHING = 'jax:checkpoint_policies.nothing_saveable'


class Row(NamedTuple):
  """One published row."""

  model: str  # a key of GPT or LLAMA
  gpu: str
  nodes: int  # of 8 GPUs
  context: int
  rows: int  # per GPU and microbatch
  parts: int  # microbatches per batch
  remat: str | None
  tokens: float  # per second and GPU, as published


# Depth, width, heads. d_mlp is four times the width; the vocabulary has 50,368 tokens.
GPT = {
  '1b': (24, 2048, 16),
  '3b': (32, 2560, 32),
  '7b': (32, 4096, 32),
  '13b': (40, 5120, 40),
  '30b': (48, 7168, 56),
  '70b': (80, 8192, 64),
}
# Depth, width, heads, KV heads, d_mlp, vocabulary.
LLAMA = {
  'llama2_13b': (40, 5120, 40, 40, 13_824, 32_000),
  'llama2_70b': (80, 8192, 64, 8, 28_672, 32_000),
  'llama3_70b': (80, 8192, 64, 8, 28_672, 128_256),
}
PUBLISHED = {
  # mpt
  'h100_1b': Row('1b', 'h100', 1, 2048, 14, 1, None, 45_455),
  'h100_3b': Row('3b', 'h100', 2, 2048, 10, 3, None, 24_142),
  'h100_7b': Row('7b', 'h100', 1, 2048, 6, 1, None, 10_643),
  'h100_7b_4096': Row('7b', 'h100', 1, 4096, 16, 2, NOTHING, 8_611),
  'h100_13b': Row('13b', 'h100', 8, 2048, 2, 1, None, 4_800),
  'h100_30b': Row('30b', 'h100', 4, 2048, 14, 3, NOTHING, 2_308),
  'h100_70b': Row('70b', 'h100', 8, 2048, 8, 4, NOTHING, 1_039),
  'a100_3b': Row('3b', 'a100', 1, 2048, 10, 2, None, 10_811),
  'a100_7b': Row('7b', 'a100', 1, 2048, 6, 2, None, 4_641),
  'a100_30b': Row('30b', 'a100', 1, 2048, 3, 21, NOTHING, 916),
  'a100_70b': Row('70b', 'a100', 8, 2048, 8, 4, NOTHING, 410),
  # maxtext: 7.908 s for 128 rows of 4,096 tokens, 15.570 s for 256 rows of 8,192
  'h100_llama2_70b': Row('llama2_70b', 'h100', 8, 4096, 2, 1, NOTHING, 128 * 4096 / 7.908 / 64),
  'h100_llama3_70b': Row('llama3_70b', 'h100', 16, 8192, 2, 1, NOTHING, 256 * 8192 / 15.57 / 128),
  # torchtitan
  'a100_llama2_13b': Row('llama2_13b', 'a100', 8, 4096, 2, 1, None, 2162),
  'a100_llama2_70b': Row('llama2_70b', 'a100', 8, 4096, 2, 1, NOTHING, 353),
  'a100_llama3_70b': Row('llama3_70b', 'a100', 8, 8192, 1, 1, NOTHING, 331),
}


def get_config(arg=''):
  return select_variant(
    _config('h100_7b'), arg, smoke=_smoke, **{name: _of(name) for name in PUBLISHED}
  )


def _of(name):
  return lambda config: _config(name)


def _config(name):
  row, config = PUBLISHED[name], base()
  gpus = 8 * row.nodes
  config.batch_size = row.rows * row.parts * gpus
  config.microbatches = row.parts
  config.data.source = "lm.data.sources:tfds(name='wiki40b/en')"
  config.data.seq_len = row.context
  if row.model in GPT:
    config.model, vocabulary = gpt2(*GPT[row.model], row.context), 50_368
  else:
    *sizes, vocabulary = LLAMA[row.model]
    config.model = llama(*sizes, row.context)
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bpe', 'vocab_size': vocabulary})
  config.model.dtype = 'bfloat16'
  config.model.remat_policy = row.remat
  config.mesh.update({'data': 1, 'fsdp': gpus})
  config.eval.batch_size = gpus
  return config


def _smoke(config):
  config.microbatches = 1
  config.mesh.update({'data': -1, 'fsdp': 1})
  return smoke(config)


def main(names):
  from lm.preflight import analytic
  from lm.preflight.topology import parse

  print(f'{"row":<18}{"GPUs":>5}{"bound":>9}{"published":>11}{"ratio":>7}{"GiB":>7}{"of":>6}')
  for name in names or PUBLISHED:
    row = PUBLISHED[name]
    found = analytic.check(_config(name), parse(f'{row.gpu}:8', row.nodes))
    published = found.step.tokens / (row.tokens * 8 * row.nodes)
    bound, memory = found.timing.step, found.needed / 2**30
    print(
      f'{name:<18}{8 * row.nodes:>5}{bound:>7.2f} s{published:>9.2f} s{bound / published:>7.2f}'
      f'{memory:>7.1f}{found.capacity / 2**30:>6.1f}',
      flush=True,
    )


if __name__ == '__main__':
  main(sys.argv[1:])
