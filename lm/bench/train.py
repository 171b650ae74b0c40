"""Our train step and that of a baseline: tokens per second, ratio, share of the matmul rate.

  python -m lm.bench train [--baseline=transformers|torch] [--json] [--rounds=N] [--shape=NAME ...]

Both have the same sizes, precision and number of threads, and a process each on one device.
Parameters and optimizer state are float32. `torch` is the baseline of shapes with LSTM layers.
"""

import argparse

from lm.bench import interleaved
from lm.bench.worker import Shape
from lm.errors import UserError

SHAPES = {
  'tiny': Shape(2, 32, 2, 65, 16, 2, 'float32'),
  # nanoGPT's recipe for Shakespeare's characters on a CPU: too small to keep matmuls busy
  'nano': Shape(4, 128, 4, 65, 64, 12, 'float32'),
  'small': Shape(6, 384, 6, 65, 256, 8, 'float32'),
  'gpt2': Shape(12, 768, 12, 50304, 256, 2, 'float32'),
  # the model of the article (experiments/article_lstm.py)
  'article': Shape(2, 300, 0, 10_000, 40, 64, 'float32', d_hidden=128),
  'tiny_lstm': Shape(1, 16, 0, 65, 8, 2, 'float32', d_hidden=16),
  'gpt2_1k': Shape(12, 768, 12, 50304, 1024, 16, 'bfloat16'),
  'gpt2_medium_1k': Shape(24, 1024, 16, 50304, 1024, 8, 'bfloat16'),
}
BENCHMARK = interleaved.Benchmark(
  name='train',
  shapes=SHAPES,
  defaults={
    'cpu': ('small', 'gpt2'),
    'gpu': ('gpt2_1k', 'gpt2_medium_1k'),
    'tpu': ('gpt2_1k', 'gpt2_medium_1k'),
  },
  builds={
    interleaved.OURS: 'lm.bench.ours:train_step',
    'transformers': 'lm.bench.torch_baselines:gpt2_train_step',
    'torch': 'lm.bench.torch_baselines:lstm_train_step',
  },
  limit='matmuls',
  unit='FLOP',
)


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of this subcommand."""
  interleaved.add_flags(parser, BENCHMARK, rounds=9)


def main(arguments: argparse.Namespace) -> None:
  """Prints the report, as a table or as JSON.

  Raises:
    UserError: an argument is wrong, or the baseline is not installed.
  """
  if arguments.baseline == 'torch' and not arguments.shape:
    raise UserError('--baseline=torch needs a shape with LSTM layers, --shape=article')
  for name in arguments.shape or ():
    baseline = 'torch' if SHAPES[name].d_hidden else 'transformers'
    if arguments.baseline not in (None, baseline):
      raise UserError(
        f'--shape={name}: its baseline is --baseline={baseline}, not {arguments.baseline}'
      )
  interleaved.run(BENCHMARK, arguments)
