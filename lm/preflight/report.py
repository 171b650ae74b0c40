"""What `lm.preflight` prints: for people, and as JSON."""

import json
import sys
from typing import Any

from lm.preflight import collectives, roofline
from lm.preflight.check import Checked
from lm.preflight.chips import GIB, Slice
from lm.preflight.collectives import Collective
from lm.preflight.decode import Decoding
from lm.preflight.roofline import Estimate
from lm.preflight.search import Tried


def table(checked: Checked, slice_: Slice, path: str, price: float) -> str:
  """Returns the report in lines."""
  step = checked.step
  mesh = ', '.join(f'{name} {size}' for name, size in step.functions.mesh.shape.items())
  lines = [
    f'{path} on {slice_} ({slice_.accelerator}, {slice_.chips} chips): mesh {mesh}',
    f'{step.parameters:,} parameters, {step.tokens:,} tokens a step; compiled in '
    f'{step.seconds:.0f} s',
    '',
    *_memory(step.memory, checked.room, checked.fits),
    '',
    f'sent by a device in a step{"":<16}MB{"":>6}least',
    *_sent(checked.exchanges, checked.least or {}),
    '',
    *_estimate(checked.estimate, 'a step', slice_, price),
    *(f'every chip holds all of {name}{list(shape)}' for name, shape in checked.replicated),
  ]
  if isinstance(checked.decoding, Decoding):
    lines += ['', *_decoding(checked.decoding, checked, slice_, price)]
  elif checked.decoding is not None:
    lines += ['', f'decoding: {checked.decoding}']
  return '\n'.join(lines)


def _decoding(found: Decoding, checked: Checked, slice_: Slice, price: float) -> list[str]:
  hypotheses = f' of {found.beam} hypotheses' if found.beam > 1 else ''
  source = f', sources of {found.source:,}' if found.source else ''
  read = f'  weights and cache read              {found.read * 1e3:8.2f} ms'
  kernels, *rest = _estimate(found.estimate, 'a token of all rows', slice_, price, 2)[1:]
  return [
    f'decoding: {found.rows} rows{hypotheses}, room for {found.slots:,} tokens each{source}; '
    f'{found.flops / 1e9:,.1f} GFLOP a token of all; compiled in {found.seconds:.0f} s',
    '',
    *_memory(found.memory, checked.room, checked.decoding_fits),
    '',
    f'sent by a device for a token{"":<14}MB',
    *_sent(found.exchanges, {}),
    '',
    'estimate',
    kernels,
    read,
    *rest,
  ]


def _memory(memory: Any, room: float, fits: bool) -> list[str]:
  return [
    f'memory of a device, of {room / GIB:.1f} GiB' + ' ' * 12 + 'GiB',
    *(f'  {name:<36}{value / GIB:8.2f}' for name, value in memory._asdict().items()),
    f'  {"in all" + ("" if fits else ": DOES NOT FIT"):<36}{memory.total / GIB:8.2f}',
  ]


def _estimate(
  found: Estimate, step: str, slice_: Slice, price: float, digits: int = 1
) -> list[str]:
  times = (
    ('kernels', found.kernels),
    ('exchanges beside them', found.beside),
    ('exchanges alone', found.alone),
    (step, found.step),
  )
  lines = [
    'estimate',
    *(f'  {name:<36}{seconds * 1e3:8.{digits}f} ms' for name, seconds in times),
    f'  tokens a second                     {found.tokens:10,.0f}',
    f'  utilisation                         {found.utilisation:8.1%}',
  ]
  if price:
    paid = roofline.cost(price, slice_, found.tokens)
    lines.append(f'  a billion tokens                    {paid:8,.2f} USD')
  return lines


def _sent(exchanges: list[Collective], least: dict[str, float]) -> list[str]:
  by_axis: dict[str, float] = {}
  lines = []
  for (kind, axes), size in collectives.by_kind(exchanges).items():
    name = '+'.join(axes)
    by_axis[name] = by_axis.get(name, 0.0) + size
    lines.append(f'  {kind + " over " + name:<36}{size / 1e6:10,.1f}')
  for name, size in by_axis.items():
    known = least.get(name)
    ratio = f'{known / 1e6:10,.1f}  x {size / known:.2f}' if known else ''
    lines.append(f'  {"all over " + name:<36}{size / 1e6:10,.1f}{ratio}')
  return lines or ['  nothing']


def to_json(checked: Checked, slice_: Slice, path: str, price: float) -> str:
  """Returns one JSON object of everything: bytes, seconds, and rates a second."""
  step, found = checked.step, checked.estimate
  return json.dumps(
    {
      'config': path,
      'topology': slice_.topology,
      'slices': slice_.slices,
      'chips': slice_.chips,
      'mesh': dict(step.functions.mesh.shape),
      'parameters': step.parameters,
      'tokens_per_step': step.tokens,
      'fits': checked.fits,
      'memory': _memory_json(step.memory, checked.room),
      'model_flops': step.model_flops,
      'sent': _sent_json(checked.exchanges),
      'least_sent': checked.least,
      'replicated': [{'name': name, 'shape': shape} for name, shape in checked.replicated],
      'estimate': found._asdict(),
      'usd_per_billion_tokens': roofline.cost(price, slice_, found.tokens) if price else None,
      'compile_seconds': step.seconds,
      'decode': _decoding_json(checked, slice_, price),
    }
  )


def _decoding_json(checked: Checked, slice_: Slice, price: float) -> dict[str, Any] | None:
  found, fits = checked.decoding, checked.decoding_fits
  if found is None:
    return None
  if not isinstance(found, Decoding):
    return {'fits': fits, 'memory': {'total': found.needed, 'room': found.room}}
  return {
    'rows': found.rows,
    'beam': found.beam,
    'slots': found.slots,
    'source_context': found.source,
    'fits': fits,
    'memory': _memory_json(found.memory, checked.room),
    'flops': found.flops,
    'sent': _sent_json(found.exchanges),
    'memory_bound': found.read,
    'estimate': found.estimate._asdict(),
    'usd_per_billion_tokens': (
      roofline.cost(price, slice_, found.estimate.tokens) if price else None
    ),
    'compile_seconds': found.seconds,
  }


def _memory_json(memory: Any, room: float) -> dict[str, float]:
  return {**memory._asdict(), 'total': memory.total, 'room': room}


def _sent_json(exchanges: list[Collective]) -> list[dict[str, Any]]:
  return [
    {'kind': kind, 'axes': list(axes), 'bytes': size}
    for (kind, axes), size in collectives.by_kind(exchanges).items()
  ]


def ranking(found: list[Tried], slice_: Slice) -> str:
  """Returns what was tried, the fastest that fits first."""
  lines = [f'{"tokens/s":>12}{"GiB":>8}{"use":>8}  on {slice_}']
  for one in found:
    fits = f'{one.tokens:12,.0f}' if one.fits else f'{"no room":>12}'
    lines.append(f'{fits}{one.memory / GIB:8.2f}{one.utilisation:8.1%}  {one.flags}')
  return '\n'.join(lines)


def ranking_json(found: list[Tried], slice_: Slice) -> str:
  """Returns the same as one JSON object."""
  return json.dumps({'topology': slice_.topology, 'tried': [one._asdict() for one in found]})


def progress(text: str) -> None:
  """Prints a line for people, beside the result."""
  print(text, file=sys.stderr, flush=True)
