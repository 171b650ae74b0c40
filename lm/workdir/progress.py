"""The progress of a run on stderr: one live line on a terminal, plain lines elsewhere."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

_REDRAW_SECONDS = 0.2


class Progress:
  """Shows step, values and time left.

  On a terminal a live line is redrawn at most five times a second. Elsewhere, and with NO_COLOR or
  TERM=dumb, each update that brings values prints a plain line without control characters.

  Args:
    total_steps: the step at which the run ends.
    start_step: the step it starts from.
    stream: where to write; stderr if None.
    clock: seconds, monotonic.
  """

  def __init__(
    self,
    total_steps: int,
    start_step: int = 0,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._total = total_steps
    self._stream = sys.stderr if stream is None else stream
    self._clock = clock
    # The time of the first step holds compilation, so the rate is measured from its end.
    self._first: tuple[int, float] | None = None
    self._step = start_step
    self._values: dict[str, float] = {}
    self._drawn = float('-inf')
    self._live: Live | None = None
    if is_terminal(self._stream):
      console = Console(file=self._stream, force_terminal=True, highlight=False)
      self._live = Live(console=console, auto_refresh=False, redirect_stdout=False)
      self._live.start()

  def update(self, step: int, values: Mapping[str, float]):
    """Says that `step` is done; `values` (may be empty) replace those of the same names.

    'tokens/s' and 'MFU' (a share of 1) have formats of their own; other values show four digits.
    """
    now = self._clock()
    if self._first is None:
      self._first = (step, now)
    self._step = step
    self._values.update(values)
    if self._live is None:
      if values:
        self._print(self._line(now))
    elif now - self._drawn >= _REDRAW_SECONDS:
      self._draw(now)

  def exclude(self, seconds: float):
    """Says that so long no step was under way; what is left is reckoned without."""
    if self._first is not None:
      self._first = (self._first[0], self._first[1] + seconds)

  def message(self, text: str):
    """Prints a line above the live one."""
    if self._live is None:
      self._print(text)
    else:
      self._live.console.print(Text(text))

  def close(self):
    """Leaves the last line standing."""
    if self._live is not None:
      self._draw(self._clock())
      self._live.stop()
      self._live = None

  def _draw(self, now: float):
    assert self._live is not None
    self._drawn = now
    line = Text(self._line(now), no_wrap=True, overflow='ellipsis')
    line.stylize('bold', 0, len(f'{self._step:,}'))
    self._live.update(line, refresh=True)

  def _line(self, now: float) -> str:
    left = None
    if self._first is not None and self._step > self._first[0]:
      rate = (now - self._first[1]) / (self._step - self._first[0])
      left = rate * max(self._total - self._step, 0)
    return line(self._step, self._total, self._values, left)

  def _print(self, text: str):
    print(text, file=self._stream, flush=True)


def is_terminal(stream: TextIO) -> bool:
  """Says whether control characters are welcome on `stream`."""
  plain = os.environ.get('NO_COLOR') or os.environ.get('TERM', 'dumb') == 'dumb'
  return stream.isatty() and not plain


def line(step: int, total: int, values: Mapping[str, float], left: float | None) -> str:
  """Returns the text of one update; `left` is in seconds, None where it is not known."""
  parts = [f'{step:,}/{total:,}'] + [_value(name, value) for name, value in values.items()]
  if left is not None:
    parts.append(f'{duration(left)} left')
  return '  '.join(parts)


def duration(seconds: float) -> str:
  """Returns two units of a time span, such as '3 h 12 min'."""
  whole = round(seconds)
  for unit, size, lower, lower_size in (
    ('d', 86400, 'h', 3600),
    ('h', 3600, 'min', 60),
    ('min', 60, 's', 1),
  ):
    if whole >= size:
      return f'{whole // size} {unit} {whole % size // lower_size} {lower}'
  return f'{whole} s'


def si(value: float) -> str:
  """Returns three digits and an SI prefix: 12345 is '12.3k'."""
  for factor, prefix in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if abs(value) >= factor:
      return f'{value / factor:.3g}{prefix}'
  return f'{value:.3g}'


def _value(name: str, value: float) -> str:
  if name == 'tokens/s':
    return f'{si(value)} tokens/s'
  if name == 'MFU':
    return f'MFU {value:.1%}'
  return f'{name} {value:.4g}'
