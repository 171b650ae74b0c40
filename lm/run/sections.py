"""The sections of a report: pure functions from the record to HTML, '' if nothing is to show."""

import ast
import html
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lm.run import curves, record
from lm.run.goodput import goodput
from lm.run.progress import duration, si
from lm.run.record import Record

_MOST_SAMPLES = 40
_MOST_EVENTS = 300


def heading(run: Record) -> str:
  """The experiment, what its file says of it, and where the run stands."""
  word, at = record.status(run), record.step(run)
  of = f' of {run.config["steps"]:,}' if 'steps' in run.config else ''
  when = f' · last written {run.written:%Y-%m-%d %H:%M} UTC' if run.written else ''
  return (
    f'<header><h1>{_text(run.name)}</h1>{_abstract(run)}'
    f'<p class="status"><b class="{word}">{word}</b> · step {at:,}{of}{when}</p></header>'
  )


def figures(run: Record) -> str:
  """The numbers one looks for first."""
  shown = []
  if 'train/loss' in run.series:
    shown.append((_number(run.series['train/loss'].last()[1]), 'training loss, last'))
  if (rate := _median(run, 'train/tokens_per_second')) is not None:
    shown.append((si(rate), 'tokens per second, median'))
  if (share := _median(run, 'train/mfu')) is not None:
    shown.append((f'{share:.1%}', 'model FLOP utilisation, median'))
  times = goodput(run.events)
  if times['wall_seconds'] > 0:
    starts = f'time, {times["starts"]:g} start{"s" if times["starts"] != 1 else ""}'
    shown.append((duration(times['wall_seconds']), starts))
    shown.append((f'{times["goodput"]:.0%}', 'goodput: share of the time spent on new steps'))
  tiles = ''.join(f'<div><dd>{_text(v)}</dd><dt>{_text(k)}</dt></div>' for v, k in shown)
  return f'<dl class="figures">{tiles}</dl>' if shown else ''


def results(run: Record) -> str:
  """The last and the best value of every evaluation metric."""
  rows = []
  for name, series in run.series.items():
    if name.startswith('eval/'):
      (last_step, last), best = series.last(), series.best(name)
      at = ('', '') if best is None else (_number(best[1]), f'{best[0]:,}')
      dataset, _, metric = name.removeprefix('eval/').rpartition('/')
      rows.append((dataset, metric.replace('_', ' '), _number(last), f'{last_step:,}', *at))
  if not rows:
    return ''
  titles = ('set', 'metric', 'last', 'at step', 'best', 'at step')
  return _section('Results', _table(sorted(rows), titles, numeric_from=2))


def charts(run: Record) -> str:
  """The curves; the page's script draws them from the data embedded here."""
  groups = curves.panels(run.series)
  if not groups:
    return _section('Curves', '<p class="none">No metrics have been written yet.</p>')
  data = json.dumps(groups, separators=(',', ':'), allow_nan=False).replace('<', '\\u003c')
  return _section(
    'Curves',
    '<noscript><p class="none">The curves need JavaScript.</p></noscript>'
    '<form class="controls">'
    '<label><input type="checkbox" id="logarithmic"> logarithmic steps</label>'
    '<label>smoothing <input type="range" id="smoothing" min="0" max="0.99" step="0.01" '
    'value="0.6"> <output></output></label></form>'
    f'<div id="charts"></div><script type="application/json" id="data">{data}</script>',
  )


def samples(run: Record) -> str:
  """What the model wrote, latest first; prompts are set apart."""
  latest = run.samples[::-1]
  parts = []
  for index, (step, texts) in enumerate(latest[:_MOST_SAMPLES]):
    figures = ''.join(
      f'<figure><figcaption>{_text(name)}</figcaption><pre class="sample">'
      f'<mark>{_text(prompt)}</mark>{_text(text)}</pre></figure>'
      for name, prompt, text in texts
    )
    parts.append(_details(f'step {step:,}', figures, opened=index == 0))
  if len(latest) > _MOST_SAMPLES:
    parts.append(f'<p class="none">{len(latest) - _MOST_SAMPLES} earlier ones in samples/.</p>')
  return _section('Samples', ''.join(parts)) if parts else ''


def configuration(run: Record) -> str:
  """The config by section, under the names that the command line takes, and the source."""
  loose = {k: v for k, v in run.config.items() if not isinstance(v, dict)}
  parts = [_table(_flat(loose), code=True)] if loose else []
  for key, value in run.config.items():
    if isinstance(value, dict):
      parts.append(_details(key, _table(_flat(value, f'{key}.'), code=True)))
  for name, text in run.source.items():
    parts.append(_details(f'source/{name}', f'<pre class="code">{_text(text)}</pre>'))
  return _section('Configuration', ''.join(parts)) if parts else ''


def environment(run: Record) -> str:
  """Versions, devices, host, commits, command."""
  rows = [(key, value) for key, value in _flat(run.environment) if value is not None]
  return _section('Environment', _table(rows, code=True)) if rows else ''


def events(run: Record) -> str:
  """Starts, restores, saves and stops."""
  rows = []
  for event in run.events[-_MOST_EVENTS:]:
    rest = {k: v for k, v in event.items() if k not in ('time', 'event', 'step')}
    fields = ', '.join(f'{key} {_plain(value)}' for key, value in _flat(rest))
    when = str(event['time'])[:19].replace('T', ' ')
    rows.append((when, event['event'], event.get('step', ''), fields))
  if not rows:
    return ''
  count = f'{len(run.events)} events' if len(run.events) != 1 else '1 event'
  if len(run.events) > len(rows):
    count += f', the last {len(rows)} shown'
  return _section('Events', _details(count, _table(rows, ('time (UTC)', 'event', 'step', ''))))


def _abstract(run: Record) -> str:
  """The first paragraph of the docstring of the experiment's file."""
  source = run.source.get(run.name.partition(':')[0] + '.py', '')
  try:
    paragraph = (ast.get_docstring(ast.parse(source)) or '').partition('\n\n')[0]
  except (SyntaxError, ValueError):
    return ''
  return f'<p>{_text(paragraph)}</p>' if paragraph else ''


def _section(title: str, content: str) -> str:
  return f'<section><h2>{_text(title)}</h2>{content}</section>'


def _details(summary: str, content: str, opened: bool = False) -> str:
  state = ' open' if opened else ''
  return f'<details{state}><summary>{_text(summary)}</summary>{content}</details>'


def _table(
  rows: Iterable[tuple], titles: tuple[str, ...] = (), numeric_from: int = 99, code: bool = False
) -> str:
  def cells(row: tuple, tag: str) -> str:
    kinds = [' class="number"' if i >= numeric_from else '' for i in range(len(row))]
    values = zip(row, kinds, strict=True)
    return ''.join(f'<{tag}{kind}>{_text(_plain(v))}</{tag}>' for v, kind in values)

  head = f'<thead><tr>{cells(titles, "th")}</tr></thead>' if titles else ''
  body = ''.join(f'<tr>{cells(row, "td")}</tr>' for row in rows)
  kind = ' class="code"' if code else ''
  return f'<div class="table"><table{kind}>{head}<tbody>{body}</tbody></table></div>'


def _flat(tree: Mapping[str, Any], prefix: str = '') -> list[tuple[str, Any]]:
  """Returns the leaves with their dotted keys."""
  leaves: list[tuple[str, Any]] = []
  for key, value in tree.items():
    if isinstance(value, Mapping):
      leaves += _flat(value, f'{prefix}{key}.')
    else:
      leaves.append((prefix + key, value))
  return leaves


def _plain(value: Any) -> str:
  return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _median(run: Record, name: str) -> float | None:
  values = run.series[name].values if name in run.series else np.array([])
  values = values[np.isfinite(values)]
  return float(np.median(values)) if values.size else None


def _number(value: float) -> str:
  if not math.isfinite(value):
    return 'not finite'
  return f'{value:.4g}' if abs(value) < 1e4 else f'{value:,.0f}'


def _text(value: str) -> str:
  """Escapes text for HTML; control characters, which HTML forbids, become visible."""
  shown = ''.join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in '\n\t' else c for c in value)
  return html.escape(shown)
