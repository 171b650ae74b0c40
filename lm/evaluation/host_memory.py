"""Whether the batches and the steps of a run fit the memory of the host, checked at start-up.

Where they do not, the kernel ends the process in the middle of a step, without a word.
"""

import functools
import math
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import jaxprs_in_params
from ml_collections import ConfigDict

from lm.components import Components, Inference, parameter_count
from lm.data import batches
from lm.errors import UserError
from lm.parallel import mesh as meshes
from lm.types import TrainState

_GIB = 2**30


class Program(NamedTuple):
  """A program of a run that is as large as a key of the config says."""

  key: str
  what: str  # it does, for errors
  size: int  # the value of the key, or the part of it that counts
  trace: Callable[[int], Any]  # returns the traced program of a size


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
  functions: Components,
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
  functions: Components,
  state: TrainState,
  rows: batches.AnyRows,
  transforms: Sequence[batches.Transform],
) -> None:
  """Raises UserError where the program of a step does not fit the memory of a host of CPU devices.

  The program is compiled here, and the first step compiles it no more. One that is certain to fit
  is left alone.

  Args:
    trace: returns what lm.training.train_step.check_step does for a batch size.
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

  @functools.cache
  def needed(size: int) -> float:
    traced = trace(size)
    program = None if traced is None else program_bytes(traced.lower().compile())
    return 0 if program is None else program * len(devices) + held * size * row

  # Gradients are as large as parameters, whatever the batch.
  fixed = (bytes_held(state) + bytes_held(state.params)) * len(devices)
  parts = _pieces(functions) * config.microbatches
  fits = _fitting(needed, config.batch_size, left, fixed, parts)
  if fits == config.batch_size:
    return
  line = (
    f'batch_size={config.batch_size}: a step takes {_gib(needed(config.batch_size))} of the memory '
    f'of this host, and {_gib(left)} are available; '
  )
  if not fits:
    raise UserError(
      f'{line}no batch_size fits, for parameters, gradients and optimizer take {_gib(fixed)}: '
      'make the model smaller'
    )
  raise UserError(f'{line}batch_size={fits} would fit, or more microbatches')


def check_evaluations(
  programs: Iterable[Program],
  functions: Components | Inference,
  params: Any,
  state: TrainState | None = None,
) -> None:
  """Raises UserError where an evaluation does not fit the memory of a host of CPU devices.

  As in `check_program`, a program is compiled only where it may be too large.

  Args:
    programs: those of the evaluations.
    functions: those of the config.
    params: abstract, or those that are in memory already.
    state: of a run that trains, abstract; it is held while the run evaluates.
  """
  devices = functions.mesh.local_devices
  left = available() if devices[0].platform == 'cpu' and not jax.config.jax_disable_jit else None
  if left is None:
    return
  # The arguments of a program are counted with it.
  beside = bytes_held(state) - bytes_held(params) if state is not None else -bytes_held(params)
  for key, what, size, trace in programs:
    if len(devices) * (2 * _values(trace(size).jaxpr.jaxpr) + max(beside, 0)) < left / 2:
      continue

    @functools.cache
    def needed(size: int, trace: Callable[[int], Any] = trace) -> float:
      compiled = program_bytes(trace(size).lower().compile())
      return 0 if compiled is None else len(devices) * (compiled + beside)

    fixed = len(devices) * (beside + bytes_held(params))
    fits = _fitting(needed, size, left, fixed, _pieces(functions))
    if fits != size:
      remedy = f'{key}={fits} would fit' if fits else f'no {key} fits: make the model smaller'
      raise UserError(
        f'{key}={size}: {what} takes {_gib(needed(size))} of the memory of this host, and '
        f'{_gib(left)} are available; {remedy}'
      )


def _fitting(needed: Callable[[int], float], size: int, left: int, fixed: int, parts: int) -> int:
  """Returns `size` where its program fits, else a smaller one that does; 0 where none does.

  Args:
    needed: returns the bytes of a size, which grow with it not quite in proportion.
    size: the size that is asked for.
    left: the bytes that are available.
    fixed: the bytes of any size.
    parts: a smaller size is a multiple of this.
  """
  while size and (need := needed(size)) > left:
    per_row = max(need - fixed, 1) / size
    most = max(0, math.floor((left - fixed) / per_row))
    size = min(size - 1, most) // parts * parts
  return size


def _values(jaxpr: Any) -> int:
  """Returns the bytes of all values of a program, which is more than it holds at any time."""
  total = sum(_bytes(v.aval) for v in (*jaxpr.invars, *jaxpr.constvars))
  for equation in jaxpr.eqns:
    total += sum(_bytes(v.aval) for v in equation.outvars)
    total += sum(_values(inner) for inner in jaxprs_in_params(equation.params))
  return total


def _bytes(aval: Any) -> int:
  return math.prod(aval.shape) * aval.dtype.itemsize if hasattr(aval, 'shape') else 0


def program_bytes(compiled: Any) -> int | None:
  """Returns what a compiled program holds on each device: arguments, results and temporaries."""
  found = compiled.memory_analysis()
  if found is None:
    return None
  held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
  return held + found.temp_size_in_bytes


def _fits_surely(config: ConfigDict, functions: Components, state: TrainState, left: int) -> bool:
  """Returns whether a step takes little memory by a bound that is far above what it takes.

  A token has fewer activations than the model has parameters, and attention weights of its row.
  """
  context = config.data.context
  tokens = config.batch_size * (context + config.data.source_context)
  weights = 64 * (context + config.data.source_context)
  activations = 4 * tokens * (parameter_count(state.params) + weights)
  return activations + 3 * bytes_held(state) * len(functions.mesh.local_devices) < left / 2


def bytes_held(tree: Any) -> int:
  """Returns the bytes that one device holds of abstract arrays."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def _row_bytes(
  config: ConfigDict, rows: batches.AnyRows, transforms: Sequence[batches.Transform]
) -> int:
  row = batches.batch_at(rows, transforms, 1, config.seed, 0)
  return sum(x.nbytes for x in row.values())


def _held_rows(config: ConfigDict, functions: Components) -> int:
  """Returns how many rows of training a host holds at once, in batches made ahead.

  Its first batch is the global one, which every process looks at.
  """
  sharding = meshes.batch_sharding(functions.mesh, functions.rules)
  ours = sharding.addressable_devices_indices_map((config.batch_size,)).values()
  share = len({str(index) for index in ours}) / _pieces(functions)
  ahead = min(batches.AHEAD * config.dispatch, config.steps)
  return math.ceil(config.batch_size * max(1.0, share * ahead))


def _divisible(most: int, config: ConfigDict, functions: Components) -> int:
  """Returns the largest batch size up to `most` that the mesh and the microbatches divide."""
  parts = _pieces(functions) * config.microbatches
  return max(0, most - most % parts)


def _pieces(functions: Components | Inference) -> int:
  """Returns over how many devices of all processes a batch is split."""
  with meshes.set_mesh(functions.mesh, functions.rules):
    return meshes.num_shards('batch')


def _gib(size: float) -> str:
  return f'{size / _GIB:.2f} GiB' if size < 100 * _GIB else f'{size / _GIB:,.0f} GiB'
