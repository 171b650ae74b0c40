"""What the devices of a compiled step say to each other: kind, mesh axes, bytes, and the least."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from lm.preflight import hlo

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
_MESH = re.compile(r'replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}')
_LISTS = re.compile(r'(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}')
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_BESIDE = re.compile(r'(?:chain_id|async_collective_name)="[^"]*"')
_RENDEZVOUS = re.compile(r'_xla_host_transfer_rendezvous="([^"]*)"')
_WHAT = re.compile(r'op_name="([^"]*)"')
_CHANNEL = re.compile(r'channel_id=\d+')
_IOTA = re.compile(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?')


class Collective(NamedTuple):
  """One exchange of a program."""

  kind: str
  axes: tuple[str, ...]  # of the mesh, over which the devices that take part differ
  group: tuple[int, ...]  # devices that take part, by their places in the mesh
  bytes: float  # that a device sends each time
  times: float  # in a step
  beside: bool  # whether products go on meanwhile
  what: str  # the operation of the model that asked for it


def collectives(program: hlo.Program, mesh: Mesh) -> list[Collective]:
  """Returns the exchanges of a step.

  Args:
    program: of one device of the mesh.
    mesh: whose devices, in their order, are the partitions of the program.
  """
  found: dict[tuple[bool | str, ...], Collective] = {}
  for times, computation, instruction in hlo.walk(program):
    attributes, sending = instruction.attributes, instruction.opcode == 'send'
    if sending and _TRANSFER.search(attributes):
      kind, result, group = _between_slices(instruction, mesh)
      what, beside = _RENDEZVOUS.search(attributes), True
    elif instruction.opcode.removesuffix('-start') in KINDS:
      kind, result, group = _within(computation, instruction, mesh)
      what, beside = _WHAT.search(attributes), instruction.opcode.endswith('-start')
    else:
      continue
    # What goes on beside products stands in the text at each of them, under the same name and
    # number; a number alone may be that of others too, and transfers of hosts have their own.
    named = _BESIDE.findall(attributes)
    key = (sending, instruction.name)
    if sending or named:
      key = (sending, *_CHANNEL.findall(attributes), *named)
    if len(group) > 1 and (key not in found or found[key].times < times):
      found[key] = Collective(
        kind,
        axes_of(group, mesh),
        tuple(group),
        sent(kind, result, len(group)),
        times,
        beside or bool(named),
        what.group(1) if what else '',
      )
  return list(found.values())


def _within(
  computation: str, instruction: hlo.Instruction, mesh: Mesh
) -> tuple[str, float, list[int]]:
  """Returns kind, bytes of the result and devices of an exchange over the links of chips."""
  kind = instruction.opcode.removesuffix('-start')
  groups = groups_of(instruction.attributes)
  group = list(range(mesh.size)) if groups is None else max(groups, key=len)
  # What is begun has a result of several parts: what goes in, what comes out, and flags.
  arrays = [array.bytes for array in instruction.arrays]
  result = max(arrays) if instruction.opcode.endswith('-start') else sum(arrays)
  # A TPU writes a sum of which each device keeps a part as a fusion of the sum and the part.
  if kind == 'all-reduce' and 'all-reduce-scatter' in computation:
    return 'reduce-scatter', result / len(group), group
  return kind, result, group


def _between_slices(instruction: hlo.Instruction, mesh: Mesh) -> tuple[str, float, list[int]]:
  """Returns the same of one over the network, which stands in the text as a transfer to the host.

  Devices at the same place of all slices take part; each hands over what it alone has of a slice.
  """
  found = _TRANSFER.search(instruction.attributes)
  assert found is not None
  kind = found.group(1).lower().replace('_', '-')
  devices = list(mesh.devices.flat)
  group = [i for i, device in enumerate(devices) if device.coords == devices[0].coords]
  given = max(array.bytes for array in instruction.arrays)
  if kind == 'all-gather':  # what is given is a part of the result, and else as large
    return kind, given * len(group), group
  if kind == 'reduce-scatter':
    return kind, given / len(group), group
  return kind if kind in KINDS else 'collective-permute', given, group


def sent(kind: str, result: float, size: int) -> float:
  """Returns the bytes that each of `size` devices sends in a ring, from those of its result."""
  share = (size - 1) / size
  if kind == 'all-reduce':
    return 2 * result * share
  if kind == 'reduce-scatter':
    return result * size * share
  return result if kind == 'collective-permute' else result * share


def groups_of(attributes: str) -> list[list[int]] | None:
  """Returns the groups, or pairs, of devices that an instruction names; None for none."""
  named = _MESH.search(attributes)
  if named:
    return _along(*named.groups())
  iota = _IOTA.search(attributes)
  if iota:
    shape, base, order = ([int(n) for n in (g or '').split(',') if n] for g in iota.groups())
    ids = np.arange(np.prod(base)).reshape(base)
    return (ids.transpose(order) if order else ids).reshape(shape).tolist()
  lists = _LISTS.search(attributes)
  if lists is None:
    return None
  return [
    [int(n) for n in g.split(',') if n.strip()]
    for g in re.findall(r'\{([\d, ]*)\}', lists.group(1))
  ]


def _along(axes: str, taken: str) -> list[list[int]]:
  """Returns the groups of devices that differ along some axes of a mesh, by its text."""
  sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
  within = [i for i, name in enumerate(sizes) if name in re.findall(r"'([^']+)'", taken)]
  order = [i for i in range(len(sizes)) if i not in within] + within
  ids = np.arange(np.prod([*sizes.values()])).reshape([*sizes.values()]).transpose(order)
  return ids.reshape(-1, int(np.prod([[*sizes.values()][i] for i in within]))).tolist()


def axes_of(group: Iterable[int], mesh: Mesh) -> tuple[str, ...]:
  """Returns the axes of a mesh along which the devices of a group differ."""
  places = np.unravel_index(np.asarray(list(group)), mesh.devices.shape)
  return tuple(
    name
    for name, along in zip(mesh.axis_names, places, strict=True)
    if len(set(along.tolist())) > 1
  )


def by_kind(found: Iterable[Collective]) -> dict[tuple[str, tuple[str, ...]], float]:
  """Returns the bytes that a device sends in a step, by kind and axes."""
  sums: dict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
  for one in found:
    sums[one.kind, one.axes] += one.bytes * one.times
  return dict(sorted(sums.items(), key=lambda item: -item[1]))
