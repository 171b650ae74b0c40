"""Tries meshes, batch sizes and what is remembered of the pass forward, and ranks what fits.

Compiling takes a minute or more, so that arithmetic goes first: what cannot fit is left out, the
rest is put in order by what it must compute and send, and only the first few are compiled. For GPUs
arithmetic has the last word, too. A batch is taken in one part first, and where that does not fit
in those of the config.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from lm import components
from lm.errors import UserError
from lm.preflight import arithmetic, check, least, program
from lm.preflight.bound import Bound
from lm.preflight.chips import Chip, Slice
from lm.preflight.devices import devices
from lm.preflight.processors import Processor
from lm.training.train_step import abstract_state

REMATS = (
  None,
  'jax:checkpoint_policies.dots_with_no_batch_dims_saveable',
  'jax:checkpoint_policies.nothing_saveable',
)
BATCHES = (1, 2)  # times the config's
TENSOR = 16  # devices at the most that share a layer: beyond, their exchanges leave no time


class Tried(NamedTuple):
  """One choice."""

  flags: str  # to give to lm.train
  fits: bool
  memory: float  # bytes of a device
  tokens: float  # a second
  utilisation: float


class _Choice(NamedTuple):
  changes: dict[str, Any]
  seconds: float  # of a token, at the least


def search(
  config: ConfigDict, slice_: Slice, most: int, tell: Callable[[str], None] = lambda text: None
) -> list[Tried]:
  """Returns what was compiled, or reckoned for GPUs, the fastest that fits first.

  Args:
    config: with a model that divides over some mesh.
    slice_: the chips.
    most: how many choices to compile, or to return of those that were reckoned.
    tell: is told of each.

  Raises:
    UserError: no mesh divides, or the parameters fit on none.
  """
  if isinstance(slice_.chip, Processor):
    return _reckoned(config, slice_, most, tell)
  described = devices(slice_)
  choices: list[_Choice] = []
  for changes in candidates(config, len(described), slice_.slices):
    fit = (_arithmetic(config, each, slice_, described) for each in _in_parts(changes))
    choices.extend(itertools.islice(filter(None, fit), 1))
  if not choices:
    raise UserError(
      f'--topology={slice_.topology}: on no mesh do parameters and optimizer divide and fit into '
      f'{slice_.chip.memory / 2**30:.0f} GiB a chip; take a larger slice'
    )
  choices.sort(key=lambda choice: choice.seconds)
  tell(f'{len(choices)} choices could fit; compiling {min(most, len(choices))} of them')
  tried = []
  for choice in choices[:most]:
    one = _tried(config, choice.changes, slice_)
    tell(f'{one.tokens:12,.0f} tokens/s, {"fits" if one.fits else "does not fit"}: {one.flags}')
    tried.append(one)
  return sorted(tried, key=lambda one: (not one.fits, -one.tokens))


def _tried(config: ConfigDict, changes: dict[str, Any], slice_: Slice) -> Tried:
  """Returns what the compiler says; of the config's parts, where the batch in one does not fit."""
  for each in _in_parts(changes):
    try:
      found = check.check(changed(config, each), slice_)
    except program.NoRoom as e:
      one = Tried(flags_of(each), False, e.needed, 0.0, 0.0)
      continue
    memory, rates = found.step.memory.total, found.estimate
    one = Tried(flags_of(each), found.fits, memory, rates.tokens, rates.utilisation)
    if one.fits:
      break
  return one


def _reckoned(
  config: ConfigDict, slice_: Slice, most: int, tell: Callable[[str], None]
) -> list[Tried]:
  """Returns the best by their bounds; where these are equal, what has less to do comes first."""
  found: list[tuple[float, float, Tried]] = []
  refused = ''
  for changes in candidates(config, slice_.chips, slice_.slices, across=True):
    for each in _in_parts(changes):
      try:
        one = arithmetic.check(changed(config, each), slice_)
      except UserError as e:  # an axis that does not divide
        refused = str(e)
        break
      bound, memory = one.estimate, one.step.memory.total
      assert isinstance(bound, Bound)
      tried = Tried(flags_of(each), one.fits, memory, bound.tokens, bound.utilisation)
      found.append((-bound.tokens, bound.alone / one.step.tokens, tried))
      tell(f'{bound.tokens:12,.0f} tokens/s, {"fits" if one.fits else "no room"}: {tried.flags}')
      if one.fits:
        break
  if not found:
    raise UserError(f'--topology={slice_.topology}: no mesh does ({refused})')
  found.sort(key=lambda one: (not one[2].fits, one[:2]))
  tell(f'{len(found)} choices divide, {sum(one[2].fits for one in found)} of them fit')
  return [tried for *_, tried in found[:most]]


def flags_of(changes: dict[str, Any]) -> str:
  """Returns changes of a config as they are given to a program."""
  return ' '.join(f'--config.{key}={value}' for key, value in changes.items())


def nearest(config: ConfigDict, slice_: Slice) -> str:
  """Returns what to change so that a config fits, by arithmetic: the least of several things.

  On TPUs parameters, optimizer and what is kept of the pass forward are to fit into nine tenths of
  the memory; the compiler has the last word.
  """
  described = devices(slice_)
  size = len(described)
  whole = {'mesh.data': slice_.slices, 'mesh.fsdp': size // slice_.slices, 'mesh.tensor': 1}
  if isinstance(slice_.chip, Processor):
    whole |= {'mesh.data': 1, 'mesh.fsdp': size}
  steps: list[dict[str, Any]] = [{}]
  if 'remat_policy' in config.model and config.model.remat_policy != REMATS[-1]:
    steps.append({'model.remat_policy': REMATS[-1]})
  steps += [steps[-1] | whole]
  steps += [
    last | {'microbatches': times * config.microbatches}
    for times in (2, 4, 8, 16, 32)
    for last in steps[1:3]
  ]
  for changes in steps:
    if changes and _would_fit(config, changes, slice_, described):
      return f'by arithmetic this fits: {flags_of(changes)}'
  chip = slice_.chip
  held = _held(changed(config, whole), described) * size
  if isinstance(chip, Processor) and chip.most == 1:
    return f'by arithmetic its parameters and optimizer alone are {held / 2**30:.1f} GiB'
  more = math.ceil(held / (0.5 * chip.memory / chip.devices)) // chip.devices
  what = 'nodes with' if isinstance(chip, Processor) else 'slices of'
  return f'by arithmetic {chip.name} {what} some {max(more, size + 1):,} chips and more hold it'


def _would_fit(
  config: ConfigDict, changes: dict[str, Any], slice_: Slice, described: Sequence[Any]
) -> bool:
  if not isinstance(slice_.chip, Processor):
    return _arithmetic(config, changes, slice_, described, share=0.9) is not None
  try:
    return arithmetic.check(changed(config, changes), slice_).fits
  except UserError:  # an axis that does not divide
    return False


def candidates(
  config: ConfigDict, devices: int, slices: int, across: bool = False
) -> Iterator[dict[str, Any]]:
  """Yields changes of a config: a mesh, a batch size, a policy of what is remembered.

  Slices lie along `data`; where it may go `across` them, along `fsdp` too. The batch is taken in
  one part, for devices bring kernels together and add up gradients in each.
  """
  remats = REMATS if 'remat_policy' in config.model else (None,)
  splits = [
    (data, devices // data // tensor, tensor)
    for tensor in range(1, min(TENSOR, devices) + 1)
    for data in range(1, devices + 1)
    if devices % (data * tensor) == 0
    and (data % slices == 0 or (across and devices // data // tensor % slices == 0))
  ]
  for (data, fsdp, tensor), times, remat in itertools.product(splits, BATCHES, remats):
    changes = {
      'mesh.data': data,
      'mesh.fsdp': fsdp,
      'mesh.tensor': tensor,
      'batch_size': times * config.batch_size,
    }
    changes |= {'microbatches': 1} if config.microbatches > 1 else {}
    yield changes | ({'model.remat_policy': remat} if remat else {})


def _in_parts(changes: dict[str, Any]) -> Iterator[dict[str, Any]]:
  """Yields changes, and then those that leave the batch in the parts of the config."""
  yield changes
  if 'microbatches' in changes:
    yield {key: value for key, value in changes.items() if key != 'microbatches'}


def changed(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
  """Returns a config with other values of some leaves."""
  other = copy.deepcopy(config)
  with other.unlocked():
    other.update_from_flattened_dict(changes)
  return other


def _held(config: ConfigDict, described: Any) -> int:
  """Returns the bytes of parameters and optimizer on a device."""
  state, _ = abstract_state(
    components.build_components(config, program.vocabulary(config), described)
  )
  return program.held(state.params) + program.held(state.opt_state)


def _arithmetic(
  config: ConfigDict, changes: dict[str, Any], slice_: Slice, described: Any, share: float = 1.0
) -> _Choice | None:
  """Returns a choice with the time it takes at the least, or None where it does not fit.

  What is kept of the pass forward is that of one of the parts of a batch.
  """
  other = changed(config, changes)
  try:
    functions = components.build_components(other, program.vocabulary(other), described)
    state, _ = abstract_state(functions)
  except UserError:  # an axis that does not divide
    return None
  room = share * slice_.chip.room
  held = program.held(state.params) + program.held(state.opt_state)
  kept = program.activations(functions, state, program.batch_of(other, functions))
  if held + kept / other.microbatches > room:
    return None
  tokens = program.tokens_of(other)
  flops = getattr(functions.model, 'flops_per_token', None)
  needed = tokens * flops(state.params, other.data.context) if flops else 0.0
  again = 4 / 3 if changes.get('model.remat_policy') == REMATS[-1] else 1.0
  assert isinstance(slice_.chip, Chip)
  sent = least.least(other, functions.model, functions.mesh, state.params) or {}
  slow = sum(size for axis, size in sent.items() if axis == 'data' and slice_.slices > 1)
  seconds = max(
    needed * again / slice_.chip.flops / slice_.chips,
    (sum(sent.values()) - slow) / (2 * slice_.chip.link) + slow / slice_.chip.network,
  )
  return _Choice(changes, seconds / tokens)
