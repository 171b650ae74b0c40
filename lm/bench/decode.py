"""Our greedy decoding and that of a baseline: tokens per second, ratio, share of the bandwidth.

  python -m lm.bench decode [--baseline=transformers] [--json] [--rounds=N] [--shape=NAME ...]

The model is a GPT-2 of 124M parameters with random weights in float32. Prompts of 32 tokens get 64
new tokens, in batches of 1 and of 8; the time includes reading the prompts. Our code is the loop of
`lm.generate`, the baseline `generate` of transformers, with the same number of threads.

A step is a new token in each row. It needs each parameter and the KV cache of the tokens so far:
these bytes, over the time of a step, are compared with the memory bandwidth of the machine. The
bandwidth is measured by adding to a large array in place, which reads and writes it.
"""

import argparse

from lm.bench import interleaved
from lm.bench.worker import Shape


def _gpt2(batch_size: int) -> Shape:
  return Shape(12, 768, 12, 50257, 1024, batch_size, 'float32', prompt=32, max_tokens=64)


_DEFAULTS = ('gpt2_b1', 'gpt2_b8')
BENCHMARK = interleaved.Benchmark(
  name='decode',
  shapes={
    'tiny': Shape(2, 32, 2, 65, 32, 2, 'float32', prompt=4, max_tokens=8),
    'gpt2_b1': _gpt2(1),
    'gpt2_b8': _gpt2(8),
    'gpt2_b64': _gpt2(64),
  },
  defaults={'cpu': _DEFAULTS, 'gpu': _DEFAULTS, 'tpu': _DEFAULTS},
  builds={
    interleaved.OURS: 'lm.bench.ours:decoding',
    'transformers': 'lm.bench.torch_baselines:gpt2_decoding',
  },
  limit='memory',
  unit='B',
)


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of this subcommand."""
  interleaved.add_flags(parser, BENCHMARK, rounds=5)


def main(arguments: argparse.Namespace) -> None:
  """Prints the report, as a table or as JSON.

  Raises:
    UserError: an argument is wrong, or the baseline is not installed.
  """
  interleaved.run(BENCHMARK, arguments)
