"""What `lm.preflight` prints: for people, and as JSON."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lm.preflight import bound, collectives, roofline
from lm.preflight.check import Checked
from lm.preflight.chips import GIB, Chip, Slice
from lm.preflight.collectives import Collective
from lm.preflight.decode import Decoding
from lm.preflight.search import Tried

# What JAX takes of a GPU's memory as it begins.
TAKEN = 0.75


def table(checked: Checked, slice_: Slice, path: str, price: float) -> str:
  """Returns the report in lines."""
  step = checked.step
  mesh = ', '.join(f'{name} {size}' for name, size in step.functions.mesh.shape.items())
  lines = [
    f'{path} on {slice_} ({_size(slice_)}): mesh {mesh}',
    f'{step.parameters:,} parameters, {step.tokens:,} tokens a step; {_by(checked, slice_)}',
    '',
    *_memory(step.memory, checked.room, checked.fits),
    '',
    *_sent(checked),
    '',
    *_time(checked),
  ]
  if price:
    paid = roofline.cost(price, slice_, checked.estimate.tokens)
    least = '' if checked.compiled else ', at the least'
    lines.append(f'  {"a billion tokens" + least:<36}{paid:8,.2f} USD')
  for name, shape in checked.replicated:
    lines.append(f'every chip holds all of {name}{list(shape)}')
  if checked.fits and not checked.compiled and _grows(checked, slice_):
    lines.append('it takes more than JAX does at first: XLA_CLIENT_MEM_FRACTION=0.97 gives it more')
  if isinstance(checked.decoding, Decoding):
    lines += ['', *_decoding(checked.decoding, checked, slice_, price)]
  elif checked.decoding is not None:
    lines += ['', f'decoding: {checked.decoding}']
  return '\n'.join(lines)


def _decoding(found: Decoding, checked: Checked, slice_: Slice, price: float) -> Iterator[str]:
  """Yields the lines of what it takes to write a token of each row."""
  hypotheses = f' of {found.beam} hypotheses' if found.beam > 1 else ''
  source = f', sources of {found.source:,}' if found.source else ''
  yield (
    f'decoding: {found.rows} rows{hypotheses}, room for {found.slots:,} tokens each{source}; '
    f'{found.flops / 1e9:,.1f} GFLOP a token of all; compiled in {found.seconds:.0f} s'
  )
  yield ''
  yield from _memory(found.memory, checked.room, checked.decoding_fits)
  yield ''
  yield f'sent by a device for a token{"":<14}MB'
  yield from _exchanges(found.exchanges, {})
  yield ''
  yield 'estimate'
  times = {
    'kernels': found.estimate.kernels,
    'weights and cache read': found.read,
    'exchanges beside them': found.estimate.beside,
    'exchanges alone': found.estimate.alone,
    'a token of all rows': found.estimate.step,
  }
  for name, seconds in times.items():
    yield f'  {name:<36}{seconds * 1e3:8.2f} ms'
  yield f'  {"tokens a second":<36}{found.estimate.tokens:8,.0f}'
  yield f'  {"utilisation":<36}{found.estimate.utilisation:8.1%}'
  if price:
    paid = roofline.cost(price, slice_, found.estimate.tokens)
    yield f'  {"a billion tokens":<36}{paid:8,.2f} USD'


def _memory(memory: Any, room: float, fits: bool) -> list[str]:
  kinds = {name: value for name, value in memory._asdict().items() if value is not None}
  return [
    f'memory of a device, of {room / GIB:.1f} GiB' + ' ' * 12 + 'GiB',
    *(f'  {name:<36}{value / GIB:8.2f}' for name, value in kinds.items()),
    f'  {"in all" + ("" if fits else ": DOES NOT FIT"):<36}{memory.total / GIB:8.2f}',
  ]


def _size(slice_: Slice) -> str:
  chips = f'{slice_.chips} chip' + 's' * (slice_.chips > 1)
  return f'{slice_.accelerator}, {chips}' if isinstance(slice_.chip, Chip) else chips


def _by(checked: Checked, slice_: Slice) -> str:
  """Returns how it was found."""
  if checked.compiled:
    return f'compiled in {checked.compiled.program.seconds:.0f} s'
  rates = 'rates measured here' if slice_.chip.name == 'cpu' else 'rates of data sheets'
  return f'no compiler was asked: a bound by arithmetic, {rates}'


def _grows(checked: Checked, slice_: Slice) -> bool:
  return slice_.chip.name != 'cpu' and checked.step.memory.total > TAKEN * slice_.chip.memory


def _time(checked: Checked) -> Iterator[str]:
  """Yields the lines of the time of a step."""
  found = checked.estimate
  compiled = not isinstance(found, bound.Bound)
  parts = {
    'kernels': 'kernels',
    'beside': 'exchanges beside them',
    'alone': 'exchanges alone',
    'products': 'products, at the peak',
    'memory': 'memory of the passes, beside them',
    'links': 'links of a node, beside them',
    'network': 'network between nodes, beside them',
    'update': 'the optimizer, after them',
    'step': 'a step',
  }
  most = '' if compiled else ', at the most'
  yield 'estimate' if compiled else 'a bound: no step is faster'
  for name, seconds in found._asdict().items():
    if name in parts and (seconds or name not in ('links', 'network')):
      yield f'  {parts[name]:<36}{seconds * 1e3:8.1f} ms'
  yield f'  {"tokens a second" + most:<36}{found.tokens:8,.0f}'
  if checked.step.model_flops:
    yield f'  {"utilisation" + most:<36}{found.utilisation:8.1%}'


def _sent(checked: Checked) -> list[str]:
  least = checked.least or {}
  if not checked.compiled:
    lines = [f'sent by a device in a step, at the least{"":>4}MB']
    lines += [f'  {"over " + axis:<36}{size / 1e6:10,.1f}' for axis, size in least.items() if size]
    unknown = '  not known of such a model' if checked.least is None else '  nothing'
    return lines if len(lines) > 1 else [*lines, unknown]
  head = f'sent by a device in a step{"":<16}MB{"":>6}least'
  return [head, *_exchanges(checked.compiled.exchanges, least)]


def _exchanges(exchanges: Iterable[Collective], least: Mapping[str, float]) -> list[str]:
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
  """Returns one JSON object of everything: bytes, seconds, and rates a second.

  `by` says how it was found: by the 'compiler', or by 'arithmetic' alone, which gives a `bound`
  where the compiler's program gives an `estimate` and what is `sent`.
  """
  step, found = checked.step, checked.estimate
  return json.dumps(
    {
      'config': path,
      'by': 'compiler' if checked.compiled else 'arithmetic',
      'topology': slice_.topology,
      'slices': slice_.slices,
      'chips': slice_.chips,
      'mesh': dict(step.functions.mesh.shape),
      'parameters': step.parameters,
      'tokens_per_step': step.tokens,
      'fits': checked.fits,
      'memory': _memory_json(step.memory, checked.room),
      'model_flops': step.model_flops,
      'least_sent': checked.least,
      'replicated': [{'name': name, 'shape': shape} for name, shape in checked.replicated],
      'usd_per_billion_tokens': roofline.cost(price, slice_, found.tokens) if price else None,
      **_of_program(checked),
      'decode': _decoding_json(checked, slice_, price),
    }
  )


def _of_program(checked: Checked) -> dict[str, Any]:
  """Returns what differs by how it was found."""
  if not checked.compiled:
    return {'bound': checked.estimate._asdict()}
  return {
    'sent': _sent_json(checked.compiled.exchanges),
    'estimate': checked.estimate._asdict(),
    'compile_seconds': checked.compiled.program.seconds,
  }


def _decoding_json(checked: Checked, slice_: Slice, price: float) -> dict[str, Any] | None:
  found, fits = checked.decoding, checked.decoding_fits
  if found is None:
    return None
  if not isinstance(found, Decoding):
    return {'fits': fits, 'memory': {'total': found.needed, 'room': found.room}}
  paid = roofline.cost(price, slice_, found.estimate.tokens) if price else None
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
    'usd_per_billion_tokens': paid,
    'compile_seconds': found.seconds,
  }


def _memory_json(memory: Any, room: float) -> dict[str, float]:
  return {**memory._asdict(), 'total': memory.total, 'room': room}


def _sent_json(exchanges: Iterable[Collective]) -> list[dict[str, Any]]:
  return [
    {'kind': kind, 'axes': list(axes), 'bytes': size}
    for (kind, axes), size in collectives.by_kind(exchanges).items()
  ]


def ranking(found: list[Tried], slice_: Slice) -> str:
  """Returns what was tried, the fastest that fits first."""
  how = '' if isinstance(slice_.chip, Chip) else ', at the most: no compiler was asked'
  lines = [f'{"tokens/s":>12}{"GiB":>8}{"use":>8}  on {slice_}{how}']
  for one in found:
    fits = f'{one.tokens:12,.0f}' if one.fits else f'{"no room":>12}'
    lines.append(f'{fits}{one.memory / GIB:8.2f}{one.utilisation:8.1%}  {one.flags}')
  return '\n'.join(lines)


def ranking_json(found: list[Tried], slice_: Slice) -> str:
  """Returns the same as one JSON object."""
  by = 'compiler' if isinstance(slice_.chip, Chip) else 'arithmetic'
  tried = [one._asdict() for one in found]
  return json.dumps({'by': by, 'topology': slice_.topology, 'tried': tried})


def progress(text: str) -> None:
  """Prints a line for people, beside the result."""
  print(text, file=sys.stderr, flush=True)
