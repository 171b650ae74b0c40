"""Whether the batches and the steps of a run fit the memory of the host, checked at start-up.

Where they do not, the kernel ends the process in the middle of a step, without a word.
"""

import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from lm.data import batches
from lm.errors import UserError
from lm.parallel import mesh as meshes
from lm.run.build import Functions, parameter_count
from lm.run.step import TrainState

_GIB = 2**30


def available(root: pathlib.Path = pathlib.Path('/')) -> int | None:
  """Returns how many bytes this process may still take, None where the system does not say.

  It is what the machine has left, or the control group (cgroup) of the process, if that is less.
  """
  try:
    lines = (root / 'proc/meminfo').read_text().splitlines()
    left = next(int(x.split()[1]) * 1024 for x in lines if x.startswith('MemAvailable:'))
  except (OSError, StopIteration, ValueError, IndexError):
    return None
  return min([left, *_left_of_groups(root)])


def _left_of_groups(root: pathlib.Path) -> list[int]:
  """Returns the bytes left to the control groups of this process that have a limit."""
  try:
    group = (root / 'proc/self/cgroup').read_text().splitlines()[-1].rpartition(':')[2].strip('/')
  except (OSError, IndexError):
    group = ''
  folders = [root / 'sys/fs/cgroup' / group]
  folders += [folder for folder in folders[0].parents if folder.is_relative_to(root / 'sys/fs')]
  found = []
  for folder in (*folders, root / 'sys/fs/cgroup/memory'):
    for limit, used in (
      ('memory.max', 'memory.current'),
      ('memory.limit_in_bytes', 'memory.usage_in_bytes'),
    ):
      try:
        most, taken = (int((folder / name).read_text()) for name in (limit, used))
        stat = (folder / 'memory.stat').read_text().splitlines()
        # Pages of files that can be given back at once.
        cached = sum(int(x.split()[1]) for x in stat if x.startswith('inactive_file '))
      except (OSError, ValueError, IndexError):  # there is none, or it is 'max'
        continue
      found.append(max(0, most - taken + cached))
  return found


def check_batches(
  config: ConfigDict,
  functions: Functions,
  rows: batches.AnyRows,
  transforms: Sequence[batches.Transform],
) -> None:
  """Raises UserError where the batches that a host holds do not fit its memory; makes none.

  Args:
    config: the whole configuration.
    functions: those of the config.
    rows: of training; those of evaluation are taken to be as large.
    transforms: of these rows.
  """
  left = available()
  if left is None:
    return
  row = _row_bytes(config, rows, transforms)
  for key, size, count in (
    ('batch_size', config.batch_size, _held_rows(config, functions)),
    ('eval.batch_size', config.eval.batch_size, config.eval.batch_size),
  ):
    need = count * row
    if need > left:
      fit = _divisible(size * left // need, config, functions)
      raise UserError(
        f'{key}={size}: the batches that this host holds at once take {_gib(need)} of memory, and '
        f'{_gib(left)} are available; {key} is at most {fit}, before what a step itself takes'
      )


def check_program(
  trace: Callable[[int], Any],
  config: ConfigDict,
  functions: Functions,
  state: TrainState,
  rows: batches.AnyRows,
  transforms: Sequence[batches.Transform],
) -> None:
  """Raises UserError where the program of a step does not fit the memory of a host of CPU devices.

  The program is compiled here, and the first step compiles it no more. One that is certain to fit
  is left alone.

  Args:
    trace: returns what lm.run.step.check_step does for a batch size.
    config: the whole configuration.
    functions: those of the config.
    state: abstract.
    rows: of training.
    transforms: of these rows.
  """
  devices = functions.mesh.local_devices
  left = available() if devices[0].platform == 'cpu' else None  # other devices have their own
  if left is None or _fits_surely(config, functions, state, left):
    return
  row = _row_bytes(config, rows, transforms)
  held = _held_rows(config, functions) / config.batch_size

  def needed(size: int) -> float:
    traced = trace(size)
    program = None if traced is None else program_bytes(traced.lower().compile())
    return 0 if program is None else program * len(devices) + held * size * row

  size, need = config.batch_size, needed(config.batch_size)
  if need <= left:
    return
  line = (
    f'batch_size={size}: a step takes {_gib(need)} of the memory of this host, and {_gib(left)} '
    'are available; '
  )
  # Gradients are as large as parameters, whatever the batch.
  fixed = (_held(state) + _held(state.params)) * len(devices)
  while need > left:
    per_row = max(need - fixed, 1) / size
    size = _divisible(math.floor((left - fixed) / per_row), config, functions)
    if size < 1:
      raise UserError(
        f'{line}no batch_size fits, for parameters, gradients and optimizer take {_gib(fixed)}: '
        'make the model smaller'
      )
    need = needed(size)  # which is not quite in proportion: the loss goes by chunks
  raise UserError(f'{line}batch_size={size} would fit, or more microbatches')


def program_bytes(compiled: Any) -> int | None:
  """Returns what a compiled program holds on each device: arguments, results and temporaries."""
  found = compiled.memory_analysis()
  if found is None:
    return None
  held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
  return held + found.temp_size_in_bytes


def _fits_surely(config: ConfigDict, functions: Functions, state: TrainState, left: int) -> bool:
  """Returns whether a step takes little memory by a bound that is far above what it takes.

  A token has fewer activations than the model has parameters, and attention weights of its row.
  """
  context = config.data.context
  tokens = config.batch_size * (context + config.data.source_context)
  weights = 64 * (context + config.data.source_context)
  activations = 4 * tokens * (parameter_count(state.params) + weights)
  return activations + 3 * _held(state) * len(functions.mesh.local_devices) < left / 2


def _held(tree: Any) -> int:
  """Returns the bytes that one device holds of abstract arrays."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def _row_bytes(
  config: ConfigDict, rows: batches.AnyRows, transforms: Sequence[batches.Transform]
) -> int:
  row = batches.batch_at(rows, transforms, 1, config.seed, 0)
  return sum(x.nbytes for x in row.values())


def _held_rows(config: ConfigDict, functions: Functions) -> int:
  """Returns how many rows of training a host holds at once, in batches made ahead.

  Its first batch is the global one, which every process looks at.
  """
  sharding = meshes.batch_sharding(functions.mesh, functions.rules)
  ours = sharding.addressable_devices_indices_map((config.batch_size,)).values()
  share = len({str(index) for index in ours}) / _pieces(functions)
  ahead = min(batches.AHEAD * config.dispatch, config.steps)
  return math.ceil(config.batch_size * max(1.0, share * ahead))


def _divisible(most: int, config: ConfigDict, functions: Functions) -> int:
  """Returns the largest batch size up to `most` that the mesh and the microbatches divide."""
  parts = _pieces(functions) * config.microbatches
  return max(0, most - most % parts)


def _pieces(functions: Functions) -> int:
  """Returns over how many devices of all processes a batch is split."""
  with meshes.set_mesh(functions.mesh, functions.rules):
    return meshes.num_shards('batch')


def _gib(size: float) -> str:
  return f'{size / _GIB:.2f} GiB' if size < 100 * _GIB else f'{size / _GIB:,.0f} GiB'
