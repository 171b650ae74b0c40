"""The progress of a program on stderr: a live line on a terminal, and else plain lines."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

Report = Callable[[int, int, str], None]  # (done, total, activity)

_REDRAW_SECONDS = 0.2
_PLAIN_SECONDS = 5.0  # between plain lines of a preparation


class StatusLine:
  """A line that is redrawn on a terminal, at most five times a second; elsewhere, plain lines.

  A terminal with NO_COLOR or TERM=dumb gets plain lines too, without control characters.

  Args:
    stream: the output; stderr if None.
  """

  def __init__(self, stream: TextIO | None = None):
    self._stream = sys.stderr if stream is None else stream
    self._drawn = float('-inf')
    self.live: Live | None = None
    self._terminal = is_terminal(self._stream)

  def draw(self, now: float, text: str, plain: bool = False, last: bool = False) -> None:
    """Shows the current text.

    Args:
      now: seconds, monotonic.
      text: one line.
      plain: whether to print the text as a plain line, if the output is no terminal.
      last: whether the line is complete; the next call begins a new one.
    """
    if self._terminal and (last or now - self._drawn >= _REDRAW_SECONDS):
      if self.live is None:
        console = Console(file=self._stream, force_terminal=True, highlight=False)
        self.live = Live(console=console, auto_refresh=False, redirect_stdout=False)
        self.live.start()
        console.show_cursor(True)  # an error could end the program with a hidden cursor
      self._drawn = now
      line = Text(text, no_wrap=True, overflow='ellipsis')
      line.highlight_regex('^[0-9,]+', 'bold')
      self.live.update(line, refresh=True)
      if last:
        self.live.stop()
        self.live = None
    elif plain and not self._terminal:
      print(text, file=self._stream, flush=True)

  def message(self, text: str) -> None:
    """Prints a line above the live one."""
    if self.live is None:
      print(text, file=self._stream, flush=True)
    else:
      self.live.console.print(Text(text))


class Progress:
  """Shows step, values and remaining time of a training run.

  Args:
    total_steps: the last step of the run.
    start_step: the first step of the run.
    stream: the output; stderr if None.
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
    self._clock = clock
    # The first step and its end time. The rate excludes this step, whose time includes compilation.
    self._first: tuple[int, float] | None = None
    self._step = start_step
    self._values: dict[str, float] = {}
    self._line = StatusLine(stream)
    self.message = self._line.message

  def update(self, step: int, values: Mapping[str, float]) -> None:
    """Shows that `step` is done.

    Args:
      step: the step.
      values: new values by name, such as 'tokens/s' and 'MFU' (a fraction of 1). A call without
        values prints no plain line.
    """
    now = self._clock()
    self._first = self._first or (step, now)
    self._step = step
    self._values.update(values)
    self._line.draw(now, self._text(now), plain=bool(values))

  def exclude(self, seconds: float) -> None:
    """Excludes time without training, in seconds, from the estimate of the remaining time."""
    if self._first is not None:
      self._first = (self._first[0], self._first[1] + seconds)

  def close(self) -> None:
    """Ends the live line with its current text."""
    if self._line.live is not None:
      now = self._clock()
      self._line.draw(now, self._text(now), last=True)

  def _text(self, now: float) -> str:
    parts = [f'{self._step:,}/{self._total:,}']
    parts += [_value(name, value) for name, value in self._values.items()]
    if self._first is not None and self._step > self._first[0]:
      rate = (now - self._first[1]) / (self._step - self._first[0])
      parts.append(f'{duration(rate * max(self._total - self._step, 0))} left')
    return '  '.join(parts)


class _Documents:
  """Shows the count of processed documents and the time of the activity."""

  _activity = ''

  def __call__(self, done: int, total: int, activity: str) -> None:
    now = time.monotonic()
    if activity != self._activity:
      self._activity, self._start, self._printed = activity, now, now
      self._line = StatusLine()
    finished = done >= total
    plain = finished or now - self._printed >= _PLAIN_SECONDS
    if plain:
      self._printed = now
    text = f'{activity}: {done:,} of {total:,} documents, {now - self._start:.0f} s'
    self._line.draw(now, text, plain, finished)
    if finished:
      self._activity = ''


show_documents: Report = _Documents()


def silent(done: int, total: int, activity: str) -> None:
  """Shows nothing."""


@contextlib.contextmanager
def ticking(report: Report, seconds: float = 1.0) -> Iterator[Report]:
  """Yields a `Report`; within the block, a thread repeats its last call every `seconds`.

  Work may continue after the last document; the repeated calls update the elapsed time of the
  activity. The last document counts as done only at the end of the block.
  """
  last: tuple[int, int, str] | None = None
  lock, finished = threading.Lock(), threading.Event()

  def report_unfinished(done: int, total: int, activity: str) -> None:
    nonlocal last
    with lock:
      last = min(done, total - 1), total, activity
      report(*last)

  def repeat() -> None:
    while not finished.wait(seconds):
      with lock:
        if last is not None:
          report(*last)

  thread = threading.Thread(target=repeat, daemon=True)
  thread.start()
  try:
    yield report_unfinished
  finally:
    finished.set()
    thread.join()
  if last is not None:
    _, total, activity = last
    report(total, total, activity)


def is_terminal(stream: TextIO) -> bool:
  """Returns whether `stream` is a terminal that accepts control characters."""
  plain = os.environ.get('NO_COLOR') or os.environ.get('TERM', 'dumb') == 'dumb'
  return stream.isatty() and not plain


def duration(seconds: float) -> str:
  """Returns a time span in two units, such as '3 h 12 min'."""
  rounded = round(seconds)
  for unit, size, lower, lower_size in (
    ('d', 86400, 'h', 3600),
    ('h', 3600, 'min', 60),
    ('min', 60, 's', 1),
  ):
    if rounded >= size:
      return f'{rounded // size} {unit} {rounded % size // lower_size} {lower}'
  return f'{rounded} s'


def si(value: float) -> str:
  """Returns three digits and an SI prefix: 12345 is '12.3k'."""
  for factor, prefix in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if abs(value) >= factor:
      return f'{value / factor:.3g}{prefix}'
  return f'{value:.3g}'


def _value(name: str, value: float) -> str:
  formats = {'tokens/s': f'{si(value)} tokens/s', 'MFU': f'MFU {value:.1%}'}
  return formats.get(name, f'{name} {value:.4g}')
