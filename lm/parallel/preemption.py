"""Preemption: whether a run was asked to stop, and by which signal."""

import signal
from typing import Protocol

from lm.errors import Preempted


class Stop(Protocol):
  """A source of stop requests. The trainer reads `signal` after every dispatch of steps."""

  @property
  def signal(self) -> str | None: ...

  def begin(self) -> None:
    """Is called once before the first step."""


class Never:
  """What a run asks that nobody stops, as in a notebook or a test."""

  signal = None

  def begin(self) -> None:
    pass


class Signals:
  """Whether the process was told to stop, from the moment this is made (SIGTERM or SIGINT).

  Before `begin`, when there is nothing to save yet, it stops at once.
  """

  def __init__(self) -> None:
    self.signal: str | None = None
    self._begun = False
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._handle)

  def _handle(self, number: int, frame) -> None:
    del frame
    if self.signal is not None:  # told twice: the user means it
      raise KeyboardInterrupt
    self.signal = signal.Signals(number).name
    if not self._begun:
      raise Preempted(f'{self.signal}: stopped before the first step; nothing was to be saved')

  def begin(self) -> None:
    """From here on the process itself looks at `signal` and stops where its state can be saved."""
    self._begun = True


class PreemptionService:
  """Whether the processes were told to stop: SIGTERM to any of them, by JAX's preemption service.

  It is asked once after every dispatch of steps, by all processes; all get the same answer.
  """

  def __init__(self) -> None:
    self._dispatches = 0

  def begin(self) -> None:
    pass

  @property
  def signal(self) -> str | None:
    from jax.experimental import multihost_utils

    # Dispatches and not steps: the service stops all at the largest count that it was told plus 1.
    self._dispatches += 1
    reached = multihost_utils.reached_preemption_sync_point(self._dispatches)
    return 'SIGTERM' if reached else None
