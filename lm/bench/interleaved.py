"""Implementations in turns on one machine, so that a disturbance hits all of them alike.

A round asks each implementation for operations at the limit of the device, and then for its work.
Ratios are within a round.
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

from lm.bench.worker import Shape, Worker
from lm.errors import UserError

OURS = 'ours'
TURN_SECONDS = 0.5  # a turn takes at least this long, so that its start-up does not count
# Above this share of the CPU used by other programs the table warns. They slow implementations
# unequally: most of all one whose threads wait for each other in every operation.
DISTURBED = 0.05


class Benchmark(NamedTuple):
  """A kind of work, who does it, and the limit of the device that it is compared with."""

  name: str
  shapes: Mapping[str, Shape]
  defaults: Mapping[str, Sequence[str]]  # names of shapes, by platform
  builds: Mapping[str, str]  # import path of `(shape, platform) -> Candidate`, by name; ours first
  limit: str  # name of the operation at the limit
  unit: str  # of its amount: FLOP or B


def positive_int(text: str) -> int:
  """Returns the value of a flag; argparse reports a ValueError with the name of this function."""
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f'{value} is not a positive integer')
  return value


def add_common_flags(parser: argparse.ArgumentParser) -> None:
  """Adds --threads and --json."""
  threads = 'CPU cores to use (default: all)'
  parser.add_argument('--threads', type=positive_int, metavar='N', help=threads)
  parser.add_argument('--json', action='store_true', help='print one JSON object and nothing else')


def add_flags(parser: argparse.ArgumentParser, benchmark: Benchmark, rounds: int) -> None:
  """Adds the flags of a benchmark."""
  names = [name for name in benchmark.builds if name != OURS]
  shapes = f"one of {', '.join(benchmark.shapes)}; may be repeated (default: the platform's)"
  turns = f'turns of each implementation (default {rounds})'
  parser.add_argument('--baseline', choices=names, metavar='NAME', help=', '.join(names))
  parser.add_argument(
    '--shape', action='append', choices=benchmark.shapes, metavar='NAME', help=shapes
  )
  parser.add_argument('--rounds', type=positive_int, default=rounds, metavar='N', help=turns)
  add_common_flags(parser)


def thread_count(arguments: argparse.Namespace) -> int:
  """Returns --threads, or the number of cores.

  Raises:
    UserError: there are fewer cores.
  """
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
  if arguments.threads is not None and arguments.threads > cores:
    raise UserError(f'--threads={arguments.threads}: this process may run on 1 to {cores} cores')
  return arguments.threads or cores


def run(benchmark: Benchmark, arguments: argparse.Namespace) -> None:
  """Measures and prints the report, as a table or as JSON.

  Raises:
    UserError: an argument is wrong, or the baseline is not installed.
  """
  threads = thread_count(arguments)
  with Worker(OURS, threads) as worker:
    device = worker(call='lm.bench.ours:device', arguments={})
  platform = device['platform']
  if arguments.baseline and platform == 'tpu':
    raise UserError('--baseline: none runs on a TPU; leave it out to measure our code alone')
  if platform == 'cpu':
    device['name'] = _processor() or device['name']
  builds = {name: benchmark.builds[name] for name in (OURS, arguments.baseline) if name}
  shapes = []
  for name in arguments.shape or benchmark.defaults[platform]:
    shape = benchmark.shapes[name]
    results = measure(builds, shape, platform, arguments.rounds, threads)
    shapes.append({'shape': name, **figures(shape, results)})
  report = {
    'benchmark': benchmark.name,
    'device': device,
    'threads': threads,
    'limit': {'name': benchmark.limit, 'unit': benchmark.unit},
    'shapes': shapes,
  }
  print(json.dumps(report) if arguments.json else table(report))


def measure(
  builds: Mapping[str, str], shape: Shape, platform: str, rounds: int, threads: int
) -> dict[str, dict[str, Any]]:
  """Returns the worker's description of each implementation and lists with one value per round.

  The lists are `run` and `limit`, in seconds, and `disturbance`: the share of the machine's CPU
  time that other programs used meanwhile. It stays empty where the system does not report that.

  Raises:
    UserError: an implementation is not installed or cannot run the shape.
  """
  with contextlib.ExitStack() as stack:
    workers = {name: stack.enter_context(Worker(name, threads)) for name in builds}
    results: dict[str, dict[str, Any]] = {name: {} for name in builds}
    times = {}
    # Ours last, so that a missing package is reported before our compilation.
    for name, worker in reversed(workers.items()):
      description = worker(build=builds[name], shape=dataclasses.asdict(shape), platform=platform)
      results[name] = description | {'run': [], 'limit': [], 'disturbance': []}
      for kind in ('limit', 'run'):
        seconds = worker(kind=kind, times=1)['seconds']
        times[name, kind] = max(1, round(TURN_SECONDS / seconds))
    for i in range(rounds):
      # The order alternates, so that a machine that slows down or cools off favors neither.
      for name, worker in workers.items() if i % 2 == 0 else reversed(workers.items()):
        for kind in ('limit', 'run'):
          before = _cpu_seconds()
          answer = worker(kind=kind, times=times[name, kind])
          after = _cpu_seconds()
          results[name][kind].append(answer['seconds'])
        busy, total = after[0] - before[0], after[1] - before[1]
        if total:
          others = max(0.0, busy - answer['cpu_seconds']) / total
          results[name]['disturbance'].append(others)
  return results


def _cpu_seconds() -> tuple[float, float]:
  """Returns the seconds that all CPUs were busy, and the elapsed ones; zeros if not known."""
  file = pathlib.Path('/proc/stat')
  if not file.is_file():
    return 0.0, 0.0
  # user nice system idle iowait irq softirq steal (proc(5)); user includes guests
  ticks = [int(word) for word in file.read_text().split('\n', 1)[0].split()[1:9]]
  second = os.sysconf('SC_CLK_TCK')
  return (sum(ticks) - ticks[3] - ticks[4]) / second, sum(ticks) / second


def spread(values: Sequence[float]) -> dict[str, float]:
  """Returns minimum, quartiles (linear interpolation), median and maximum."""
  quantiles = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()
  return dict(zip(('min', 'low', 'median', 'high', 'max'), quantiles, strict=True))


def figures(shape: Shape, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
  """Returns the figures of one shape.

  The limit of the device is the best median of all implementations, so their shares compare. The
  amount of work is that of the model, for all implementations alike. FLOPs count full attention
  and no recomputation; bytes count each parameter once per token.

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
    busy = 0.0
    for name, found in shape['implementations'].items():
      rates = found['tokens_per_second']
      quartiles = f'{rates["low"]:,.1f} to {rates["high"]:,.1f}'
      lines.append(
        f'  {name:14}{1e3 * found["step_seconds"]["median"]:10.1f}{rates["median"]:11,.1f}'
        f'{quartiles:>24}{found["share_of_limit"]:10.1%}{found["peak_bytes"] / 2**30:7.2f} GiB'
      )
      busy = max(busy, found['disturbance']['median'] if found['disturbance'] else 0.0)
    if busy > DISTURBED:
      lines.append(f'  not reliable: other programs used {busy:.0%} of the CPU')
    for name, r in shape['times_as_fast_as'].items():
      lines.append(
        f'  {r["median"]:.2f} times as fast as {name} '
        f'(quartiles {r["low"]:.2f} to {r["high"]:.2f}, all {r["min"]:.2f} to {r["max"]:.2f})'
      )
  return '\n'.join(lines)


def _processor() -> str:
  # JAX names every CPU 'cpu'.
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.is_file() else []
  return next((x.split(':', 1)[1].strip() for x in lines if x.startswith('model name')), '')
