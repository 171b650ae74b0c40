"""How far preparation has come, on stderr."""

import sys
import time
from collections.abc import Callable

Progress = Callable[[int, int, str], None]  # (done, total, what)
_SECONDS = 5.0  # between plain lines; a terminal is rewritten ten times a second


class _ShowProgress:
  """Rewrites one line of a terminal, or prints a plain line every few seconds elsewhere."""

  def __init__(self):
    self._what = ''
    self._start = self._shown = 0.0

  def __call__(self, done: int, total: int, what: str) -> None:
    now = time.monotonic()
    if what != self._what:
      self._what, self._start, self._shown = what, now, now
    terminal = sys.stderr.isatty()
    finished = done >= total
    if not finished and now - self._shown < (0.1 if terminal else _SECONDS):
      return
    self._shown = now
    line = f'{what}: {done:,} of {total:,} documents, {now - self._start:.0f} s'
    if terminal:
      print(f'\r\x1b[K{line}', end='\n' if finished else '', file=sys.stderr, flush=True)
    else:
      print(line, file=sys.stderr, flush=True)
    if finished:
      self._what = ''


show_progress: Progress = _ShowProgress()


def quiet(done: int, total: int, what: str) -> None:
  """Shows nothing."""
