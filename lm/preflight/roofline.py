"""How long a step takes on chips that nobody has asked: an estimate, and what it is made of.

The compiler says how many cycles it expects of each of its kernels, with what the memory needs in
it; of kernels that were written by hand, those of attention, it says nothing, and they are taken to
reach half of the peak. To these come the exchanges between chips: those that go on beside products
count where they take longer than everything else together, the others always.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from lm.preflight import hlo
from lm.preflight.chips import Chip, Slice
from lm.preflight.collectives import Collective

# Of the peak, what the kernels of splash attention are taken to reach: an assumption.
ATTENTION = 0.5
# Products of queries and keys, or as large ones, that each kernel makes.
_PRODUCTS = {'splash_mha_fwd': 2, 'splash_mha_dq': 3, 'splash_mha_dkv': 4}
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


class Estimate(NamedTuple):
  """Seconds of a step, and rates."""

  kernels: float  # what a device computes, its memory included
  beside: float  # exchanges while products go on
  alone: float  # exchanges that everything waits for
  step: float
  utilisation: float  # model FLOPs over what the chips could do at their peak
  tokens: float  # a second, of all chips


def estimate(
  program: hlo.Program,
  exchanges: Iterable[Collective],
  devices: Sequence[Any],
  slice_: Slice,
  model_flops: float,
  tokens: int,
  times: int = 1,
  least: float = 0.0,
) -> Estimate:
  """Returns the estimate of a step.

  Args:
    program: of one device.
    exchanges: its collectives, those of one step.
    devices: of the mesh in its order, with `coords` and `slice_index`.
    slice_: of the devices.
    model_flops: that the model needs for the batch.
    tokens: of the batch.
    times: how many steps the program takes.
    least: seconds that a step takes beside exchanges at the least, for another reason.
  """
  chip = slice_.chip
  assert isinstance(chip, Chip)
  device_flops = chip.flops / chip.devices
  kernels = cycles(program) / chip.clock + attention(program) / (ATTENTION * device_flops)
  kernels /= times
  beside, alone = 0.0, 0.0
  for one in exchanges:
    seconds = one.bytes * one.times / bandwidth(one.group, devices, chip)
    if one.beside:
      beside += seconds
    else:
      alone += seconds
  step = max(kernels, beside, least) + alone
  peak = chip.flops * slice_.chips
  return Estimate(kernels, beside, alone, step, model_flops / peak / step, tokens / step)


def cycles(program: hlo.Program, computation: str = 'ENTRY') -> float:
  """Returns the cycles that the compiler expects of a program, loops as often as they turn.

  Where it says nothing of an instruction, such as one that goes on beside an exchange, it does so
  of those within.
  """
  total = 0.0
  for instruction in program[computation]:
    if found := _CYCLES.search(instruction.attributes):
      total += int(found.group(1))
      continue
    times = hlo.turns(program, instruction)
    for called in hlo.called(instruction):
      if called in program:
        total += times * cycles(program, called)
  return total


def attention(program: hlo.Program) -> float:
  """Returns the FLOPs of the kernels of splash attention in a step of a device."""
  total = 0.0
  for times, _, instruction in hlo.walk(program):
    kind = next((k for k in _PRODUCTS if instruction.name.startswith(k + '_')), None)
    if kind is None or instruction.opcode != 'custom-call':
      continue
    operands = hlo.arrays(instruction.attributes.partition('operand_layout_constraints=')[2])
    # Of a single row there is no axis.
    rows = [x.shape for x in operands if len(x.shape) == 4] or [
      (1, *x.shape) for x in operands if len(x.shape) == 3 and x.dtype in ('bf16', 'f32')
    ]
    B, H, T, K = max(rows, key=lambda x: x[1] * x[3])
    # With the places of queries among the operands a kernel finds out by itself what is hidden.
    places = any(x.dtype == 's32' and len(x.shape) == 2 and T in x.shape for x in operands)
    total += times * _PRODUCTS[kind] * 2 * B * H * T * T * K * (0.5 if places else 1.0)
  return total


def bandwidth(group: Sequence[int], devices: Sequence[Any], chip: Chip) -> float:
  """Returns the bytes a second that each device of a group sends in a ring through all of them.

  Along each side of the torus that the group extends over there are links to both neighbours; a
  side too short to be closed to a ring has half of that. Between slices there is the network.
  """
  members = [devices[i] for i in group]
  if len({getattr(device, 'slice_index', 0) for device in members}) > 1:
    return chip.network / chip.devices
  sides = [set(side) for side in zip(*(device.coords for device in members), strict=True)]
  links = sum(2 if len(side) % chip.wraps == 0 else 1 for side in sides if len(side) > 1)
  # Two devices of one chip are nearer than neighbours.
  return (links or 2) * chip.link / chip.devices


def cost(price: float, slice_: Slice, tokens_per_second: float) -> float:
  """Returns what a billion tokens cost, from the price of a chip for an hour."""
  return price * slice_.chips / 3600 * 1e9 / tokens_per_second
