"""The report of `lm.preflight` as JSON and as text. lm/preflight/README.md explains its lines."""

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
    decoding: of a decoding step, where one was compiled.
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
    report['decode'] = {
      'rows': decoding.rows,
      'beam': decoding.beam,
      'cache_tokens': decoding.cache_tokens,
      'source_tokens': decoding.source_tokens,
      'flops': decoding.flops,
      **_program(decoding, result.capacity, slice_, price),
    }
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


def lines(report: Mapping[str, Any]) -> Iterator[str]:
  """Yields the lines of a report for people."""
  slices = f'{report["slices"]} x ' if report['slices'] > 1 else ''
  accelerator = f'{report["accelerator"]}, ' if report['accelerator'] else ''
  chips = f'{accelerator}{report["chips"]} chip{"s" * (report["chips"] > 1)}'
  mesh = ', '.join(f'{name} {size}' for name, size in report['mesh'].items())
  yield f'{report["config"]} on {slices}{report["topology"]} ({chips}): mesh {mesh}'
  yield f'{report["parameters"]:,} parameters, {report["tokens_per_step"]:,} tokens per step'
  yield from _program_lines(report)
  for name, shape in report['replicated'].items():
    yield f'fully replicated: {name}{list(shape)}'
  memory, step = report['memory'], report['decode']
  preallocated = PREALLOCATED / (1 - RESERVED['gpu']) * memory['capacity']
  if report['platform'] == 'gpu' and report['fits'] and memory['total'] > preallocated:
    yield 'more than JAX allocates by default: set XLA_CLIENT_MEM_FRACTION=0.97'
  if step is None:
    return
  yield ''
  if 'timing' in step:
    beams = f' of {step["beam"]} hypotheses' if step['beam'] > 1 else ''
    source = f', sources of {step["source_tokens"]:,}' if step['source_tokens'] else ''
    yield f'decoding step: {step["rows"]} rows{beams}, {step["flops"] / 1e9:,.1f} GFLOPs'
    yield f'KV cache of {step["cache_tokens"]:,} tokens per row{source}'
    yield from _program_lines(step)
  else:
    needed, capacity = step['memory']['total'] / GIB, step['memory']['capacity'] / GIB
    yield f'decoding step: {needed:.1f} GiB do not fit into {capacity:.1f} GiB'


def _program_lines(program: Mapping[str, Any]) -> Iterator[str]:
  memory, timing = dict(program['memory']), program['timing']
  total, capacity = memory.pop('total'), memory.pop('capacity')
  compiled = program['compile_seconds'] is not None
  yield ''
  yield f'{f"memory of a device, of {capacity / GIB:.1f} GiB":<38}{"GiB":>8}'
  memory[f'total{"" if program["fits"] else ": DOES NOT FIT"}'] = total
  for name, size in memory.items():
    yield f'  {name:<36}{size / GIB:8.2f}'
  yield ''
  yield from _communication(program['collectives'], program.get('comm_lower_bound', {}))
  yield ''
  seconds = f'compiled in {program["compile_seconds"] or 0:.0f} s'
  yield f'estimated time, {seconds}' if compiled else 'lower bound of the time, not compiled'
  at_most = '' if compiled else 'at most '
  for name, value in (timing['parts'] | {'step': timing['step']}).items():
    if value:
      yield f'  {name.replace("_", " "):<36}{value * 1e3:8.2f} ms'
  yield f'  {at_most + "tokens/s":<36}{timing["tokens"]:8,.0f}'
  if timing['mfu']:
    yield f'  {at_most + "MFU":<36}{timing["mfu"]:8.1%}'
  if timing['usd_per_billion_tokens']:
    yield f'  {"USD per billion tokens":<36}{timing["usd_per_billion_tokens"]:8,.2f}'


def _communication(
  collectives: Sequence[Mapping[str, Any]] | None, lower_bound: Mapping[str, float] | None
) -> Iterator[str]:
  """Yields the megabytes that a device sends: by kind, if compiled, and by mesh axis."""
  bounds = {axis: size for axis, size in (lower_bound or {}).items() if size}
  yield f'{"sent by a device per step":<38}{"MB":>10}{"at least" if bounds else "":>10}'.rstrip()
  by_axis: dict[str, float] = {}
  for one in collectives or ():
    axes = '+'.join(one['axes'])
    by_axis[axes] = by_axis.get(axes, 0.0) + one['bytes']
    yield f'  {one["kind"] + " over " + axes:<36}{one["bytes"] / 1e6:10,.1f}'
  for axes in {**by_axis, **bounds}:
    size, bound = by_axis.get(axes), bounds.get(axes)
    sent = f'{size / 1e6:10,.1f}' if size else f'{"":>10}'
    least = f'{bound / 1e6:10,.1f}' if bound else ''
    ratio = f'  x {size / bound:.2f}' if size and bound else ''
    yield f'  {"all over " + axes:<36}{sent}{least}{ratio}'
  if not (by_axis or bounds):
    yield '  unknown for this model' if collectives is lower_bound is None else '  nothing'


def ranking(found: Sequence[search.Candidate], slice_: topology.Slice) -> Iterator[str]:
  """Yields a line for each candidate of a search."""
  how = '' if slice_.chip.platform == 'tpu' else ', at most: not compiled'
  yield f'{"tokens/s":>12}{"GiB":>8}{"MFU":>8}  on {slice_.slices} x {slice_.topology}{how}'
  for one in found:
    rate = f'{one.tokens:,.0f}' if one.fits else 'does not fit'
    yield f'{rate:>12}{one.memory / GIB:8.2f}{one.mfu:8.1%}  {one.flags}'
