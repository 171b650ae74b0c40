"""report.html: a run on one page that needs nothing but a browser.

A report is a tuple of sections, pure functions `(Record) -> str` of HTML; a feature that has more
to show passes `SECTIONS + (its_own,)`.
"""

import base64
import hashlib
import html
import importlib.resources
from collections.abc import Callable, Sequence
from pathlib import Path

from lm.report import example_tables, sections
from lm.workdir import files, run_data
from lm.workdir.run_data import RunData

Section = Callable[[RunData], str]

SECTIONS: tuple[Section, ...] = (
  sections.heading,
  sections.figures,
  sections.results,
  sections.curves,
  example_tables.outputs,
  example_tables.attention,
  sections.words,
  sections.samples,
  sections.configuration,
  sections.environment,
  sections.events,
)

_SCRIPTS = ('dom.js', 'report.js', 'tables.js', 'heatmaps.js')  # the first is for the others


def write_report(workdir: str | Path, parts: Sequence[Section] = SECTIONS) -> Path:
  """Writes workdir/report.html from what the workdir holds now, and returns its path.

  Safe while the run goes on: what it reads may grow meanwhile, and the page is replaced at once.

  Raises:
    UserError: the workdir is missing or holds no run.
  """
  path = Path(workdir) / 'report.html'
  files.replace(
    path, page(run_data.read_run(workdir), parts).encode('utf-8', errors='backslashreplace')
  )
  return path


def page(run: RunData, parts: Sequence[Section] = SECTIONS) -> str:
  """Returns the whole page. Its policy lets the browser run the page's own script and no other."""
  assets = importlib.resources.files('lm.report')
  style = assets.joinpath('report.css').read_text('utf-8')
  script = ''.join(assets.joinpath(name).read_text('utf-8') for name in _SCRIPTS)
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
  body = '\n'.join(filter(None, (part(run) for part in parts)))
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
    f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<meta name="color-scheme" content="light dark">\n'
    f'<title>{html.escape(run.name)}</title>\n<style>{style}</style></head>\n'
    f'<body><main>\n{body}\n</main><script>{script}</script></body></html>\n'
  )
