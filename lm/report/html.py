"""HTML for the sections of a report."""

import html
import json
import math
from collections.abc import Callable, Iterable
from typing import Any


def section(title: str, content: str) -> str:
  """Returns a section of the page under a title; `content` is HTML."""
  return f'<section><h2>{escaped(title)}</h2>{content}</section>'


def readable(title: str, show: Callable[[Any], str], found: Any) -> str:
  """Returns the section `show(found)`; if this fails, a section that reports a damaged file."""
  try:
    return show(found)
  except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
    reason = f'{type(e).__name__}: {e}'
    return section(title, f'<p class="none">The file is damaged ({escaped(reason)}).</p>')


def details(summary: str, content: str, opened: bool = False) -> str:
  """Returns a block that opens by a click on its summary; `content` is HTML."""
  state = ' open' if opened else ''
  return f'<details{state}><summary>{escaped(summary)}</summary>{content}</details>'


def table(
  rows: Iterable[tuple], titles: tuple[str, ...] = (), numeric_from: int = 99, code: bool = False
) -> str:
  """Returns a table of values; the columns from `numeric_from` on are right-aligned."""

  def cells(row: tuple, tag: str) -> str:
    kinds = [' class="number"' if i >= numeric_from else '' for i in range(len(row))]
    values = zip(row, kinds, strict=True)
    return ''.join(f'<{tag}{kind}>{escaped(plain(v))}</{tag}>' for v, kind in values)

  head = f'<thead><tr>{cells(titles, "th")}</tr></thead>' if titles else ''
  body = ''.join(f'<tr>{cells(row, "td")}</tr>' for row in rows)
  kind = ' class="code"' if code else ''
  return f'<div class="table"><table{kind}>{head}<tbody>{body}</tbody></table></div>'


def embedded(name: str, data: Any) -> str:
  """Returns a JSON block, which the page's script reads by its id."""
  text = json.dumps(data, separators=(',', ':'), allow_nan=False).replace('<', '\\u003c')
  return f'<script type="application/json" id="{name}">{text}</script>'


def plain(value: Any) -> str:
  """Returns a string unchanged, and any other value as JSON."""
  return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def format_float(value: float) -> str:
  """Returns a float with four significant digits."""
  if not math.isfinite(value):
    return 'not finite'
  return f'{value:.4g}' if abs(value) < 1e4 else f'{value:,.0f}'


def escaped(value: str) -> str:
  """Returns text as HTML, with visible symbols for control characters, which HTML forbids."""
  shown = ''.join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in '\n\t' else c for c in value)
  return html.escape(shown)
