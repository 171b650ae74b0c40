"""Reporting the steps of a run: each one while the next is being computed."""

import contextlib
import functools
import pathlib
import time
from collections.abc import Iterator, Mapping

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from lm.data import batches
from lm.run import hardware
from lm.run.logging import Metrics
from lm.run.progress import Progress
from lm.run.step import TrainState
from lm.types import Array


class Watch:
  """Numbers of a run, to metrics.jsonl and TensorBoard every `log.every` steps, and to stderr.

  Args:
    config: the whole configuration.
    workdir: the run's directory.
    state: where the run takes up.
    model: may say `flops_per_token(params, context)`, from which the utilisation is found.
    rows: the training data.
  """

  def __init__(
    self,
    config: ConfigDict,
    workdir: pathlib.Path,
    state: TrainState,
    model: nn.Module,
    rows: batches.AnyRows,
  ):
    start = int(state.step)
    self.workdir = workdir
    flops = getattr(model, 'flops_per_token', None)
    self.metrics = Metrics(workdir, start or None, jax.process_index() == 0)
    self.progress = Progress(config.steps, start)
    self._every = config.log.every
    # What is in the rows, not their size: padding is no work done.
    self._tokens_per_step = config.batch_size * rows.tokens / len(rows)
    self._flops_per_token = flops and flops(state.params, config.data.context)
    self._epoch = functools.partial(batches.epoch, rows, config.batch_size)
    self._pending: tuple[int, Mapping[str, Array]] | None = None
    self._since = (start, time.perf_counter())  # step and time of the last line
    self._excluded = 0.0  # seconds since then that were not training
    self.data_seconds = 0.0  # seconds since then that the loop waited for a batch

  def step(self, step: int, metrics: Mapping[str, Array]) -> Mapping[str, float] | None:
    """Takes the metrics of a step that was just started; reports and returns the one before."""
    finished = self.flush()
    self._pending = (step, metrics)
    return finished

  def flush(self) -> Mapping[str, float] | None:
    """Waits for the step that is under way, reports it and returns its metrics."""
    if self._pending is None:
      return None
    step, metrics = self._pending
    self._pending = None
    values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
    if step % self._every == 0:
      self._write(step, values)
    else:
      self.progress.update(step, {})
    return values

  @contextlib.contextmanager
  def excluded(self) -> Iterator[None]:
    """Leaves what happens inside out of the throughput."""
    start = time.perf_counter()
    try:
      yield
    finally:
      self._excluded += time.perf_counter() - start

  def restart_clock(self, step: int) -> None:
    """Measures throughput from the end of this step on: the first one holds the compilation."""
    self._since = (step, time.perf_counter())
    self._excluded = self.data_seconds = 0.0

  def close(self) -> None:
    self.metrics.close()
    self.progress.close()

  def _write(self, step: int, values: Mapping[str, float]) -> None:
    row = {f'train/{name}': value for name, value in values.items() if name != 'streak'}
    row['train/epoch'] = self._epoch(step)
    shown = {'loss': values['loss']} if 'loss' in values else {}
    steps = step - self._since[0]
    if steps > 0:
      now = time.perf_counter()
      seconds = max(1e-9, now - self._since[1] - self._excluded)
      shown['tokens/s'] = row['train/tokens_per_second'] = steps * self._tokens_per_step / seconds
      row['train/step_seconds'] = seconds / steps
      row['train/data_seconds'] = self.data_seconds / steps
      utilisation = self._utilisation(row['train/tokens_per_second'])
      if utilisation is not None:
        shown['MFU'] = row['train/mfu'] = utilisation
      self._since = (step, now)
      self._excluded = self.data_seconds = 0.0
    self.metrics.write(step, row)
    self.progress.update(step, shown)

  def _utilisation(self, tokens_per_second: float) -> float | None:
    if self._flops_per_token is None:
      return None
    rate = self._flops_per_token * tokens_per_second / jax.device_count()
    return hardware.mfu(rate, jax.devices()[0].device_kind)
