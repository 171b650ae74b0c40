"""The report of `lm.preflight` as JSON and as text. lm/preflight/README.md explains its lines."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm import components
from lm.parallel.chips import GIB, RESERVED
from lm.preflight import decode, hlo, search, topology, train_step

# Share of a GPU's memory that JAX allocates by default.
PREALLOCATED = 0.75


def summary(
  result: train_step.Result,
  slice_: topology.Slice,
  path: str,
  price: float = 0.0,
  decoding: decode.Decoding | train_step.DoesNotFit | None = None,
) -> dict[str, Any]:
  """Returns the report as JSON values: bytes, seconds, and rates per second.

  Without a compiled program `collectives` and `compile_seconds` are None, and `timing` is a bound.

  Args:
    result: of the train step.
    slice_: the chips.
    path: of the config.
    price: of a chip, in USD per hour; 0 leaves the cost out.
    decoding: the decoding step, if one was compiled.
  """
  step = result.step
  report = {
    'config': path,
    'platform': slice_.chip.platform,
    'topology': slice_.topology,
    'accelerator': slice_.accelerator if slice_.chip.platform == 'tpu' else None,
    'slices': slice_.slices,
    'chips': slice_.chips,
    'mesh': dict(step.functions.mesh.shape),
    'parameters': components.parameter_count(step.state.params),
    'tokens_per_step': step.tokens,
    'model_flops': step.model_flops,
    'comm_lower_bound': result.lower_bound,
    'replicated': train_step.replicated(step),
    **_program(result, result.capacity, slice_, price),
    'decode': None,
  }
  if isinstance(decoding, decode.Decoding):
    fields = ('rows', 'beam', 'cache_tokens', 'source_tokens', 'flops')
    sizes = {name: getattr(decoding, name) for name in fields}
    report['decode'] = sizes | _program(decoding, result.capacity, slice_, price)
  elif decoding is not None:
    memory = {'total': decoding.needed, 'capacity': decoding.capacity}
    report['decode'] = {'fits': False, 'memory': memory}
  return report


def _program(
  found: train_step.Result | decode.Decoding, capacity: float, slice_: topology.Slice, price: float
) -> dict[str, Any]:
  """Returns memory, communication and time of a train step or a decoding step."""
  by_kind = hlo.by_kind(found.collectives or ())
  sent = [{'kind': kind, 'axes': axes, 'bytes': size} for (kind, axes), size in by_kind.items()]
  paid = price * slice_.chips / 3600 * 1e9 / found.timing.tokens if price else None
  return {
    'fits': found.needed <= capacity,
    'memory': {**found.memory, 'total': found.needed, 'capacity': capacity},
    'collectives': None if found.collectives is None else sent,
    'timing': {**found.timing._asdict(), 'usd_per_billion_tokens': paid},
    'compile_seconds': found.compile_seconds,
  }


def lines(report: Mapping[str, Any]) -> list[str]:
  """Returns the lines of a report for people."""
  slices = f'{report["slices"]} x ' if report['slices'] > 1 else ''
  accelerator = f'{report["accelerator"]}, ' if report['accelerator'] else ''
  chips = f'{accelerator}{report["chips"]} chip{"s" * (report["chips"] > 1)}'
  mesh = ', '.join(f'{name} {size}' for name, size in report['mesh'].items())
  memory = report['memory']
  default = PREALLOCATED / (1 - RESERVED['gpu']) * memory['capacity']
  large = report['platform'] == 'gpu' and report['fits'] and memory['total'] > default
  return [
    f'{report["config"]} on {slices}{report["topology"]} ({chips}): mesh {mesh}',
    f'{report["parameters"]:,} parameters, {report["tokens_per_step"]:,} tokens per step',
    *_program_lines(report),
    *(f'fully replicated: {name}{list(shape)}' for name, shape in report['replicated'].items()),
    *['the total exceeds what JAX allocates by default: set XLA_CLIENT_MEM_FRACTION=0.97'] * large,
    *_decoding_lines(report['decode']),
  ]


def _decoding_lines(step: Mapping[str, Any] | None) -> list[str]:
  if step is None:
    return []
  if 'timing' not in step:
    needed, capacity = step['memory']['total'] / GIB, step['memory']['capacity'] / GIB
    return ['', f'decoding step: {needed:.1f} GiB do not fit into {capacity:.1f} GiB']
  beams = f' of {step["beam"]} hypotheses' if step['beam'] > 1 else ''
  source = f', sources of {step["source_tokens"]:,} tokens' if step['source_tokens'] else ''
  return [
    '',
    f'decoding step: {step["rows"]} rows{beams}, {step["flops"] / 1e9:,.1f} GFLOPs',
    f'KV cache of {step["cache_tokens"]:,} tokens per row{source}',
    *_program_lines(step),
  ]


def _program_lines(program: Mapping[str, Any]) -> list[str]:
  memory, timing = dict(program['memory']), program['timing']
  total, capacity = memory.pop('total'), memory.pop('capacity')
  memory |= {'total' if program['fits'] else 'total: DOES NOT FIT': total}
  if program['compile_seconds'] is None:
    title, at_most = 'lower bound of the time, not compiled', 'at most '
  else:
    title, at_most = f'estimated time, compiled in {program["compile_seconds"]:.0f} s', ''
  rates = {
    f'{at_most}tokens/s': f'{timing["tokens"]:,.0f}',
    f'{at_most}MFU': f'{timing["mfu"]:.1%}' if timing['mfu'] else '',
  }
  if timing['usd_per_billion_tokens']:
    rates['USD per billion tokens'] = f'{timing["usd_per_billion_tokens"]:,.2f}'
  return [
    '',
    f'{f"memory of a device, of {capacity / GIB:.1f} GiB":<38}{"GiB":>8}',
    *(f'  {name:<36}{size / GIB:8.2f}' for name, size in memory.items()),
    '',
    *_communication(program['collectives'], program.get('comm_lower_bound', {})),
    '',
    title,
    *(
      f'  {name.replace("_", " "):<36}{seconds * 1e3:8.2f} ms'
      for name, seconds in (timing['parts'] | {'step': timing['step']}).items()
      if seconds
    ),
    *(f'  {name:<36}{rate:>8}' for name, rate in rates.items() if rate),
  ]


def _communication(
  collectives: Sequence[Mapping[str, Any]] | None, lower_bound: Mapping[str, float] | None
) -> Iterator[str]:
  """Yields the megabytes that a device sends: by kind, if compiled, and by mesh axis."""
  bounds = {axis: size for axis, size in (lower_bound or {}).items() if size}
  yield f'{"sent by a device per step":<38}{"MB":>10}{"at least" if bounds else "":>10}'.rstrip()
  by_axis: dict[str, float] = defaultdict(float)
  for one in collectives or ():
    axes = '+'.join(one['axes'])
    by_axis[axes] += one['bytes']
    yield f'  {one["kind"] + " over " + axes:<36}{one["bytes"] / 1e6:10,.1f}'
  for axes in {**by_axis, **bounds}:
    sent, bound = (f'{x[axes] / 1e6:10,.1f}' if x.get(axes) else '' for x in (by_axis, bounds))
    ratio = f'  x {by_axis[axes] / bounds[axes]:.2f}' if sent and bound else ''
    yield f'  {"total over " + axes:<36}{sent:>10}{bound}{ratio}'
  if not (by_axis or bounds):
    yield '  unknown for this model' if collectives is lower_bound is None else '  nothing'


def ranking(candidates: Sequence[search.Candidate], slice_: topology.Slice) -> list[str]:
  """Returns a title, and a line for each candidate of a search."""
  how = '' if slice_.chip.platform == 'tpu' else ', upper bounds of the speed, not compiled'
  return [
    f'{"tokens/s":>12}{"GiB":>8}{"MFU":>8}  on {slice_.slices} x {slice_.topology}{how}',
    *(
      f'{f"{one.tokens:,.0f}" if one.fits else "does not fit":>12}'
      f'{one.memory / GIB:8.2f}{one.mfu:8.1%}  {one.flags}'
      for one in candidates
    ),
  ]
