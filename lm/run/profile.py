"""Tracing a few steps of a run with jax.profiler."""

import pathlib

import jax

from lm.run.step import TrainState


class Profile:
  """Traces `count` steps from step `first` on into a folder that TensorBoard and Perfetto open."""

  def __init__(self, folder: pathlib.Path, first: int, count: int):
    self._folder = folder
    self._first, self._last = first, first + count - 1
    self._running = self._done = False

  def before(self, steps: range) -> None:
    """Begins where one of the steps from `steps.start` to `steps.stop` is the first one."""
    if steps.start < self._first <= min(steps.stop, self._last):
      jax.profiler.start_trace(self._folder)
      self._running = True

  def after(self, steps: range, state: TrainState) -> None:
    if self._running and steps.stop >= self._last:
      jax.block_until_ready(state.step)
      self._stop()

  def close(self) -> str:
    """Ends a trace that is under way; returns what to tell of one that was asked for in vain."""
    if self._running:
      self._stop()
    if self._first <= self._last and not self._done:
      return f'--profile: no step was traced: the run ended before step {self._first}'
    return ''

  def _stop(self) -> None:
    jax.profiler.stop_trace()
    self._running, self._done = False, True
