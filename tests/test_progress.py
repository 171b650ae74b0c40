import io
import os
import time

import pytest

from lm import progress
from lm.progress import Progress


class _Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def terminal(monkeypatch):
  monkeypatch.setenv('TERM', 'xterm-256color')
  monkeypatch.delenv('NO_COLOR', raising=False)
  return _Terminal()


def _clock(times):
  remaining = iter(times)
  return lambda: next(remaining)


def test_plain_lines_have_values_and_no_control_characters():
  stream = io.StringIO()
  shown = Progress(100, stream=stream, clock=_clock([0.0, 1.0, 20.0]))
  shown.update(10, {'loss': 2.5})
  shown.update(11, {})
  shown.update(20, {'loss': 2.25, 'tokens/s': 12345.0, 'MFU': 0.4123})
  shown.message('saved')
  shown.close()
  assert stream.getvalue().splitlines() == [
    '10/100  loss 2.5',
    '20/100  loss 2.25  12.3k tokens/s  MFU 41.2%  2 min 40 s left',
    'saved',
  ]


@pytest.mark.parametrize(('name', 'value'), [('NO_COLOR', '1'), ('TERM', 'dumb')])
def test_no_color_and_dumb_terminals_get_no_control_characters(terminal, monkeypatch, name, value):
  monkeypatch.setenv(name, value)
  shown = Progress(100, stream=terminal)
  shown.update(10, {'loss': 2.5})
  shown.close()
  assert terminal.getvalue() == '10/100  loss 2.5\n'


def test_the_live_line_is_redrawn_in_place_and_messages_stay(terminal):
  shown = Progress(100, stream=terminal)
  shown.update(10, {'loss': 2.5})
  shown.message('[saved] step 10')
  shown.update(20, {'loss': 2.25})
  shown.close()
  output = terminal.getvalue()
  assert '\x1b[2K' in output
  assert output.count('[saved] step 10\n') == 1
  assert output.rindex('loss 2.25') > output.index('[saved]')
  assert output.endswith('\x1b[?25h')  # the cursor is visible


def test_drawing_is_throttled(terminal):
  ticks = iter(range(10_000))
  shown = Progress(1000, stream=terminal, clock=lambda: next(ticks) / 1000)
  for step in range(1000):
    shown.update(step, {})
  assert 5 <= terminal.getvalue().count('/1,000') <= 6


def test_an_update_is_cheap(terminal):
  shown = Progress(10**6, stream=terminal)
  times = []
  for step in range(2000):
    start = time.perf_counter()
    shown.update(step, {'loss': 1.0})
    times.append(time.perf_counter() - start)
  shown.close()
  assert sorted(times)[1000] < 50e-6


def test_a_live_line_never_wraps(terminal, monkeypatch):
  monkeypatch.setenv('COLUMNS', '40')
  shown = Progress(100, stream=terminal)
  shown.update(10, {f'metric_{i}': float(i) for i in range(20)})
  shown.close()
  assert 'metric_19' not in terminal.getvalue()
  assert '…' in terminal.getvalue()


def test_the_stream_is_stderr(capfd):
  shown = Progress(100)
  shown.update(10, {'loss': 2.5})
  shown.close()
  captured = capfd.readouterr()
  assert (captured.out, captured.err.strip()) == ('', '10/100  loss 2.5')


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(0, '0 s'), (59.4, '59 s'), (61, '1 min 1 s'), (3600, '1 h 0 min'), (90000, '1 d 1 h')],
)
def test_durations_have_two_units(seconds, text):
  assert progress.duration(seconds) == text


def test_si_has_three_digits_and_a_prefix():
  assert [progress.si(v) for v in (0.5, 999, 1234, 56_789_000, 2e9)] == [
    '0.5', '999', '1.23k', '56.8M', '2G',
  ]  # fmt: skip


@pytest.mark.skipif(not hasattr(os, 'openpty'), reason='needs a pseudo-terminal')
def test_a_real_terminal_is_recognized(monkeypatch):
  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.delenv('NO_COLOR', raising=False)
  primary, secondary = os.openpty()
  with os.fdopen(secondary, 'w') as stream:
    assert progress.is_terminal(stream)
  os.close(primary)


def test_excluded_seconds_do_not_change_the_remaining_time():
  stream = io.StringIO()
  progress = Progress(10, stream=stream, clock=_clock([0, 4, 24]))
  progress.update(1, {'loss': 1})
  progress.update(5, {'loss': 1})
  progress.exclude(16)
  progress.update(6, {'loss': 1})
  # 5 steps took 24 - 16 seconds, and 4 steps are left.
  assert '6 s left' in stream.getvalue().splitlines()[-1]
