"""The sections of a report: pure functions from the record to HTML, '' if nothing is to show."""

import ast
from collections.abc import Mapping
from typing import Any

import numpy as np

from lm.report import charts, word_map
from lm.report.html import details, embedded, escaped, number, plain, readable, section, table
from lm.workdir import run_data
from lm.workdir.goodput import goodput
from lm.workdir.progress import duration, si
from lm.workdir.run_data import RunData

_MOST_SAMPLES = 40
_MOST_EVENTS = 300


def heading(run: RunData) -> str:
  """The experiment, what its file says of it, and where the run stands."""
  word, at = run_data.status(run), run_data.step(run)
  of = '' if run.steps is None else f' of {run.steps:,}'
  where = '' if word == 'imported' else f' · step {at:,}{of}'
  when = f' · last written {run.written:%Y-%m-%d %H:%M} UTC' if run.written else ''
  return (
    f'<header><h1>{escaped(run.name)}</h1>{_smoke(run)}{_abstract(run)}'
    f'<p class="status"><b class="{word}">{word}</b>{where}{when}</p></header>'
  )


def figures(run: RunData) -> str:
  """The numbers one looks for first."""
  shown = []
  if 'train/loss' in run.series:
    shown.append((number(run.series['train/loss'].last()[1]), 'training loss, last'))
  if (rate := _median(run, 'train/tokens_per_second')) is not None:
    shown.append((si(rate), 'tokens per second, median'))
  if (share := _median(run, 'train/mfu')) is not None:
    shown.append((f'{share:.1%}', 'model FLOP utilisation, median'))
  times = goodput(run.events)
  if times['wall_seconds'] > 0:
    starts = f'time, {times["starts"]:g} start{"s" if times["starts"] != 1 else ""}'
    shown.append((duration(times['wall_seconds']), starts))
    shown.append((f'{times["goodput"]:.0%}', 'goodput: share of the time spent on new steps'))
  tiles = ''.join(f'<div><dd>{escaped(v)}</dd><dt>{escaped(k)}</dt></div>' for v, k in shown)
  return f'<dl class="figures">{tiles}</dl>' if shown else ''


def results(run: RunData) -> str:
  """The last and the best value of every evaluation metric."""
  rows = []
  for name, series in run.series.items():
    if name.startswith('eval/'):
      last_step, last = series.last()
      best = series.best(run.directions.get(name))
      at = ('', '') if best is None else (number(best[1]), f'{best[0]:,}')
      dataset, _, metric = name.removeprefix('eval/').rpartition('/')
      rows.append((dataset, metric.replace('_', ' '), number(last), f'{last_step:,}', *at))
  if not rows:
    return ''
  titles = ('set', 'metric', 'last', 'at step', 'best', 'at step')
  notes = table(sorted((k.removeprefix('eval/'), note) for k, note in run.notes.items()), code=True)
  return section(
    'Results', table(sorted(rows), titles, numeric_from=2) + (notes if run.notes else '')
  )


def curves(run: RunData) -> str:
  """The curves; the page's script draws them from the data embedded here."""
  groups = charts.panels(run.series)
  if not groups:
    return section('Curves', '<p class="none">No metrics have been written yet.</p>')
  return section(
    'Curves',
    '<noscript><p class="none">The curves need JavaScript.</p></noscript>'
    '<form class="controls">'
    '<label><input type="checkbox" id="logarithmic"> logarithmic steps</label>'
    '<label>smoothing <input type="range" id="smoothing" min="0" max="0.99" step="0.01" '
    'value="0.6"> <output></output></label></form>'
    f'<div id="charts"></div>{embedded("data", groups)}',
  )


def samples(run: RunData) -> str:
  """What the model wrote, latest first; prompts are set apart."""
  latest = run.samples[::-1]
  parts = []
  for index, (step, texts) in enumerate(latest[:_MOST_SAMPLES]):
    figures = ''.join(
      f'<figure><figcaption>{escaped(name)}</figcaption><pre class="sample">'
      f'<mark>{escaped(prompt)}</mark>{escaped(text)}</pre></figure>'
      for name, prompt, text in texts
    )
    parts.append(details(f'step {step:,}', figures, opened=index == 0))
  if len(latest) > _MOST_SAMPLES:
    parts.append(f'<p class="none">{len(latest) - _MOST_SAMPLES} earlier ones in samples/.</p>')
  return section('Samples', ''.join(parts)) if parts else ''


def words(run: RunData) -> str:
  """The map of words."""
  return readable('Words', word_map.show, run.word_map)


def configuration(run: RunData) -> str:
  """The config by section, under the names that the command line takes, and the source."""
  loose = {k: v for k, v in run.config.items() if not isinstance(v, dict)}
  parts = [table(_flat(loose), code=True)] if loose else []
  for key, value in run.config.items():
    if isinstance(value, dict):
      parts.append(details(key, table(_flat(value, f'{key}.'), code=True)))
  for name, text in run.source.items():
    parts.append(details(f'source/{name}', f'<pre class="code">{escaped(text)}</pre>'))
  return section('Configuration', ''.join(parts)) if parts else ''


def environment(run: RunData) -> str:
  """Versions, devices, host, commits, command."""
  rows = [(key, value) for key, value in _flat(run.environment) if value is not None]
  return section('Environment', table(rows, code=True)) if rows else ''


def events(run: RunData) -> str:
  """Starts, restores, saves and stops."""
  rows = []
  for event in run.events[-_MOST_EVENTS:]:
    rest = {k: v for k, v in event.items() if k not in ('time', 'event', 'step')}
    fields = ', '.join(f'{key} {plain(value)}' for key, value in _flat(rest))
    when = str(event['time'])[:19].replace('T', ' ')
    rows.append((when, event['event'], event.get('step', ''), fields))
  if not rows:
    return ''
  count = f'{len(run.events)} events' if len(run.events) != 1 else '1 event'
  if len(run.events) > len(rows):
    count += f', the last {len(rows)} shown'
  return section('Events', details(count, table(rows, ('time (UTC)', 'event', 'step', ''))))


def _smoke(run: RunData) -> str:
  """What a run of a few small steps has to say before the abstract, which is of the experiment."""
  name, _, arg = run.name.partition(':')
  if not arg.endswith('smoke'):
    return ''
  source = run.setting('data.source')
  on = f', data.source={source}' if source else ''
  return (
    f'<p><b>A smoke of {escaped(name)}: few steps, small, on embedded data{escaped(on)}.</b></p>'
  )


def _abstract(run: RunData) -> str:
  """The first paragraph of the docstring of the experiment's file."""
  source = run.source.get(run.name.partition(':')[0] + '.py', '')
  try:
    paragraph = (ast.get_docstring(ast.parse(source)) or '').partition('\n\n')[0]
  except (SyntaxError, ValueError):
    return ''
  return f'<p>{escaped(paragraph)}</p>' if paragraph else ''


def _flat(tree: Mapping[str, Any], prefix: str = '') -> list[tuple[str, Any]]:
  """Returns the leaves with their dotted keys."""
  leaves: list[tuple[str, Any]] = []
  for key, value in tree.items():
    if isinstance(value, Mapping):
      leaves += _flat(value, f'{prefix}{key}.')
    else:
      leaves.append((prefix + key, value))
  return leaves


def _median(run: RunData, name: str) -> float | None:
  values = run.series[name].values if name in run.series else np.array([])
  values = values[np.isfinite(values)]
  return float(np.median(values)) if values.size else None
