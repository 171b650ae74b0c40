"""What `lm.preflight` prints: for people, and as JSON."""

import json
import sys

from lm.preflight import collectives, roofline
from lm.preflight.check import Checked
from lm.preflight.chips import GIB, Slice
from lm.preflight.search import Tried


def table(checked: Checked, slice_: Slice, path: str, price: float) -> str:
  """Returns the report in lines."""
  step, memory, found = checked.step, checked.step.memory, checked.estimate
  mesh = ', '.join(f'{name} {size}' for name, size in step.functions.mesh.shape.items())
  lines = [
    f'{path} on {slice_} ({slice_.accelerator}, {slice_.chips} chips): mesh {mesh}',
    f'{step.parameters:,} parameters, {step.tokens:,} tokens a step; compiled in '
    f'{step.seconds:.0f} s',
    '',
    f'memory of a device, of {checked.room / GIB:.1f} GiB' + ' ' * 12 + 'GiB',
    *(f'  {name:<36}{value / GIB:8.2f}' for name, value in memory._asdict().items()),
    f'  {"in all" + ("" if checked.fits else ": DOES NOT FIT"):<36}{memory.total / GIB:8.2f}',
    '',
    f'sent by a device in a step{"":<16}MB{"":>6}least',
    *_sent(checked),
    '',
    'estimate',
    f'  kernels                             {found.kernels * 1e3:8.1f} ms',
    f'  exchanges beside them               {found.beside * 1e3:8.1f} ms',
    f'  exchanges alone                     {found.alone * 1e3:8.1f} ms',
    f'  a step                              {found.step * 1e3:8.1f} ms',
    f'  tokens a second                     {found.tokens:10,.0f}',
    f'  utilisation                         {found.utilisation:8.1%}',
  ]
  if price:
    paid = roofline.cost(price, slice_, found.tokens)
    lines.append(f'  a billion tokens                    {paid:8,.2f} USD')
  for name, shape in checked.replicated:
    lines.append(f'every chip holds all of {name}{list(shape)}')
  return '\n'.join(lines)


def _sent(checked: Checked) -> list[str]:
  by_axis: dict[str, float] = {}
  lines = []
  for (kind, axes), size in collectives.by_kind(checked.exchanges).items():
    name = '+'.join(axes)
    by_axis[name] = by_axis.get(name, 0.0) + size
    lines.append(f'  {kind + " over " + name:<36}{size / 1e6:10,.1f}')
  for name, size in by_axis.items():
    known = (checked.least or {}).get(name)
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
      'memory': {**step.memory._asdict(), 'total': step.memory.total, 'room': checked.room},
      'model_flops': step.model_flops,
      'sent': [
        {'kind': kind, 'axes': list(axes), 'bytes': size}
        for (kind, axes), size in collectives.by_kind(checked.exchanges).items()
      ],
      'least_sent': checked.least,
      'replicated': [{'name': name, 'shape': shape} for name, shape in checked.replicated],
      'estimate': found._asdict(),
      'usd_per_billion_tokens': roofline.cost(price, slice_, found.tokens) if price else None,
      'compile_seconds': step.seconds,
    }
  )


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
