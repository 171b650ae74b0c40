"""Search over meshes, batch sizes and remat policies.

Compiling takes a minute or more. For TPUs, estimates from shapes therefore exclude the candidates
that cannot fit, and rank the others by their FLOPs and communication. Only the first few are
compiled. For GPUs the roofline bound ranks all candidates. Each candidate is tried without gradient
accumulation first. If it does not fit, it is tried with the gradient accumulation of the config.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from lm.errors import UserError
from lm.parallel.mesh import bytes_per_device
from lm.preflight import analytic, topology, train_step

REMATS = (
  None,
  'jax:checkpoint_policies.dots_with_no_batch_dims_saveable',
  'jax:checkpoint_policies.nothing_saveable',
)
BATCHES = (1, 2)  # multiples of the config's batch_size
TENSOR = 16  # maximum of mesh.tensor; with more devices, communication dominates

Changes = dict[str, Any]  # values by config key


class Candidate(NamedTuple):
  """A configuration and its figures."""

  flags: str  # for the command line of lm.train
  fits: bool
  memory: float  # bytes of a device
  tokens: float  # per second
  mfu: float


def search(
  config: ConfigDict,
  slice_: topology.Slice,
  most: int,
  log: Callable[[str], None] = lambda text: None,
) -> list[Candidate]:
  """Returns candidates: those that fit come first, each group by decreasing speed.

  Args:
    config: of a model whose sizes are divisible by at least one mesh.
    slice_: the chips.
    most: count of candidates to compile, or to return for GPUs.
    log: receives a line for each candidate.

  Raises:
    UserError: the sizes of the model are divisible by no mesh, or the parameters fit on none.
  """
  choices: Iterable[Changes] = candidates(config, slice_.chips, slice_.slices, across=True)
  if slice_.chip.platform == 'tpu':
    choices = _most_promising(config, slice_, most, log)
  found: list[tuple[tuple[bool, float, float], Candidate]] = []
  refused = ''
  for changes in choices:
    try:
      candidate, serial = _try(config, changes, slice_)
    except UserError as e:  # an array's axis is not divisible by the mesh
      refused = str(e)
      continue
    found.append(((not candidate.fits, -candidate.tokens, serial), candidate))
    log(
      f'{candidate.tokens:12,.0f} tokens/s, {"fits" if candidate.fits else "does not fit"}: '
      f'{candidate.flags}'
    )
  if not found:
    raise UserError(f'--topology={slice_.topology}: no mesh works ({refused})')
  log(f'{len(found)} candidates, {sum(one.fits for _, one in found)} fit')
  return [candidate for _, candidate in sorted(found, key=lambda one: one[0])[:most]]


def _most_promising(
  config: ConfigDict, slice_: topology.Slice, most: int, log: Callable[[str], None]
) -> list[Changes]:
  """Returns the candidates for TPUs that are worth compiling, each in its first fitting variant.

  Raises:
    UserError: none fits.
  """
  described = topology.devices(slice_)
  choices: list[tuple[float, Changes]] = []
  for changes in candidates(config, len(described), slice_.slices):
    fitting = (
      (seconds, variant)
      for variant in _variants(changes)
      if (seconds := _least_seconds(config, variant, slice_, described)) is not None
    )
    choices += itertools.islice(fitting, 1)
  if not choices:
    raise UserError(
      f'--topology={slice_.topology}: every mesh either does not divide the sizes of the model '
      f'or needs more than {slice_.chip.memory / 2**30:.0f} GiB per chip; take a larger slice'
    )
  log(f'{len(choices)} candidates could fit; compiling {min(most, len(choices))} of them')
  return [changes for _, changes in sorted(choices, key=lambda choice: choice[0])[:most]]


def _try(config: ConfigDict, changes: Changes, slice_: topology.Slice) -> tuple[Candidate, float]:
  """Returns the first variant that fits, or else the last, and its serial seconds per token.

  These are the sum of all parts of the time, as if nothing overlapped. They rank candidates
  of equal speed.
  """
  check = train_step.check if slice_.chip.platform == 'tpu' else analytic.check
  for variant in _variants(changes):
    flags, serial = flags_of(variant), math.inf
    try:
      result = check(train_step.changed(config, variant), slice_)
    except train_step.DoesNotFit as e:
      candidate = Candidate(flags, False, e.needed, 0.0, 0.0)
      continue
    timing = result.timing
    candidate = Candidate(flags, result.fits, result.needed, timing.tokens, timing.mfu)
    serial = sum(timing.parts.values()) / result.step.tokens
    if candidate.fits:
      break
  return candidate, serial


def _variants(changes: Changes) -> list[Changes]:
  """Returns changes without gradient accumulation, and then with that of the config."""
  without = {key: value for key, value in changes.items() if key != 'microbatches'}
  return [changes] if without == changes else [changes, without]


def flags_of(changes: Changes) -> str:
  """Returns changes of a config as flags of a command line."""
  return ' '.join(f'--config.{key}={value}' for key, value in changes.items())


def closest_fitting(config: ConfigDict, slice_: topology.Slice) -> str:
  """Returns a sentence on the smallest change with which a config fits, by shapes alone.

  On TPUs parameters, optimizer state and activations must fit into nine tenths of the memory, since
  only the compiler knows the rest.
  """
  chip, described = slice_.chip, topology.devices(slice_)
  size, gpu = len(described), chip.platform != 'tpu'
  data = 1 if gpu else slice_.slices
  sharded = {'mesh.data': data, 'mesh.fsdp': size // data, 'mesh.tensor': 1}
  remat = 'remat_policy' in config.model and config.model.remat_policy != REMATS[-1]
  last: Changes = {'model.remat_policy': REMATS[-1]} if remat else {}
  for times, mesh in itertools.product((1, 2, 4, 8, 16, 32), ({}, sharded)):
    microbatches = {'microbatches': times * config.microbatches} if times > 1 else {}
    changes = last | mesh | microbatches
    if changes and _would_fit(config, changes, slice_, described):
      return f'this fits by estimate: {flags_of(changes)}'
  state = train_step.describe(train_step.changed(config, sharded), described).state
  held = bytes_per_device((state.params, state.opt_state)) * size
  if chip.platform == 'cpu':
    return f'its parameters and optimizer state alone are {held / 2**30:.1f} GiB'
  chips = math.ceil(held / (0.5 * chip.memory / chip.devices)) // chip.devices
  what = 'nodes with' if gpu else 'slices of'
  return f'by estimate it needs {chip.name} {what} about {max(chips, size + 1):,} or more chips'


def _would_fit(
  config: ConfigDict, changes: Changes, slice_: topology.Slice, described: Sequence[Any]
) -> bool:
  if slice_.chip.platform == 'tpu':
    return _least_seconds(config, changes, slice_, described, share=0.9) is not None
  try:
    return analytic.check(train_step.changed(config, changes), slice_).fits
  except UserError:  # an array's axis is not divisible by the mesh
    return False


def candidates(
  config: ConfigDict, devices: int, slices: int, across: bool = False
) -> Iterator[Changes]:
  """Yields changes of a config: a mesh, a batch size and a remat policy.

  The size of the axis `data` is a multiple of the count of slices. With `across`, `fsdp` may
  be that multiple instead. Gradient accumulation is off, since each microbatch all-gathers the
  kernels and reduce-scatters the gradients.
  """
  remats = REMATS if 'remat_policy' in config.model else (None,)
  meshes = [
    (data, devices // data // tensor, tensor)
    for tensor in range(1, min(TENSOR, devices) + 1)
    for data in range(1, devices + 1)
    if devices % (data * tensor) == 0
    and (data % slices == 0 or (across and devices // data // tensor % slices == 0))
  ]
  for (data, fsdp, tensor), times, remat in itertools.product(meshes, BATCHES, remats):
    changes = {
      'mesh.data': data,
      'mesh.fsdp': fsdp,
      'mesh.tensor': tensor,
      'batch_size': times * config.batch_size,
    }
    changes |= {'microbatches': 1} if config.microbatches > 1 else {}
    yield changes | ({'model.remat_policy': remat} if remat else {})


def _least_seconds(
  config: ConfigDict,
  changes: Changes,
  slice_: topology.Slice,
  described: Sequence[Any],
  share: float = 1.0,
) -> float | None:
  """Returns a lower bound of the seconds per token on TPUs, or None if it does not fit.

  The activations are those of one microbatch. Memory traffic does not count.
  """
  other, chip = train_step.changed(config, changes), slice_.chip
  try:
    step = train_step.describe(other, described)
  except UserError:  # an array's axis is not divisible by the mesh
    return None
  functions, params = step.functions, step.state.params
  held = bytes_per_device((params, step.state.opt_state))
  activations = train_step.activations(functions, params, step.batch) / other.microbatches
  if held + activations > share * chip.usable_memory:
    return None
  recomputed = 4 / 3 if changes.get('model.remat_policy') == REMATS[-1] else 1.0
  sent = train_step.comm_lower_bound(other, functions.model, functions.mesh, params) or {}
  between = sent.pop('data', 0.0) if slice_.slices > 1 else 0.0
  computing = step.model_flops * recomputed / chip.flops / slice_.chips
  sending = sum(sent.values()) / (2 * chip.link) + between / chip.network
  return max(computing, sending) / step.tokens
