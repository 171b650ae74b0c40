"""report.html: a run on one page, without other files.

The page is a tuple of sections. A section is a pure function from `RunData` to HTML, or to '' for a
run without such data.
"""

import ast
import base64
import hashlib
import importlib.resources
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.progress import duration, si
from lm.report import example_tables, word_map
from lm.report.html import details, embedded, escaped, format_float, plain, readable, section, table
from lm.workdir import experiment, files, run_data
from lm.workdir.run_data import RunData, Series

Section = Callable[[RunData], str]

_MAX_POINTS = 2000
_MAX_SAMPLES = 40
_MAX_EVENTS = 300


def write_report(workdir: str | Path) -> Path:
  """Writes workdir/report.html, also during training, and returns its path.

  Raises:
    UserError: the workdir is missing, has no run, or has a damaged file.
  """
  path = Path(workdir) / 'report.html'
  content = render(run_data.read_run(workdir))
  files.replace(path, content.encode('utf-8', errors='backslashreplace'))
  return path


def render(run: RunData, sections: Sequence[Section] | None = None) -> str:
  """Returns the page as HTML; its content security policy allows its own script only.

  Args:
    run: the run.
    sections: the sections in order; None for all.
  """
  assets = importlib.resources.files('lm.report')
  style = assets.joinpath('report.css').read_text('utf-8')
  script = assets.joinpath('report.js').read_text('utf-8')
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
  body = '\n'.join(filter(None, (show(run) for show in sections or SECTIONS)))
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
    f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<meta name="color-scheme" content="light dark">\n'
    f'<title>{escaped(run.name)}</title>\n<style>{style}</style></head>\n'
    f'<body><main>\n{body}\n</main><script>{script}</script></body></html>\n'
  )


def heading(run: RunData) -> str:
  """Returns the experiment, the first paragraph of its docstring, and the status of the run."""
  status, step = run_data.status(run), run_data.step(run)
  of = '' if run.steps is None else f' of {run.steps:,}'
  where = '' if status == 'imported' else f' · step {step:,}{of}'
  when = f' · last written {run.written:%Y-%m-%d %H:%M} UTC' if run.written else ''
  return (
    f'<header><h1>{escaped(run.name)}</h1>{_smoke(run)}{_abstract(run)}'
    f'<p class="status"><b class="{status}">{status}</b>{where}{when}</p></header>'
  )


def figures(run: RunData) -> str:
  """Returns the main figures: loss, throughput, time and goodput."""
  shown = []
  if 'train/loss' in run.series:
    shown.append((format_float(run.series['train/loss'].last()[1]), 'training loss, last'))
  if (rate := _median(run, 'train/tokens_per_second')) is not None:
    shown.append((si(rate), 'tokens per second, median'))
  if (share := _median(run, 'train/mfu')) is not None:
    shown.append((f'{share:.1%}', 'model FLOP utilization, median'))
  times = run_data.goodput(run.events)
  if times['wall_seconds'] > 0:
    starts = f'time, {times["starts"]:g} start{"s" if times["starts"] != 1 else ""}'
    shown.append((duration(times['wall_seconds']), starts))
    shown.append((f'{times["goodput"]:.0%}', 'goodput: share of the time spent on new steps'))
  tiles = ''.join(f'<div><dd>{escaped(v)}</dd><dt>{escaped(k)}</dt></div>' for v, k in shown)
  return f'<dl class="figures">{tiles}</dl>' if shown else ''


def results(run: RunData) -> str:
  """Returns a table of the last and the best value of every evaluation metric."""
  rows = []
  for name, series in run.series.items():
    if name.startswith('eval/'):
      last_step, last = series.last()
      best = series.best(run.directions.get(name))
      at = ('', '') if best is None else (format_float(best[1]), f'{best[0]:,}')
      dataset, _, metric = name.removeprefix('eval/').rpartition('/')
      rows.append((dataset, metric.replace('_', ' '), format_float(last), f'{last_step:,}', *at))
  if not rows:
    return ''
  titles = ('set', 'metric', 'last', 'at step', 'best', 'at step')
  notes = sorted((name.removeprefix('eval/'), note) for name, note in run.notes.items())
  content = table(sorted(rows), titles, numeric_from=2)
  return section('Results', content + (table(notes, code=True) if notes else ''))


def fertility(run: RunData) -> str:
  """Returns a table of the tokens that the text of each set takes."""
  return readable('Tokens', _fertility, run.fertility) if run.fertility else ''


def _fertility(found: Mapping[str, Mapping[str, float]]) -> str:
  rows = [(name, *map(format_float, rates.values())) for name, rates in sorted(found.items())]
  titles = ('set', *next(iter(found.values())))
  return section('Tokens', table(rows, titles, numeric_from=1))


def curves(run: RunData) -> str:
  """Returns the section of the curves, as data that the page's script draws."""
  groups = panels(run.series)
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


def words(run: RunData) -> str:
  """Returns the map of word vectors."""
  return readable('Words', word_map.show, run.word_map)


def samples(run: RunData) -> str:
  """Returns the generated samples, latest first, with marked prompts."""
  latest = run.samples[::-1]
  parts = []
  for index, (step, texts) in enumerate(latest[:_MAX_SAMPLES]):
    content = ''.join(
      f'<figure><figcaption>{escaped(name)}</figcaption><pre class="sample">'
      f'<mark>{escaped(prompt)}</mark>{escaped(text)}</pre></figure>'
      for name, prompt, text in texts
    )
    parts.append(details(f'step {step:,}', content, opened=index == 0))
  if len(latest) > _MAX_SAMPLES:
    parts.append(
      f'<p class="none">{len(latest) - _MAX_SAMPLES} earlier samples are in samples/.</p>'
    )
  return section('Samples', ''.join(parts)) if parts else ''


def configuration(run: RunData) -> str:
  """Returns a table for each section of the config, with dotted keys, and the files of source/."""
  top_level = {k: v for k, v in run.config.items() if not isinstance(v, dict)}
  parts = [table(top_level.items(), code=True)] if top_level else []
  parts += [
    details(key, table(experiment.flatten(value, f'{key}.').items(), code=True))
    for key, value in run.config.items()
    if isinstance(value, dict)
  ]
  parts += [
    details(f'source/{name}', f'<pre class="code">{escaped(text)}</pre>')
    for name, text in run.source.items()
  ]
  return section('Configuration', ''.join(parts)) if parts else ''


def environment(run: RunData) -> str:
  """Returns a table of versions, devices, host, commits and command."""
  leaves = experiment.flatten(run.environment)
  rows = [(key, value) for key, value in leaves.items() if value is not None]
  return section('Environment', table(rows, code=True)) if rows else ''


def events(run: RunData) -> str:
  """Returns a table of the events, such as starts, saves and stops."""
  rows = []
  for event in run.events[-_MAX_EVENTS:]:
    rest = {k: v for k, v in event.items() if k not in ('time', 'event', 'step')}
    fields = ', '.join(f'{key} {plain(v)}' for key, v in experiment.flatten(rest).items())
    when = str(event['time'])[:19].replace('T', ' ')
    rows.append((when, event['event'], event.get('step', ''), fields))
  if not rows:
    return ''
  count = f'{len(run.events)} events' if len(run.events) != 1 else '1 event'
  if len(run.events) > len(rows):
    count += f', the last {len(rows)} shown'
  return section('Events', details(count, table(rows, ('time (UTC)', 'event', 'step', ''))))


SECTIONS: tuple[Section, ...] = (
  heading,
  figures,
  results,
  fertility,
  curves,
  example_tables.outputs,
  example_tables.attention,
  words,
  samples,
  configuration,
  environment,
  events,
)


def panels(series: Mapping[str, Series]) -> list[dict[str, Any]]:
  """Returns groups of panels of lines, as JSON values.

  The losses of training and of all evaluation sets share the first panel. The second group is the
  evaluation, with a panel for each metric and a line for each set. Training and other prefixes
  follow.

  Returns:
    [{'title', 'panels': [{'title', 'lines': [{'name', 'noisy', 'x', 'y', 'bad'}]}]}], where `bad`
    lists the steps of values that are not finite; y is null there.
  """
  titles = {'eval': 'Evaluation', 'train': 'Training', '': 'other'}
  groups: dict[str, dict[str, list[dict[str, Any]]]]
  groups = {'Loss': {}, 'Evaluation': {}, 'Training': {}}
  for name, points in series.items():
    prefix, _, metric = name.rpartition('/')
    group, _, dataset = prefix.partition('/')
    shared = metric == 'loss' and group in ('train', 'eval')
    noisy = group == 'train' and metric not in ('learning_rate', 'epoch')
    line = _line(dataset or (group if shared else metric), points, noisy)
    title = 'Loss' if shared else titles.get(group, group)
    groups.setdefault(title, {}).setdefault(metric.replace('_', ' '), []).append(line)
  return [
    {
      'title': title,
      'panels': [{'title': metric, 'lines': lines} for metric, lines in members.items()],
    }
    for title, members in groups.items()
    if members
  ]


def thin(points: Series, limit: int = _MAX_POINTS) -> Series:
  """Returns at most `limit` points, which preserve spikes and gaps.

  These are the first and the last point and, for each of several equal intervals, its minimum, its
  maximum and one point that is not finite.
  """
  count = len(points.steps)
  if count <= limit:
    return points
  finite = np.isfinite(points.values)
  lowest = np.where(finite, points.values, np.inf)
  highest = np.where(finite, points.values, -np.inf)
  index = {0, count - 1}
  for part in np.array_split(np.arange(count), (limit - 2) // 3):
    index |= {part[lowest[part].argmin()], part[highest[part].argmax()]}
    index |= set(part[~finite[part]][:1])
  kept = np.array(sorted(index))
  return Series(points.steps[kept], points.values[kept])


def _line(name: str, points: Series, noisy: bool) -> dict[str, Any]:
  thinned = thin(points)
  steps = thinned.steps.tolist()
  # Six digits are finer than a pixel and halve the size of the page.
  values = [float(f'{v:.6g}') if math.isfinite(v) else None for v in thinned.values.tolist()]
  bad = [s for s, v in zip(steps, values, strict=True) if v is None]
  return {'name': name, 'noisy': noisy, 'x': steps, 'y': values, 'bad': bad}


def _smoke(run: RunData) -> str:
  """Returns a paragraph that marks the run as a smoke test; '' for other runs.

  Without it, the abstract, which describes the full experiment, would mislead the reader.
  """
  name, _, arg = run.name.partition(':')
  if not arg.endswith('smoke'):
    return ''
  source = run.setting('data.source')
  on = f', data.source={source}' if source else ''
  return (
    f'<p><b>A smoke test of {escaped(name)}: few steps of a small model on embedded '
    f'data{escaped(on)}.</b></p>'
  )


def _abstract(run: RunData) -> str:
  """Returns the first paragraph of the docstring of the experiment's file."""
  source = run.source.get(run.name.partition(':')[0] + '.py', '')
  try:
    paragraph = (ast.get_docstring(ast.parse(source)) or '').partition('\n\n')[0]
  except (SyntaxError, ValueError):
    return ''
  return f'<p>{escaped(paragraph)}</p>' if paragraph else ''


def _median(run: RunData, name: str) -> float | None:
  values = run.series[name].values if name in run.series else np.array([])
  values = values[np.isfinite(values)]
  return float(np.median(values)) if values.size else None
