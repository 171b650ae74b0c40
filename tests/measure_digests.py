"""Costs of digests: the time of saves and restores with them, relative to that without.

  python tests/measure_digests.py [--params=100_000_000] [--rounds=5]

Run by hand; pytest does not collect it. Saves with and without digests alternate; prints medians of
seconds and of the ratios of neighbors. `blocked` is the time of the call of `save`, plus that of a
first donating step after it less that of a later one; `background` is the rest until the save is on
disk.
"""

import argparse
import contextlib
import pathlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp

from lm.types import TrainState
from lm.workdir import checkpoints as digests
from lm.workdir.checkpoints import Checkpoints


def train_state(params: int) -> TrainState:
  """Returns a state with Adam's moments, of random values that do not compress."""
  width = 1024
  kernels = params // 12 // width // width
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
  plain = digests._own_parts
  digests._own_parts = lambda items: (plain(items)[0], [])
  try:
    yield
  finally:
    digests._own_parts = plain


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--params', type=int, default=100_000_000)
  parser.add_argument('--rounds', type=int, default=5)
  args = parser.parse_args()
  state = train_state(args.params)
  size = sum(x.nbytes for x in jax.tree.leaves(state))
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
  train = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  seconds: dict[str, list[float]] = {'blocked': [], 'background': [], 'restore': []}

  def timed(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start

  def step() -> None:
    nonlocal state
    state = jax.block_until_ready(train(state))

  with tempfile.TemporaryDirectory() as folder:
    checkpoints = Checkpoints(pathlib.Path(folder))
    step()
    for at in range(2 * args.rounds + 2):
      without = contextlib.nullcontext() if at % 2 else without_digests()
      with without:
        plain = min(timed(step) for _ in range(3))
        blocked = timed(lambda at=at: checkpoints.save(at, state)) + timed(step) - plain
        background = timed(checkpoints.wait)
        restore = timed(lambda at=at: jax.block_until_ready(checkpoints.restore(at, abstract)[0]))
      checkpoints.prune([])
      if at > 1:  # the first ones load and compile
        for name, value in zip(seconds, (blocked, background, restore), strict=True):
          seconds[name].append(value)
    checkpoints.close()
  print(f'{size / 1e9:.2f} GB')
  for name, values in seconds.items():
    off, on = values[::2], values[1::2]
    ratios = [b / a for a, b in zip(off, on, strict=True)]
    print(
      f'{name}: {statistics.median(off):.3f} s without, {statistics.median(on):.3f} s with; '
      f'ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})'
    )


if __name__ == '__main__':
  main()
