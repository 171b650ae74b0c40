"""Preemption: signals that ask a run to save its state and stop."""

import signal
from typing import Protocol

from lm.errors import Preempted


class Stop(Protocol):
  """A source of stop requests. The trainer reads `signal` after every dispatch of steps."""

  @property
  def signal(self) -> str | None:
    """The signal that asks for the stop, such as 'SIGTERM'; None without a request."""

  def begin(self) -> None:
    """Marks the first step; after it the trainer saves the state before it stops."""


class Never:
  """No stop requests, as in a notebook or a test."""

  signal = None

  def begin(self) -> None:
    pass


class Signals:
  """Stop requests by SIGTERM or SIGINT to this process.

  Before `begin` there is no state to save, and a signal raises Preempted immediately.
  """

  def __init__(self) -> None:
    self.signal: str | None = None
    self._begun = False
    for each in (signal.SIGTERM, signal.SIGINT):
      signal.signal(each, self._handle)

  def _handle(self, signum: int, frame) -> None:
    del frame
    if self.signal is not None:  # a second signal does not wait for the state to be saved
      raise KeyboardInterrupt
    self.signal = signal.Signals(signum).name
    if not self._begun:
      raise Preempted(f'{self.signal}: stopped before the first step, with no state to save')

  def begin(self) -> None:
    """Lets the trainer stop where it can save the state."""
    self._begun = True


class PreemptionService:
  """Stop requests by SIGTERM to any process of the run, from JAX's preemption service.

  All processes read `signal` after each dispatch of steps, and get the same value.
  """

  def __init__(self) -> None:
    self._dispatches = 0

  def begin(self) -> None:
    pass

  @property
  def signal(self) -> str | None:
    from jax.experimental import multihost_utils

    # The service stops at the largest reported count plus 1, hence dispatches and not steps.
    self._dispatches += 1
    reached = multihost_utils.reached_preemption_sync_point(self._dispatches)
    return 'SIGTERM' if reached else None
