"""Reads the HLO of a program compiled for TPUs: its collectives, and an estimate of its time.

All devices run one program (SPMD), so all sizes are those of one device. Instructions of a
loop body count once per iteration.

The time is an estimate. The cost model of the compiler gives the cycles of each kernel, memory
traffic included. It gives none for splash attention, which we assume to reach half of the peak. A
step takes the longer of two times, that of all kernels and that of all overlapped collectives. The
time of exposed collectives is added.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from lm.parallel.chips import Chip
from lm.preflight.topology import Slice

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
# Opcodes whose called computations work on scalars.
_REDUCTIONS = ('reduce', 'all-reduce', 'all-reduce-start', 'reduce-scatter', 'sort')
# A line break within the attributes of an instruction, which continue on the next line.
_CONTINUATION = r'\n(?!  |%|ENTRY|\}?[ \t]*(?:\n|$))'
_TRANSFER = r'_xla_megascale_transfer_type="(\w+)"'
# Assumed share of the peak that the kernels of splash attention reach.
ATTENTION = 0.5
# Number of matmuls in each kernel of splash attention. Each has the FLOPs of q @ k.T.
_MATMULS = {'splash_mha_fwd': 2, 'splash_mha_dq': 3, 'splash_mha_dkv': 4}


class Array(NamedTuple):
  """An array of an instruction."""

  dtype: str
  shape: tuple[int, ...]

  @property
  def bytes(self) -> float:
    """Returns the size of the array."""
    return math.prod(self.shape) * size_of(self.dtype)


class Instruction(NamedTuple):
  """One instruction of a program."""

  name: str
  opcode: str
  arrays: tuple[Array, ...]  # of the result
  attributes: str


class Timing(NamedTuple):
  """Time of a step, and the rates that follow."""

  parts: Mapping[str, float]  # seconds by name; some overlap; 0 where a part does not apply
  step: float  # seconds
  mfu: float  # model FLOPs over the peak of all chips
  tokens: float  # per second, of all chips


class Collective(NamedTuple):
  """One collective of a program."""

  kind: str
  axes: tuple[str, ...]  # mesh axes along which the participants differ
  group: tuple[int, ...]  # participants, as indices into the mesh
  bytes: float  # sent by a device each time
  times: float  # per step
  overlapped: bool  # with computation; else it is exposed


Program = dict[str, list[Instruction]]  # instructions by computation; execution starts at 'ENTRY'


def size_of(dtype: str) -> float:
  """Returns the bytes of an element: 2 for 'bf16'."""
  bits = re.search(r'\d+', dtype)
  return int(bits.group()) / 8 if bits else float(dtype == 'pred')


def parse(text: str) -> Program:
  """Returns the computations of `Compiled.as_text()`."""
  program: Program = {}
  computation = None
  for line in re.sub(_CONTINUATION, '', text).splitlines():
    if computation is None:
      if head := re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$', line):
        computation = 'ENTRY' if head.group(1) else head.group(2)
        program[computation] = []
    elif line.rstrip() == '}':
      computation = None
    elif found := re.match(r'\s+(?:ROOT )?%?([\w.\-]+) = (.*)$', line):
      program[computation].append(_instruction(*found.groups()))
  return program


def _instruction(name: str, rest: str) -> Instruction:
  result, rest = _split_parenthesis(rest) if rest.startswith('(') else rest.split(' ', 1)
  opcode, _, rest = rest.strip().partition('(')
  inside, attributes = _split_parenthesis('(' + rest)
  return Instruction(
    name, opcode, arrays(result), inside[1:-1] if opcode == 'constant' else attributes
  )


def arrays(text: str) -> tuple[Array, ...]:
  """Returns the arrays of a text such as 'bf16[4,128]{1,0}, s32[]'."""
  return tuple(
    Array(dtype, tuple(int(n) for n in shape.split(',') if n))
    for dtype, shape in re.findall(r'\b(\w+)\[([\d,]*)\]', re.sub(r'/\*.*?\*/', '', text))
  )


def _split_parenthesis(text: str) -> tuple[str, str]:
  """Returns the parenthesized group at the start of a text, and the rest."""
  depth = 0
  for i, letter in enumerate(text):
    depth += (letter == '(') - (letter == ')')
    if not depth:
      return text[: i + 1], text[i + 1 :]
  return text, ''


def walk(
  program: Program, computation: str = 'ENTRY', times: float = 1.0
) -> Iterator[tuple[float, str, Instruction]]:
  """Yields (number of executions, name of the computation, instruction).

  Each branch of a conditional counts once.
  """
  for instruction in program[computation]:
    yield times, computation, instruction
    for inner in called(program, instruction):
      yield from walk(program, inner, times * trip_count(program, instruction))


def called(program: Program, instruction: Instruction) -> list[str]:
  """Returns the names of the computations that an instruction calls, without scalar reductions."""
  if instruction.opcode in _REDUCTIONS:
    return []
  attributes = instruction.attributes
  names = re.findall(r'\b(?:calls|to_apply|body|condition)=%?([\w.\-]+)', attributes)
  for branches in re.findall(r'\bbranch_computations=\{([^}]*)\}', attributes):
    names += re.findall(r'[\w.\-]+', branches)
  return [name for name in names if name in program]


def trip_count(program: Program, instruction: Instruction) -> int:
  """Returns how often an instruction runs its computations: 1 except for loops."""
  if instruction.opcode != 'while':
    return 1
  if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', instruction.attributes):
    return int(known.group(1))
  # The condition, or a computation that it calls, compares a counter with a constant.
  constants = [
    int(inner.attributes)
    for condition in re.findall(r'condition=%?([\w.\-]+)', instruction.attributes)
    if condition in program
    for _, _, inner in walk(program, condition)
    if inner.opcode == 'constant' and inner.attributes.isdecimal()
  ]
  return max(constants, default=1)


def collectives(program: Program, mesh: Mesh) -> list[Collective]:
  """Returns the collectives of a program.

  Args:
    program: of one device of the mesh.
    mesh: its devices, in their order, are the partitions of the program.
  """
  found: dict[tuple[bool | str, ...], Collective] = {}
  for times, computation, instruction in walk(program):
    attributes, sending = instruction.attributes, instruction.opcode == 'send'
    if sending and re.search(_TRANSFER, attributes):
      kind, result, group = _between_slices(instruction, mesh)
    elif instruction.opcode.removesuffix('-start') in KINDS:
      kind, result, group = _within_slice(computation, instruction, mesh)
    else:
      continue
    # An overlapped collective appears in each computation that it overlaps with, under one name and
    # channel. The channel alone is ambiguous: several collectives may share one, and host transfers
    # are numbered separately.
    names = re.findall(r'(?:chain_id|async_collective_name)="[^"]*"', attributes)
    key = (sending, instruction.name)
    if sending or names:
      key = (sending, *re.findall(r'channel_id=\d+', attributes), *names)
    if len(group) > 1 and (key not in found or found[key].times < times):
      overlapped = sending or bool(names) or instruction.opcode.endswith('-start')
      size = bytes_sent(kind, result, len(group))
      found[key] = Collective(kind, axes_of(group, mesh), tuple(group), size, times, overlapped)
  return list(found.values())


def _within_slice(
  computation: str, instruction: Instruction, mesh: Mesh
) -> tuple[str, float, list[int]]:
  """Returns kind, bytes of the result and participants of a collective over ICI."""
  kind = instruction.opcode.removesuffix('-start')
  groups = groups_of(instruction.attributes)
  group = list(range(mesh.size)) if groups is None else max(groups, key=len)
  # An asynchronous start returns its operand, the result and flags.
  sizes = [array.bytes for array in instruction.arrays]
  result = max(sizes) if instruction.opcode.endswith('-start') else sum(sizes)
  # XLA:TPU expresses a reduce-scatter as a fusion of an all-reduce and a slice.
  if kind == 'all-reduce' and 'all-reduce-scatter' in computation:
    return 'reduce-scatter', result / len(group), group
  return kind, result, group


def _between_slices(instruction: Instruction, mesh: Mesh) -> tuple[str, float, list[int]]:
  """Returns kind, bytes and participants of a collective over the network: a host transfer in HLO.

  The participants are the devices with the same coordinates in each slice. Each sends its own shard
  of the array that its slice holds.
  """
  kind = re.findall(_TRANSFER, instruction.attributes)[0].lower().replace('_', '-')
  devices = list(mesh.devices.flat)
  group = [i for i, device in enumerate(devices) if device.coords == devices[0].coords]
  operand = max(array.bytes for array in instruction.arrays)
  scale = {'all-gather': len(group), 'reduce-scatter': 1 / len(group)}.get(kind, 1)
  return kind if kind in KINDS else 'collective-permute', operand * scale, group


def bytes_sent(kind: str, result: float, size: int) -> float:
  """Returns the bytes that each of `size` devices sends in a ring, from the bytes of its result."""
  share = (size - 1) / size
  shares = {'all-reduce': 2 * share, 'reduce-scatter': size * share, 'collective-permute': 1.0}
  return result * shares.get(kind, share)


def groups_of(attributes: str) -> list[list[int]] | None:
  """Returns the replica groups, or source-target pairs, of a collective; None if it has none."""
  if named := re.search(r'replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}', attributes):
    return _mesh_groups(*named.groups())
  iota = r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?'
  if found := re.search(iota, attributes):
    shape, base, order = ([int(n) for n in (g or '').split(',') if n] for g in found.groups())
    ids = np.arange(math.prod(base)).reshape(base)
    return (ids.transpose(order) if order else ids).reshape(shape).tolist()
  lists = re.search(r'(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}', attributes)
  if lists is None:
    return None
  return [
    [int(n) for n in g.split(',') if n.strip()]
    for g in re.findall(r'\{([\d, ]*)\}', lists.group(1))
  ]


def _mesh_groups(axes: str, names: str) -> list[list[int]]:
  """Returns the groups of devices that differ along the named axes of a mesh."""
  sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
  within = [i for i, name in enumerate(sizes) if name in re.findall(r"'([^']+)'", names)]
  order = [i for i in range(len(sizes)) if i not in within] + within
  shape = list(sizes.values())
  ids = np.arange(math.prod(shape)).reshape(shape).transpose(order)
  return ids.reshape(-1, math.prod(shape[i] for i in within)).tolist()


def axes_of(group: Iterable[int], mesh: Mesh) -> tuple[str, ...]:
  """Returns the mesh axes along which the devices of a group differ."""
  places = np.unravel_index(np.asarray(list(group)), mesh.devices.shape)
  return tuple(
    name
    for name, indices in zip(mesh.axis_names, places, strict=True)
    if len(set(indices.tolist())) > 1
  )


def by_kind(collectives: Iterable[Collective]) -> dict[tuple[str, tuple[str, ...]], float]:
  """Returns the bytes that a device sends in a step, by kind and axes, the largest first."""
  sums: dict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
  for one in collectives:
    sums[one.kind, one.axes] += one.bytes * one.times
  return dict(sorted(sums.items(), key=lambda item: -item[1]))


def estimate(
  program: Program,
  collectives: Iterable[Collective],
  devices: Iterable[Any],
  slice_: Slice,
  model_flops: float,
  tokens: int,
  steps: int = 1,
  memory_bound: float = 0.0,
) -> Timing:
  """Returns the estimated time of a step.

  Args:
    program: of one device.
    collectives: of one step.
    devices: of the mesh in its order, with `coords` and `slice_index`.
    slice_: of the devices.
    model_flops: the FLOPs that the model needs for the batch.
    tokens: of the batch.
    steps: number of steps in the program.
    memory_bound: seconds for the memory traffic of a step, if kernels do not include it.
  """
  chip, devices = slice_.chip, list(devices)
  attention = attention_flops(program) / (ATTENTION * chip.flops / chip.devices)
  kernels = (cycles(program) / chip.clock + attention) / steps
  seconds = {True: 0.0, False: 0.0}
  for one in collectives:
    seconds[one.overlapped] += one.bytes * one.times / bandwidth(one.group, devices, chip)
  step = max(kernels, seconds[True], memory_bound) + seconds[False]
  parts = {
    'kernels': kernels,
    'overlapped_collectives': seconds[True],
    'exposed_collectives': seconds[False],
    'memory_bandwidth': memory_bound,
  }
  return Timing(parts, step, model_flops / (chip.flops * slice_.chips) / step, tokens / step)


def cycles(program: Program, computation: str = 'ENTRY') -> float:
  """Returns the estimated cycles of a program, with loop bodies multiplied by their trip counts.

  An instruction without an estimate, such as an overlapped collective, takes the cycles of the
  computations that it calls.
  """
  total = 0.0
  for instruction in program[computation]:
    if found := re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes):
      total += int(found.group(1))
    else:
      inner = sum(cycles(program, one) for one in called(program, instruction))
      total += trip_count(program, instruction) * inner
  return total


def attention_flops(program: Program) -> float:
  """Returns the FLOPs of the splash attention kernels in a step of a device."""
  total = 0.0
  for times, _, instruction in walk(program):
    kind = next((k for k in _MATMULS if instruction.name.startswith(k + '_')), None)
    if kind is None or instruction.opcode != 'custom-call':
      continue
    operands = arrays(instruction.attributes.partition('operand_layout_constraints=')[2])
    # A single row has no batch axis.
    rows = [x.shape for x in operands if len(x.shape) == 4] or [
      (1, *x.shape) for x in operands if len(x.shape) == 3 and x.dtype in ('bf16', 'f32')
    ]
    B, H, T, K = max(rows, key=lambda x: x[1] * x[3])
    # With query positions among its operands, a kernel skips the blocks that the mask hides.
    causal = any(x.dtype == 's32' and len(x.shape) == 2 and T in x.shape for x in operands)
    total += times * _MATMULS[kind] * 2 * B * H * T * T * K * (0.5 if causal else 1.0)
  return total


def bandwidth(group: Sequence[int], devices: Sequence[Any], chip: Chip) -> float:
  """Returns the bytes/s that each device of a group sends in a ring through all of them.

  A device has links to both neighbors along each torus dimension that the group spans. A dimension
  without wraparound links counts with one link. Slices are connected by the network.
  """
  members = [devices[i] for i in group]
  if len({getattr(device, 'slice_index', 0) for device in members}) > 1:
    return chip.network / chip.devices
  sides = [set(side) for side in zip(*(device.coords for device in members), strict=True)]
  links = sum(2 if len(side) % chip.ring == 0 else 1 for side in sides if len(side) > 1)
  # Two devices of one chip span no dimension; their bandwidth is assumed to be that of two links.
  return (links or 2) * chip.link / chip.devices
