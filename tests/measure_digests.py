"""Costs of digests: saves and restores with them, relative to those without.

  python tests/measure_digests.py [--params=100_000_000] [--rounds=5]

Run by hand; pytest does not collect it. Saves with and without digests alternate. Prints medians of
seconds, and the median and the range of the ratios of neighbors, by the clock and by CPU time:
`blocked` is the call of `save`, `background` all until the save is on disk. CPU time, of the main
thread for `blocked` and else of the process, hardly depends on what else a machine does.
"""

import argparse
import contextlib
import pathlib
import statistics
import tempfile
import time

import absl.logging
import jax
import jax.numpy as jnp

from lm.types import TrainState
from lm.workdir import checkpoints


def train_state(params: int) -> TrainState:
  """Returns a state with Adam's moments, of random values that do not compress."""
  kernels, width = params // 12 // 2**20, 1024
  shapes = {'embedding': (4 * kernels * width, width)}
  shapes |= {f'kernel_{i}': (2 * kernels, width, width) for i in range(4)}

  def tree(seed: int) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    pairs = zip(shapes.items(), keys, strict=True)
    return {name: jax.random.normal(key, shape) for (name, shape), key in pairs}

  counts = (jnp.full((), 0, jnp.int32) for _ in range(3))
  return TrainState(*counts, tree(0), {'mu': tree(1), 'nu': tree(2)})


@contextlib.contextmanager
def without_digests():
  """Saves and restores no digests within the block."""
  plain = checkpoints._own_parts
  checkpoints._own_parts = lambda items: (plain(items)[0], [])
  try:
    yield
  finally:
    checkpoints._own_parts = plain


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--params', type=int, default=100_000_000)
  parser.add_argument('--rounds', type=int, default=5)
  args = parser.parse_args()
  absl.logging.set_verbosity(absl.logging.ERROR)
  state = jax.block_until_ready(train_state(args.params))
  size = sum(x.nbytes for x in jax.tree.leaves(state))
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
  seconds: dict[str, list[float]] = {}

  @contextlib.contextmanager
  def timed(name, cpu, wait=lambda: None):
    clocks = (time.perf_counter, cpu)
    starts = [clock() for clock in clocks]
    yield
    wait()
    for kind, clock, start in zip(('clock', 'CPU'), clocks, starts, strict=True):
      seconds.setdefault(f'{name}, {kind}', []).append(clock() - start)

  with tempfile.TemporaryDirectory() as folder:
    saved = checkpoints.Checkpoints(pathlib.Path(folder))
    for at in range(2 * args.rounds + 2):
      with contextlib.nullcontext() if at % 2 else without_digests():
        with timed('background', time.process_time, saved.wait), timed('blocked', time.thread_time):
          saved.save(at, state)
        with timed('restore', time.process_time):
          restored = jax.block_until_ready(saved.restore(at, abstract))
          del restored
      saved.prune([])
    saved.close()
  print(f'{size / 1e9:.2f} GB')
  for name, values in sorted(seconds.items()):
    off, on = values[2::2], values[3::2]  # without the first ones, which load and compile
    ratios = [b / a for a, b in zip(off, on, strict=True)]
    print(
      f'{name}: {statistics.median(off):.3f} s without, {statistics.median(on):.3f} s with; '
      f'ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})'
    )


if __name__ == '__main__':
  main()
