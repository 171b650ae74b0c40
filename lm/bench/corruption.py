"""Steps on corrupted text: the cost of the corruption, and that of logits at all positions.

  python -m lm.bench corruption --config=experiments/bert_pretrain.py [--rounds=N] [--steps=N]
      [--json]

The kinds of steps take turns in one process, with one state:
  corrupted    batches are read and corrupted while the steps run, as in training
  precomputed  the same steps, whose batches are in memory
  all_logits   the same with logits at every position, where the objective needs those of masked
               tokens alone
Ratios are medians over the rounds, with quartiles. The first round, which compiles, is not counted.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator

import numpy as np

from lm.bench.interleaved import positive_int, spread
from lm.errors import UserError

Batch = dict[str, np.ndarray]


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of this subcommand."""
  add = parser.add_argument
  add('--config', required=True, metavar='FILE:ARG', help='an experiment with data.transforms')
  add('--rounds', type=positive_int, default=9, metavar='N', help='(default 9)')
  add('--steps', type=positive_int, default=10, metavar='N', help='of a turn (default 10)')
  add('--json', action='store_true', help='print the seconds of each turn and nothing else')


def main(arguments: argparse.Namespace) -> None:
  """Measures, and prints the report as text or as JSON.

  Raises:
    UserError: the config corrupts nothing.
  """
  run = kinds(arguments.config, arguments.rounds + 1, arguments.steps)
  seconds: dict[str, list[float]] = {name: [] for name in run}
  for turn in range(arguments.rounds + 1):
    for name in list(run) if turn % 2 else reversed(run):
      start = time.perf_counter()
      run[name](arguments.steps)
      if turn:
        seconds[name].append((time.perf_counter() - start) / arguments.steps)
  print(json.dumps(seconds) if arguments.json else table(seconds))


def kinds(path: str, turns: int, steps: int) -> dict[str, Callable[[int], None]]:
  """Returns functions that run a number of steps, by the name of their kind."""
  # Imported here, because they import jax.
  import jax

  from lm.data import batches
  from lm.parallel import mesh as meshes
  from lm.training import warm_start
  from lm.training.train_step import abstract_state, make_train_step
  from lm.training.trainer import set_up
  from lm.workdir import experiment

  config = experiment.load(path)
  if not config.data.transforms:
    raise UserError(f'--config={path}: data.transforms is empty, so there is nothing to measure')
  tokenizer, rows, transforms, _, functions = set_up(config, devices=jax.devices()[:1])
  abstract, _ = abstract_state(functions)
  state, _ = warm_start.initial_state(config, functions, tokenizer, abstract)
  step = make_train_step(functions, config.seed, config.microbatches, abstract)
  on_mesh = meshes.batch_sharding(functions.mesh, functions.rules)

  def read(count: int) -> Iterator[Batch]:
    spans = (range(i, i + 1) for i in range(count))
    for _, stacked in batches.train_batches(
      rows, transforms, config.batch_size, config.seed, spans
    ):
      yield {name: values[0] for name, values in stacked.items()}

  def runner(source: Iterator[Batch]) -> Callable[[int], None]:
    def run(times: int) -> None:
      nonlocal state
      for batch in itertools.islice(source, times):
        state, _ = step(state, meshes.make_global_batch(batch, on_mesh))
      jax.block_until_ready(state)

    return run

  kept = [*read(steps)]
  found = {'corrupted': runner(read(turns * steps)), 'precomputed': runner(itertools.cycle(kept))}
  if 'masked' in kept[0]:
    found['all_logits'] = runner(itertools.cycle([everywhere(batch) for batch in kept]))
  return found


def everywhere(batch: Batch) -> Batch:
  """Returns a batch of masked tokens with targets and weights (B, T), of weight 0 elsewhere."""
  rest = {name: values for name, values in batch.items() if name != 'masked'}
  used = batch['weights'] > 0
  rows, places = np.nonzero(used)[0], batch['masked'][used]
  for name in ('targets', 'weights'):
    rest[name] = np.zeros(batch['inputs'].shape, batch[name].dtype)
    rest[name][rows, places] = batch[name][used]
  return rest


def table(seconds: dict[str, list[float]]) -> str:
  """Returns the report as text."""
  lines = [f'{name}: {1e3 * spread(s)["median"]:.1f} ms a step' for name, s in seconds.items()]
  base = seconds['precomputed']
  for name, of in seconds.items():
    if name != 'precomputed':
      pairs = zip(of, base, strict=True)
      ratios = [a / b if name == 'corrupted' else b / a for a, b in pairs]
      low, middle, high = (spread(ratios)[key] for key in ('low', 'median', 'high'))
      what = ('corrupted / precomputed', 'masked / all logits')[name == 'all_logits']
      lines.append(f'{what}: {middle:.3f} (quartiles {low:.3f} to {high:.3f})')
  return '\n'.join(lines)
