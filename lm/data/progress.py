"""How far preparation has come, on stderr."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

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


@contextlib.contextmanager
def ticking(progress: Progress, seconds: float = 1.0) -> Iterator[Progress]:
  """Yields a progress that is shown again and again, for work that goes on after the last document.

  The last document counts as done when the work is, at the end of the block.
  """
  last: tuple[int, int, str] | None = None
  lock, finished = threading.Lock(), threading.Event()

  def report(done: int, total: int, what: str) -> None:
    nonlocal last
    with lock:
      last = min(done, total - 1), total, what
      progress(*last)

  def repeat() -> None:
    while not finished.wait(seconds):
      with lock:
        if last is not None:
          progress(*last)

  thread = threading.Thread(target=repeat, daemon=True)
  thread.start()
  try:
    yield report
  finally:
    finished.set()
    thread.join()
  if last is not None:
    _, total, what = last
    progress(total, total, what)
