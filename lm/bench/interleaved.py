"""Benchmarks of train steps and of decoding: our code and a baseline, in turns on one machine.

Each round measures every implementation, first at an operation that reaches the limit of the
device, and then at its own work. A ratio compares times of one round, so that a disturbance of the
machine affects both. One implementation runs at a time; the processes of the others sleep.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.bench.worker import Shape, start_worker
from lm.errors import UserError
from lm.parallel import host

OURS = 'ours'
TURN_SECONDS = 0.5  # a turn takes at least this long, so that its start-up does not count
# Above this share of the CPU used by other programs, the table says that ratios are not reliable.
# A busy machine slows implementations unequally, most of all one whose threads wait for each other
# in every operation, as those of torch do.
DISTURBED = 0.05


class Benchmark(NamedTuple):
  """A kind of work, its implementations, and the limit of the device that it is compared with."""

  description: str  # for --help
  rounds: int  # by default
  shapes: Mapping[str, Shape]
  defaults: Mapping[str, Sequence[str]]  # names of shapes, by platform
  builds: Mapping[str, str]  # import path of `(shape, platform) -> Candidate`, by name; ours first
  limit: Mapping[str, str]  # name of the operation at the limit, and the unit of its amount


def _gpt2(batch_size: int) -> Shape:
  return Shape(12, 768, 12, 50257, 1024, batch_size, 'float32', prompt=32, max_tokens=64)


TRAIN = Benchmark(
  description="""\
Train steps, ours and those of a baseline: tokens per second, share of the matmul rate.

  python -m lm.bench train [--baseline=transformers|torch] [--json] [--rounds=N] [--shape=NAME ...]

Both implementations have the same sizes and precision, the same number of threads, and one device.
Parameters and optimizer state are float32. `torch` is the baseline of shapes with LSTM layers.
""",
  rounds=9,
  shapes={
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
  },
  defaults={
    'cpu': ('small', 'gpt2'),
    'gpu': ('gpt2_1k', 'gpt2_medium_1k'),
    'tpu': ('gpt2_1k', 'gpt2_medium_1k'),
  },
  builds={
    OURS: 'lm.bench.ours:train_step',
    'transformers': 'lm.bench.torch_baselines:gpt2_train_step',
    'torch': 'lm.bench.torch_baselines:lstm_train_step',
  },
  limit={'name': 'matmuls', 'unit': 'FLOP'},
)
DECODE = Benchmark(
  description="""\
Greedy decoding, ours and that of a baseline: tokens per second and share of the bandwidth.

  python -m lm.bench decode [--baseline=transformers] [--json] [--rounds=N] [--shape=NAME ...]

The model is a GPT-2 of 124M parameters with random weights in float32. Prompts of 32 tokens get 64
new tokens, in batches of 1 and of 8. The time includes the prefill. Our code is the loop of
`lm.generate`, and the baseline is `generate` of transformers with its KV cache. Both use the same
number of threads.

A step is a new token in each row. It reads each parameter and the KV cache of the tokens so far.
These bytes, over the time of a step, are compared with the memory bandwidth of the machine. The
bandwidth is measured by an addition to a large array in place, which reads and writes it.
""",
  rounds=5,
  shapes={
    'tiny': Shape(2, 32, 2, 65, 32, 2, 'float32', prompt=4, max_tokens=8),
    'gpt2_b1': _gpt2(1),
    'gpt2_b8': _gpt2(8),
    'gpt2_b64': _gpt2(64),
  },
  defaults=dict.fromkeys(('cpu', 'gpu', 'tpu'), ('gpt2_b1', 'gpt2_b8')),
  builds={
    OURS: 'lm.bench.ours:decoding',
    'transformers': 'lm.bench.torch_baselines:gpt2_decoding',
  },
  limit={'name': 'memory', 'unit': 'B'},
)
BENCHMARKS = {'train': TRAIN, 'decode': DECODE}  # by subcommand


def positive_int(text: str) -> int:
  """Returns the value of a flag. After a ValueError argparse prints the name of this function."""
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f'{value} is not a positive integer')
  return value


def add_common_flags(parser: argparse.ArgumentParser) -> None:
  """Adds --threads and --json."""
  threads = 'CPU cores to use (default: all)'
  parser.add_argument('--threads', type=positive_int, metavar='N', help=threads)
  parser.add_argument('--json', action='store_true', help='print one JSON object and nothing else')


def add_flags(benchmark: Benchmark, parser: argparse.ArgumentParser) -> None:
  """Adds the flags of a benchmark."""
  names = [*benchmark.builds][1:]
  shapes = (
    f'one of {", ".join(benchmark.shapes)}; may be repeated (default: depends on the platform)'
  )
  turns = f'rounds, one turn of each implementation in every round (default {benchmark.rounds})'
  add = parser.add_argument
  add('--baseline', choices=names, metavar='NAME', help=', '.join(names))
  add('--shape', action='append', choices=benchmark.shapes, metavar='NAME', help=shapes)
  add('--rounds', type=positive_int, default=benchmark.rounds, metavar='N', help=turns)
  add_common_flags(parser)


def thread_count(arguments: argparse.Namespace) -> int:
  """Returns --threads, or the count of cores.

  Raises:
    UserError: this process may run on fewer cores than --threads.
  """
  cores = host.available_cores()
  if arguments.threads is not None and arguments.threads > cores:
    raise UserError(f'--threads={arguments.threads}: this process may run on 1 to {cores} cores')
  return arguments.threads or cores


def run(benchmark: Benchmark, arguments: argparse.Namespace) -> None:
  """Measures, and prints the report as a table or as JSON.

  Raises:
    UserError: an argument is wrong, or the baseline is not installed.
  """
  threads = thread_count(arguments)
  if arguments.baseline == 'torch' and not arguments.shape:
    raise UserError('--baseline=torch needs a shape with LSTM layers, --shape=article')
  for name in arguments.shape or ():
    baseline = 'torch' if benchmark.shapes[name].d_hidden else 'transformers'
    if arguments.baseline not in (None, baseline):
      raise UserError(
        f'--shape={name}: its baseline is --baseline={baseline}, not {arguments.baseline}'
      )
  with start_worker(OURS, threads) as ask:
    device = ask(call='lm.bench.ours:device', arguments={})
  platform = device['platform']
  if arguments.baseline and platform == 'tpu':
    raise UserError('--baseline: none runs on a TPU; leave it out to measure our code alone')
  if platform == 'cpu':
    device['name'] = host.cpu_name() or device['name']  # JAX calls every CPU 'cpu'
  builds = {name: benchmark.builds[name] for name in (OURS, arguments.baseline) if name}
  names = arguments.shape or benchmark.defaults[platform]
  report = {
    'benchmark': arguments.command,
    'device': device,
    'threads': threads,
    'limit': benchmark.limit,
    'shapes': [
      {'shape': name} | figures(shape, measure(builds, shape, platform, arguments.rounds, threads))
      for name, shape in ((name, benchmark.shapes[name]) for name in names)
    ],
  }
  print(json.dumps(report) if arguments.json else table(report))


def measure(
  builds: Mapping[str, str], shape: Shape, platform: str, rounds: int, threads: int
) -> dict[str, dict[str, Any]]:
  """Returns the description of each implementation, and lists with a value for each round.

  The lists are `run` and `limit`, in seconds, and `disturbance`. The last is the share of the
  machine's CPU time that other programs used meanwhile, and empty if the system does not report it.

  Raises:
    UserError: an implementation is not installed or cannot run the shape.
  """
  with contextlib.ExitStack() as stack:
    workers = {name: stack.enter_context(start_worker(name, threads)) for name in builds}
    results: dict[str, dict[str, Any]] = {name: {} for name in builds}
    times = {}
    # Ours last, so that a missing package is reported before our compilation.
    for name, ask in reversed(workers.items()):
      description = ask(build=builds[name], shape=dataclasses.asdict(shape), platform=platform)
      results[name] = description | {'run': [], 'limit': [], 'disturbance': []}
      for kind in ('limit', 'run'):
        seconds = ask(kind=kind, times=1)['seconds']
        times[name, kind] = max(1, round(TURN_SECONDS / seconds))
    for i in range(rounds):
      # The order alternates, so that a machine that slows down or cools off favors neither.
      for name, ask in workers.items() if i % 2 == 0 else reversed(workers.items()):
        for kind in ('limit', 'run'):
          before = _cpu_seconds()
          answer = ask(kind=kind, times=times[name, kind])
          busy, total = _cpu_seconds() - before
          results[name][kind].append(answer['seconds'])
        if total:
          results[name]['disturbance'].append(max(0.0, busy - answer['cpu_seconds']) / total)
  return results


def _cpu_seconds() -> np.ndarray:
  """Returns the busy seconds and all seconds of all CPUs since the start; zeros if not known."""
  file = pathlib.Path('/proc/stat')
  if not file.is_file():
    return np.zeros(2)
  # user nice system idle iowait irq softirq steal (proc(5)); user includes guests
  ticks = [int(word) for word in file.read_text().split('\n', 1)[0].split()[1:9]]
  return np.array([sum(ticks) - ticks[3] - ticks[4], sum(ticks)]) / os.sysconf('SC_CLK_TCK')


def spread(values: Sequence[float]) -> dict[str, float]:
  """Returns minimum, quartiles (linear interpolation), median and maximum."""
  quantiles = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()
  return dict(zip(('min', 'low', 'median', 'high', 'max'), quantiles, strict=True))


def figures(shape: Shape, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
  """Returns the figures of one shape.

  The limit of the device is the best median of all implementations, so that their shares are
  comparable. The amount of work is that of the model, the same for all implementations. FLOPs count
  full attention and no recomputation; bytes count each parameter once per step.

  Args:
    shape: sizes.
    results: from `measure`; the first is ours.
  """
  first, *others = results
  amount = results[first]['amount'] / shape.steps
  limits = {
    name: result['limit_amount'] / statistics.median(result['limit'])
    for name, result in results.items()
  }
  limit = max(limits.values())
  implementations = {}
  for name, result in results.items():
    seconds = [value / shape.steps for value in result['run']]
    implementations[name] = {
      'step_seconds': spread(seconds),
      'tokens_per_second': spread([shape.tokens / value for value in seconds]),
      'limit_per_second': limits[name],
      'share_of_limit': amount / statistics.median(seconds) / limit,
      'disturbance': spread(result['disturbance']) if result['disturbance'] else None,
      **{key: result[key] for key in ('peak_bytes', 'first_seconds', 'versions')},
    }
  faster = {
    name: spread([b / a for a, b in zip(results[first]['run'], results[name]['run'], strict=True)])
    for name in others
  }
  return {
    'sizes': dataclasses.asdict(shape) | {'step_amount': amount},
    'rounds': len(results[first]['run']),
    'limit_per_second': limit,
    'implementations': implementations,
    'times_as_fast_as': faster,
  }


def table(report: dict[str, Any]) -> str:
  """Returns the report as text."""
  device, threads, limit = report['device'], report['threads'], report['limit']
  on = f'{threads} threads' if device['platform'] == 'cpu' else 'one device'
  lines = [f'{device["platform"]} {device["name"]}, {on}']
  for shape in report['shapes']:
    sizes = Shape(**{k: v for k, v in shape['sizes'].items() if k != 'step_amount'})
    rate = shape['limit_per_second']
    rate_text = f'{rate / 1e12:.1f} T' if rate >= 1e12 else f'{rate / 1e9:.1f} G'
    lines += [
      '',
      f'{shape["shape"]}: {sizes}; {shape["rounds"]} rounds; '
      f'{limit["name"]} at {rate_text}{limit["unit"]}/s',
      f'  {"":14}{"ms a step":>10}{"tokens/s":>11}{"quartiles":>24}{"of limit":>10}{"memory":>11}',
    ]
    for name, result in shape['implementations'].items():
      rates = result['tokens_per_second']
      quartiles = f'{rates["low"]:,.1f} to {rates["high"]:,.1f}'
      lines.append(
        f'  {name:14}{1e3 * result["step_seconds"]["median"]:10.1f}{rates["median"]:11,.1f}'
        f'{quartiles:>24}{result["share_of_limit"]:10.1%}{result["peak_bytes"] / 2**30:7.2f} GiB'
      )
    lines += [
      f'  {r["median"]:.2f} times as fast as {name} '
      f'(quartiles {r["low"]:.2f} to {r["high"]:.2f}, all {r["min"]:.2f} to {r["max"]:.2f})'
      for name, r in shape['times_as_fast_as'].items()
    ]
    disturbances = [result['disturbance'] for result in shape['implementations'].values()]
    busy = max(values['median'] if values else 0.0 for values in disturbances)
    if busy > DISTURBED:
      lines[-1] += f'; not reliable: other programs used {busy:.0%} of the CPU'
  return '\n'.join(lines)
