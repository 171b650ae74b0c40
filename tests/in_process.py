"""Runs a program of `lm` as its command would, inside the process of the tests.

A process of its own costs three seconds of imports. A test takes one only where the process is
its subject: an exit code seen by a shell, a signal, a device count, a closed pipe.
"""

import contextlib
import copy
import io
import os
import runpy
import signal
import sys
from typing import NamedTuple
from unittest import mock

from absl import flags

import lm.parallel.multihost  # noqa: F401  it defines its flags when a program asks, not when imported

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Each program defines its flags when it is executed, some by the same names.
_TABLES = ('__flags', '__flags_by_module', '__flags_by_module_id', '__key_flags_by_module')


class Result(NamedTuple):
  """The outcome of a program, as `subprocess.run(..., text=True)` gives it."""

  returncode: int
  stdout: str
  stderr: str


def run(program: str, *arguments, text: str | bytes = '') -> Result:
  """Returns the outcome of `python -m lm.PROGRAM ARGUMENTS < text`."""
  streams = {name: io.TextIOWrapper(io.BytesIO(), 'utf-8') for name in ('stdout', 'stderr')}
  data = text.encode() if isinstance(text, str) else text
  handlers = {number: signal.getsignal(number) for number in SIGNALS}
  # A program that trains would otherwise replace this process by one with large pages.
  environment = mock.patch.dict(os.environ, {'GLIBC_TUNABLES': ''})
  # runpy puts the path of the module in the place of the first argument.
  argv = mock.patch.object(sys, 'argv', ['', *map(str, arguments)])
  stdin = mock.patch.object(sys, 'stdin', io.TextIOWrapper(io.BytesIO(data), 'utf-8'))
  try:
    stdout = contextlib.redirect_stdout(streams['stdout'])
    stderr = contextlib.redirect_stderr(streams['stderr'])
    with environment, argv, stdin, stdout, stderr, _fresh_flags():
      runpy.run_module(f'lm.{program}', run_name='__main__', alter_sys=True)
      code = 0
  except SystemExit as e:
    code = e.code
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)
  texts = {}
  for stream, wrapper in streams.items():
    wrapper.flush()
    texts[stream] = wrapper.buffer.getvalue().decode()
  return Result(code, **texts)


def mistake(program: str, *arguments, text: str | bytes = '') -> str:
  """Returns the one line that a program says of a mistake of its user: exit code 2, no output."""
  result = run(program, *arguments, text=text)
  assert (result.returncode, result.stdout) == (2, ''), result
  (line,) = result.stderr.splitlines()
  return line


@contextlib.contextmanager
def _fresh_flags():
  """Gives a program the flags of absl alone, and puts back what was there."""
  held = flags.FLAGS.__dict__
  before = {name: held[name] for name in _TABLES}
  values = {name: (flag.value, flag.present) for name, flag in before['__flags'].items()}
  for name in _TABLES:
    held[name] = copy.copy(before[name])
  parsed, held['__flags_parsed'] = held['__flags_parsed'], False
  try:
    yield
  finally:
    held.update(before, __flags_parsed=parsed)
    for name, (value, present) in values.items():
      flag = before['__flags'][name]
      flag._value, flag.present = value, present
