"""Checks at start-up that the batches and programs of a run fit the memory of the host.

Without these checks, the operating system would kill the process during a step, without a message.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import jaxprs_in_params
from ml_collections import ConfigDict

from lm.components import Components, Inference, parameter_count
from lm.data import batches
from lm.data.packed_rows import Rows
from lm.errors import UserError
from lm.parallel import mesh as meshes
from lm.parallel.host import available_memory as available
from lm.parallel.mesh import bytes_per_device
from lm.types import Batch, Params, TrainState

_GIB = 2**30


class Program(NamedTuple):
  """A program, not yet traced, whose batch size is the value of a key of the config.

  Attributes:
    key: the key, such as 'eval.batch_size'.
    what: the purpose of the program, for errors.
    size: the value of the key, or less where the data has fewer rows.
    trace: returns the traced program for a batch size.
  """

  key: str
  what: str
  size: int
  trace: Callable[[int], Any]


def trace_batch(
  step: Callable[[Params, Batch], Any],
  params: Params,
  row: Mapping[str, np.ndarray],
  batch_size: int,
  functions: Inference,
) -> Any:
  """Returns the trace of a jitted step, which its first call reuses; computes nothing.

  Args:
    step: maps parameters and a batch to anything.
    params: parameters, or their shapes.
    row: a batch of one row.
    batch_size: of the program.
    functions: the model functions that the step calls, with their mesh.
  """
  sharding = meshes.batch_sharding(functions.mesh, functions.rules)
  shapes = {
    k: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype, sharding=sharding)
    for k, x in row.items()
  }
  return step.trace(params, shapes)  # type: ignore[attr-defined]


def check_batches(
  config: ConfigDict,
  functions: Components,
  rows: Rows,
  transforms: Sequence[batches.Transform],
) -> None:
  """Raises UserError if the batches that a host holds do not fit its memory; makes none.

  Args:
    config: the entire configuration.
    functions: of the config.
    rows: of training; rows of evaluation are assumed to be as large.
    transforms: of these rows.
  """
  free = available()
  if free is None:
    return
  row = _row_bytes(config, rows, transforms)
  for key, size, count in (
    ('batch_size', config.batch_size, _held_rows(config, functions)),
    ('eval.batch_size', config.eval.batch_size, config.eval.batch_size),
  ):
    need = count * row
    if need > free:
      parts = _shards(functions) * config.microbatches
      most = size * free // need // parts * parts
      raise UserError(
        f'{key}={size}: the batches in the memory of this host take {_gib(need)}, and '
        f'{_gib(free)} are available; {key}={most} would fit, not counting the step itself'
      )


def check_program(
  trace: Callable[[int], Any],
  config: ConfigDict,
  functions: Components,
  state: TrainState,
  rows: Rows,
  transforms: Sequence[batches.Transform],
) -> None:
  """Raises UserError if a train step does not fit the memory of a host with CPU devices.

  The program is compiled here, and the first step uses it. A program that fits by a wide margin is
  not compiled.

  Args:
    trace: maps a batch size to the traced step, by lm.training.train_step.check_step.
    config: the entire configuration.
    functions: of the config.
    state: abstract.
    rows: of training.
    transforms: of these rows.
  """
  devices = functions.mesh.local_devices
  free = available() if devices[0].platform == 'cpu' else None  # others have their own memory
  if free is None or _fits_surely(config, functions, state, free):
    return
  row = _row_bytes(config, rows, transforms)
  held = _held_rows(config, functions) / config.batch_size

  @functools.cache
  def needed(size: int) -> float:
    traced = trace(size)
    program = None if traced is None else program_bytes(traced.lower().compile())
    return 0 if program is None else program * len(devices) + held * size * row

  # Gradients are as large as parameters, for any batch.
  fixed = (bytes_per_device(state) + bytes_per_device(state.params)) * len(devices)
  parts = _shards(functions) * config.microbatches
  program = Program('batch_size', 'a step', config.batch_size, trace)
  _check_fits(program, needed, free, fixed, parts, ', or more microbatches')


def check_evaluations(
  programs: Iterable[Program],
  functions: Inference,
  params: Any,
  state: TrainState | None = None,
) -> None:
  """Raises UserError if an evaluation does not fit the memory of a host with CPU devices.

  As in `check_program`, a program that fits by a wide margin is not compiled.

  Args:
    programs: of the evaluations.
    functions: of the config.
    params: abstract, or already in memory.
    state: of a run that trains, abstract; it stays in memory while the run evaluates.
  """
  devices = functions.mesh.local_devices
  free = available() if devices[0].platform == 'cpu' and not jax.config.jax_disable_jit else None  # type: ignore[attr-defined]
  if free is None:
    return
  # The memory of a program includes its arguments, the parameters.
  other = (0 if state is None else bytes_per_device(state)) - bytes_per_device(params)
  fixed = len(devices) * (other + bytes_per_device(params))
  for program in programs:
    value_bytes = _value_bytes(program.trace(program.size).jaxpr.jaxpr)
    if len(devices) * (2 * value_bytes + max(other, 0)) < free / 2:
      continue

    @functools.cache
    def needed(size: int, program: Program = program) -> float:
      compiled = program_bytes(program.trace(size).lower().compile())
      return 0 if compiled is None else len(devices) * (compiled + other)

    _check_fits(program, needed, free, fixed, _shards(functions))


def _check_fits(
  program: Program,
  needed: Callable[[int], float],
  free: int,
  fixed: int,
  parts: int,
  otherwise: str = '',
) -> None:
  """Raises UserError if a program does not fit, with the size that would fit.

  Args:
    program: with the batch size of the config.
    needed: maps a batch size to bytes, which grow roughly linearly with it.
    free: the bytes that are available.
    fixed: the bytes that any batch size takes.
    parts: a smaller batch size must be a multiple of this.
    otherwise: text that names another remedy.
  """
  key, what, size, _ = program
  fits = size
  while fits and (need := needed(fits)) > free:
    per_row = max(need - fixed, 1) / fits
    fits = min(fits - 1, max(0, math.floor((free - fixed) / per_row))) // parts * parts
  if fits != size:
    none = f'no {key} fits, as the state alone takes {_gib(fixed)}; make the model smaller'
    raise UserError(
      f'{key}={size}: {what} takes {_gib(needed(size))} of the memory of this host, and '
      f'{_gib(free)} are available; {f"{key}={fits} would fit{otherwise}" if fits else none}'
    )


def _value_bytes(jaxpr: Any) -> int:
  """Returns the bytes of all values of a program, an upper bound on its peak memory."""
  produced = [v for equation in jaxpr.eqns for v in equation.outvars]
  avals = [v.aval for v in (*jaxpr.invars, *jaxpr.constvars, *produced)]
  total = sum(math.prod(x.shape) * x.dtype.itemsize for x in avals if hasattr(x, 'shape'))
  for equation in jaxpr.eqns:
    total += sum(_value_bytes(inner) for inner in jaxprs_in_params(equation.params))
  return total


def program_bytes(compiled: Any) -> int | None:
  """Returns the bytes of a compiled program per device: arguments, results and temporaries."""
  found = compiled.memory_analysis()
  if found is None:
    return None
  held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
  return held + found.temp_size_in_bytes


def _fits_surely(config: ConfigDict, functions: Components, state: TrainState, free: int) -> bool:
  """Returns whether a step fits by a bound far above the memory that it uses.

  The bound assumes that each token has at most as many activations as the model has parameters.
  Attention weights are counted separately.
  """
  context = config.data.seq_len + config.data.source_len
  activations = 4 * config.batch_size * context * (parameter_count(state.params) + 64 * context)
  return activations + 3 * bytes_per_device(state) * len(functions.mesh.local_devices) < free / 2


def _row_bytes(config: ConfigDict, rows: Rows, transforms: Sequence[batches.Transform]) -> int:
  row = batches.batch_at(rows, transforms, 1, config.seed, 0)
  return sum(x.nbytes for x in row.values())


def _held_rows(config: ConfigDict, functions: Components) -> int:
  """Returns how many training rows a host holds, in the batches that are made ahead.

  It is at least one global batch, because every process reads the first one entirely at start-up.
  """
  sharding = meshes.batch_sharding(functions.mesh, functions.rules)
  ours = sharding.addressable_devices_indices_map((config.batch_size,)).values()
  share = len({str(index) for index in ours}) / _shards(functions)
  ahead = min(batches.AHEAD * config.steps_per_call, config.steps)
  return math.ceil(config.batch_size * max(1.0, share * ahead))


def _shards(functions: Inference) -> int:
  """Returns the count of shards of a batch over the devices of all processes."""
  with meshes.set_mesh(functions.mesh, functions.rules):
    return meshes.num_shards('batch')


def _gib(size: float) -> str:
  return f'{size / _GIB:.2f} GiB' if size < 100 * _GIB else f'{size / _GIB:,.0f} GiB'
