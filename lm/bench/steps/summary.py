"""From seconds to what is reported: medians, ratios with their spread, shares of a rate."""

import statistics
from collections.abc import Sequence
from typing import Any

from lm.bench.steps.shape import Shape

# Share of the processors used by other programs from which a table says so. Codes suffer
# unequally: one whose threads wait for each other in every operation, many times over.
DISTURBED = 0.05


def spread(values: Sequence[float]) -> dict[str, float]:
  """Returns the least, the quartiles (inclusive method), the median and the greatest value."""
  ordered = sorted(values)
  if len(ordered) > 1:
    low, _, high = statistics.quantiles(ordered, n=4, method='inclusive')
  else:
    low = high = ordered[0]
  return {
    'min': ordered[0],
    'low': low,
    'median': statistics.median(ordered),
    'high': high,
    'max': ordered[-1],
  }


def ratios(ours: Sequence[float], peer: Sequence[float]) -> list[float]:
  """Returns how many times faster we are than the peer, round by round."""
  return [p / o for o, p in zip(ours, peer, strict=True)]


def of_shape(name: str, shape: Shape, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
  """Returns the figures of one shape.

  The machine's rate is the better of the codes' median rates, so shares compare with each other.
  FLOPs are the model's (attention counted whole, recomputation not at all), for all codes.

  Args:
    name: of the shape.
    shape: what was measured.
    results: as `turns.measure` returns them; the first is ours.
  """
  first, *others = results
  flops = results[first]['step_flops']
  rates = {
    code: result['product_flops'] / statistics.median(result['products'])
    for code, result in results.items()
  }
  machine = max(rates.values())
  codes = {}
  for code, result in results.items():
    seconds = spread(result['steps'])
    codes[code] = {
      'step_seconds': seconds,
      'tokens_per_second': shape.tokens / seconds['median'],
      'product_flops_per_second': rates[code],
      'product_share': flops / seconds['median'] / machine,
      'peak_bytes': result['peak_bytes'],
      'first_step_seconds': result['first_step_seconds'],
      'disturbance': spread(result['disturbance']) if result['disturbance'] else None,
      'versions': result['versions'],
    }
  against = {
    code: spread(ratios(results[first]['steps'], results[code]['steps'])) for code in others
  }
  return {
    'shape': name,
    'sizes': vars(shape) | {'step_flops': flops},
    'rounds': len(results[first]['steps']),
    'machine_product_flops_per_second': machine,
    'codes': codes,
    'times_faster_than': against,
  }


def table(report: dict[str, Any]) -> str:
  """Returns the report as lines for people."""
  device, threads = report['device'], report['threads']
  on = f'{threads} threads' if device['platform'] == 'cpu' else 'one device'
  lines = [f'{device["platform"]} {device["name"]}, {on}, precision {report["precision"]}']
  for figures in report['shapes']:
    sizes = figures['sizes']
    rate = _flops(figures['machine_product_flops_per_second'])
    lines += [
      '',
      f'{figures["shape"]}: {sizes["depth"]} layers, width {sizes["d_model"]}, '
      f'T {sizes["context"]}, B {sizes["batch_size"]}, V {sizes["vocab_size"]}, {sizes["dtype"]}; '
      f'{figures["rounds"]} rounds; matrix products at {rate}',
      f'  {"":14}{"ms a step":>10}{"quartiles":>20}{"tokens/s":>11}{"of rate":>9}{"memory":>9}',
    ]
    lines += [_row(code, of_code) for code, of_code in figures['codes'].items()]
    disturbed = [c['disturbance']['median'] for c in figures['codes'].values() if c['disturbance']]
    if max(disturbed, default=0) > DISTURBED:
      lines.append(f'  not reliable: other programs used {max(disturbed):.0%} of the processors')
    for code, r in figures['times_faster_than'].items():
      lines.append(
        f'  {r["median"]:.2f} times as fast as {code} '
        f'(quartiles {r["low"]:.2f} to {r["high"]:.2f}, all {r["min"]:.2f} to {r["max"]:.2f})'
      )
  return '\n'.join(lines)


def _row(code: str, of_code: dict[str, Any]) -> str:
  ms = {key: 1e3 * value for key, value in of_code['step_seconds'].items()}
  quartiles = f'{ms["low"]:.1f} to {ms["high"]:.1f}'
  return (
    f'  {code:14}{ms["median"]:10.1f}{quartiles:>20}{of_code["tokens_per_second"]:11,.0f}'
    f'{of_code["product_share"]:9.1%}{of_code["peak_bytes"] / 2**30:6.2f} GB'
  )


def _flops(rate: float) -> str:
  return f'{rate / 1e12:.1f} TFLOP/s' if rate >= 1e12 else f'{rate / 1e9:.1f} GFLOP/s'
