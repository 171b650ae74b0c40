"""Tries meshes, batch sizes and what is remembered of the pass forward, and ranks what fits.

Compiling takes a minute or more, so that arithmetic goes first: what cannot fit is left out, the
rest is put in order by what it must compute and send, and only the first few are compiled.
"""

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from lm.errors import UserError
from lm.preflight import check, least, program
from lm.preflight.chips import Slice
from lm.run import build
from lm.run.step import abstract_state

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
  """Returns what was compiled, the fastest that fits first.

  Args:
    config: with a model that divides over some mesh.
    slice_: the chips.
    most: how many choices to compile.
    tell: is told of each.

  Raises:
    UserError: no mesh divides, or the parameters fit on none.
  """
  devices = program.devices(slice_)
  choices = []
  for changes in candidates(config, len(devices), slice_.slices):
    choice = _arithmetic(config, changes, slice_, devices)
    if choice is not None:
      choices.append(choice)
  if not choices:
    raise UserError(
      f'--topology={slice_.topology}: on no mesh do parameters and optimizer divide and fit into '
      f'{slice_.chip.memory / 2**30:.0f} GiB a chip; take a larger slice'
    )
  choices.sort(key=lambda choice: choice.seconds)
  tell(f'{len(choices)} choices could fit; compiling {min(most, len(choices))} of them')
  tried = []
  for choice in choices[:most]:
    found = check.check(changed(config, choice.changes), slice_)
    flags = ' '.join(f'--config.{key}={value}' for key, value in choice.changes.items())
    one = Tried(
      flags,
      found.fits,
      found.step.memory.total,
      found.estimate.tokens,
      found.estimate.utilisation,
    )
    tell(f'{one.tokens:12,.0f} tokens/s, {"fits" if one.fits else "does not fit"}: {flags}')
    tried.append(one)
  return sorted(tried, key=lambda one: (not one.fits, -one.tokens))


def candidates(config: ConfigDict, devices: int, slices: int) -> Iterator[dict[str, Any]]:
  """Yields changes of a config: a mesh, a batch size, a policy of what is remembered."""
  remats = REMATS if 'remat' in config.model else (None,)
  splits = [
    (data, devices // data // tensor, tensor)
    for tensor in range(1, min(TENSOR, devices) + 1)
    for data in range(slices, devices + 1, slices)
    if devices % (data * tensor) == 0
  ]
  for (data, fsdp, tensor), times, remat in itertools.product(splits, BATCHES, remats):
    changes = {
      'mesh.data': data,
      'mesh.fsdp': fsdp,
      'mesh.tensor': tensor,
      'batch_size': times * config.batch_size,
    }
    yield changes | ({'model.remat': remat} if remat else {})


def changed(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
  """Returns a config with other values of some leaves."""
  other = copy.deepcopy(config)
  with other.unlocked():
    other.update_from_flattened_dict(changes)
  return other


def _arithmetic(
  config: ConfigDict, changes: dict[str, Any], slice_: Slice, devices: Any
) -> _Choice | None:
  """Returns a choice with the time it takes at the least, or None where it does not fit."""
  other = changed(config, changes)
  try:
    functions = build.functions(other, program.vocabulary(other), devices)
    state, _ = abstract_state(functions)
  except UserError:  # an axis that does not divide
    return None
  room = slice_.chip.memory / slice_.chip.devices * (1 - check.RESERVED)
  held = program.held(state.params) + program.held(state.opt_state)
  kept = program.activations(functions, state, program.batch_of(other, functions))
  if held + kept / other.microbatches > room:
    return None
  tokens = other.batch_size * other.data.context
  flops = getattr(functions.model, 'flops_per_token', None)
  needed = tokens * flops(state.params, other.data.context) if flops else 0.0
  again = 4 / 3 if changes.get('model.remat') == REMATS[-1] else 1.0
  sent = least.least(other, functions.model, functions.mesh, state.params) or {}
  slow = sum(size for axis, size in sent.items() if axis == 'data' and slice_.slices > 1)
  seconds = max(
    needed * again / slice_.chip.flops / slice_.chips,
    (sum(sent.values()) - slow) / (2 * slice_.chip.link) + slow / slice_.chip.network,
  )
  return _Choice(changes, seconds / tokens)
