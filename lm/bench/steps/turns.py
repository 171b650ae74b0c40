"""Codes that take turns on one machine, so that what slows it down slows all of them.

Each has a process of its own: peak memory is then its own, and a thread pool that is not at work
sleeps. A round asks each for matrix products and for steps; ratios are within a round.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from lm.bench.steps.shape import Shape
from lm.bench.steps.worker import request_build
from lm.errors import UserError
from lm.parallel.host import LARGE_PAGES

TURN_SECONDS = 0.5  # at least this long, so that the clock and the start of a turn do not count


class Code:
  """The process of one code, asked by `code({request}) -> {answer}`."""

  def __init__(self, name: str, threads: int) -> None:
    self.name = name
    self._errors = tempfile.TemporaryFile('w+')  # noqa: SIM115 (closed by `close`)
    # Two processes share a GPU, and jax would take most of its memory at the start. All get their
    # memory as our training does.
    environment = LARGE_PAGES | os.environ | {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
    self._process = subprocess.Popen(
      [sys.executable, '-m', 'lm.bench.steps.worker', name, str(threads)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      env=environment,
      text=True,
    )

  def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
    """Sends a request and waits for the answer.

    Raises:
      UserError: the code cannot do it for a reason that is the user's to mend.
      RuntimeError: it failed; the message has its trace.
    """
    assert self._process.stdin is not None and self._process.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # it has died: there will be no answer
      self._process.stdin.write(json.dumps(request) + '\n')
      self._process.stdin.flush()
    line = self._process.stdout.readline()
    if not line:
      self._errors.seek(0)
      raise RuntimeError(f'{self.name} has ended:\n{self._errors.read()[-4000:]}')
    answer = json.loads(line)
    if 'error' not in answer:
      return answer
    raise UserError(answer['error']) if answer['user'] else RuntimeError(answer['error'])

  def close(self) -> None:
    """Ends the process."""
    assert self._process.stdin is not None and self._process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    self._process.stdout.close()
    self._process.wait()
    self._errors.close()


@contextlib.contextmanager
def started(names: list[str], threads: int) -> Iterator[list[Code]]:
  """Starts the codes of these names, and ends them when the block is left."""
  with contextlib.ExitStack() as stack:
    codes = []
    for name in names:
      code = Code(name, threads)
      stack.callback(code.close)
      codes.append(code)
    yield codes


def measure(names: list[str], shape: Shape, rounds: int, threads: int) -> dict[str, dict[str, Any]]:
  """Returns for each code what it told of itself, and lists with one value a round.

  These are `steps` and `products`, in seconds, and `disturbance`: the share of the machine's
  processors that other programs used while it took its steps (nothing where that is not known).

  Raises:
    UserError: a code is not installed or cannot run the shape.
  """
  with started(names, threads) as codes:
    # Ours last: who lacks the peer learns of it before our compilation.
    told = {code.name: code(request_build(shape)) for code in reversed(codes)}
    results = {name: told[name] for name in names}
    times = {code.name: {kind: _turn(code, kind) for kind in ('product', 'step')} for code in codes}
    for result in results.values():
      result |= {'steps': [], 'products': [], 'disturbance': []}
    for i in range(rounds):
      # Who goes first changes, so that a machine that slows down or cools off favours nobody.
      for code in codes if i % 2 == 0 else reversed(codes):
        result = results[code.name]
        for kind in ('product', 'step'):
          before = _machine_seconds()
          answer = code({kind: times[code.name][kind]})
          after = _machine_seconds()
          result[f'{kind}s'].append(answer['seconds'])
        result['peak_bytes'] = answer['peak_bytes']
        if before and after:
          busy, all_seconds = after[0] - before[0], after[1] - before[1]
          result['disturbance'].append(max(0.0, busy - answer['cpu_seconds']) / all_seconds)
  return results


def _machine_seconds() -> tuple[float, float] | None:
  """Returns the seconds that all processors have worked, and those that have gone by on them."""
  file = pathlib.Path('/proc/stat')
  if not file.is_file():
    return None
  # user nice system idle iowait irq softirq steal (proc(5)); guests are counted in user already
  ticks = [int(word) for word in file.read_text().split('\n', 1)[0].split()[1:9]]
  second = os.sysconf('SC_CLK_TCK')
  return (sum(ticks) - ticks[3] - ticks[4]) / second, sum(ticks) / second


def _turn(code: Code, kind: str) -> int:
  code({kind: 1})
  return max(1, round(TURN_SECONDS / code({kind: 1})['seconds']))
