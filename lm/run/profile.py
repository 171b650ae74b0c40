"""Tracing a few steps of a run with jax.profiler."""

import pathlib

import jax

from lm.run.step import TrainState


class Profile:
  """Traces `count` steps from step `first` on into a folder that TensorBoard and Perfetto open."""

  def __init__(self, folder: pathlib.Path, first: int, count: int):
    self._folder = folder
    self._first, self._last = first, first + count - 1
    self._running = False

  def before(self, step: int) -> None:
    if step == self._first <= self._last:
      jax.profiler.start_trace(self._folder)
      self._running = True

  def after(self, step: int, state: TrainState) -> None:
    if self._running and step >= self._last:
      jax.block_until_ready(state.step)
      jax.profiler.stop_trace()
      self._running = False
