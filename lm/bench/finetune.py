"""Fine-tuning of an imported encoder, ours and that of a baseline: scores and time.

  python -m lm.bench finetune --config=experiments/finetune.py:sst2,runs/minilm
      [--baseline=transformers] [--seed=N] [--turns=N] [--threads=N] [--json]

Both train on the same examples for as many epochs as the config's steps make, with its optimizer
and schedule, and as many examples a step as our rows hold on average. The scores are those of the
config's evaluation sets after the last step. Ours packs several examples into a row; the baseline
takes examples of similar length, padded to the longest. Neither drops attention weights.

The implementations train in turns on one machine: each turn is an equal share of the training. The
first steps of each, which compile, and the first of each turn are not timed.
"""

import argparse
import contextlib
import json
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from lm.bench.interleaved import OURS, add_common_flags, positive_int, spread, thread_count
from lm.bench.worker import start_worker
from lm.errors import UserError

BUILDS = {
  OURS: 'lm.bench.ours:finetuning',
  'transformers': 'lm.bench.torch_finetuning:finetuning',
}
COMPILING = 2  # steps before the first turn
Ask = Callable[..., dict[str, Any]]


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of this subcommand."""
  add = parser.add_argument
  add('--config', required=True, metavar='FILE:ARG', help='an experiment with a warm start')
  add('--baseline', choices=[*BUILDS][1:], metavar='NAME', help=', '.join([*BUILDS][1:]))
  add('--seed', type=int, default=0, metavar='N', help='of both (default 0)')
  turns = 'shares of the training, one after another for each implementation (default 20)'
  add('--turns', type=positive_int, default=20, metavar='N', help=turns)
  add_common_flags(parser)


def main(arguments: argparse.Namespace) -> None:
  """Trains, and prints the report as a table or as JSON.

  Raises:
    UserError: an argument is wrong, or the baseline is not installed.
  """
  threads = thread_count(arguments)
  # Imported here, because they import jax.
  from lm.pretrained.checkpoint import export_run
  from lm.workdir import experiment

  workdir = experiment.load(arguments.config).warm_start.workdir
  if not workdir:
    raise UserError(f'--config={arguments.config}: warm_start.workdir, where it starts, is empty')
  with contextlib.ExitStack() as stack:
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) / 'exported'
    if arguments.baseline:
      export_run(pathlib.Path(workdir), folder)
    given = {'config': arguments.config, 'seed': arguments.seed, 'folder': str(folder)}
    names = [name for name in (OURS, arguments.baseline) if name]
    workers = {name: stack.enter_context(start_worker(name, threads)) for name in names}
    # Ours last, so that a missing package is reported before our compilation.
    built = {n: ask(train=BUILDS[n], arguments=given) for n, ask in reversed(workers.items())}
    seconds = train(workers, {name: built[name]['steps'] for name in workers}, arguments.turns)
    report = {
      name: built[name] | {'seconds': seconds[name], 'scores': ask(scores=True)}
      for name, ask in workers.items()
    }
  print(json.dumps(report) if arguments.json else table(report))


def train(workers: dict[str, Ask], steps: dict[str, int], turns: int) -> dict[str, list[float]]:
  """Runs all steps of each worker; returns the seconds of a step in each turn."""
  seconds: dict[str, list[float]] = {name: [] for name in workers}
  for name, ask in workers.items():
    if steps[name] < COMPILING + 2 * turns:
      raise UserError(f'--turns={turns}: {name} has only {steps[name]} steps; take fewer turns')
    ask(kind='run', times=COMPILING - 1)
  for turn in range(turns):
    for name, ask in workers.items() if turn % 2 == 0 else reversed(workers.items()):
      first, last = (COMPILING + (steps[name] - COMPILING) * i // turns for i in (turn, turn + 1))
      seconds[name].append(ask(kind='run', times=last - first - 1)['seconds'])
  return seconds


def table(report: dict[str, Any]) -> str:
  """Returns the report as text."""
  lines = []
  for name, result in report.items():
    step = spread(result['seconds'])
    total = result['steps'] * sum(result['seconds']) / len(result['seconds'])
    scores = '  '.join(f'{key} {value:.4f}' for key, value in result['scores'].items())
    lines += [
      f'{name}: {result["steps"]} steps of {result["examples"]:.1f} examples, {total:,.0f} s after '
      f'compilation, {1e3 * step["median"]:.1f} ms a step (quartiles {1e3 * step["low"]:.1f} to '
      f'{1e3 * step["high"]:.1f})',
      f'  {scores}',
    ]
  first, *others = report
  for name in others:
    ours, baseline = ([report[n]['steps'] * s for s in report[n]['seconds']] for n in (first, name))
    ratio = spread([a / b for a, b in zip(ours, baseline, strict=True)])
    lines.append(
      f'time of ours / {name}: {ratio["median"]:.2f} (quartiles {ratio["low"]:.2f} to '
      f'{ratio["high"]:.2f}), {sum(ours) / sum(baseline):.2f} over the training'
    )
  return '\n'.join(lines)
