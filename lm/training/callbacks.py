"""Profiling, metric logging, and the callbacks of a config, in the training loop."""

import contextlib
import io
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from lm import components
from lm.config import resolve
from lm.data.packed_rows import Rows
from lm.errors import UserError, first_line
from lm.parallel import chips
from lm.progress import Progress
from lm.types import Array, Params, TrainState
from lm.workdir.metrics_writer import Metrics


class Callback(NamedTuple):
  """A function that runs after every `every` steps; all processes call it together."""

  every: int
  fn: Callable[[int, TrainState, Mapping[str, float]], None]
  name: str  # its key and path, for errors

  def __call__(self, step: int, state: TrainState, metrics: Mapping[str, float]) -> None:
    """Calls `fn` with the state after a step, and the metrics of that step.

    Raises:
      RuntimeError: the function failed; the message names it and the step.
    """
    try:
      self.fn(step, state, metrics)
    except Exception as e:
      raise RuntimeError(f'{self.name} failed at step {step}: {first_line(e)}') from e


def open_callbacks(paths: Sequence[str]) -> tuple[Callback, ...]:
  """Returns the callbacks of the config key `callbacks`.

  Raises:
    UserError: a path is wrong, or its function does not return (every, fn).
  """
  found = []
  for i, path in enumerate(paths):
    key = f'callbacks[{i}]'
    made = resolve.call(resolve.resolve(path, key), key)
    every, fn = made if isinstance(made, tuple) and len(made) == 2 else (0, None)
    if not isinstance(every, int) or every < 1 or not callable(fn):
      raise UserError(
        f'{key}={path!r} returns {made!r:.60}; it must name a function () -> (every, fn), where '
        'every is 1 or more and fn is called as fn(step, state, metrics)'
      )
    found.append(Callback(every, fn, f'{key}={path!r}'))
  return tuple(found)


class Profile:
  """Traces `count` steps, starting with step `first`, for TensorBoard and Perfetto."""

  def __init__(self, folder: pathlib.Path, first: int, count: int):
    self._folder = folder
    self._first, self._last = first, first + count - 1
    self._running = self._done = False

  @property
  def active(self) -> bool:
    """Whether steps are still to be traced."""
    return self._first <= self._last and not self._done

  def before(self, steps: range) -> None:
    """Starts the trace if the first traced step is among these steps."""
    if steps.start < self._first <= min(steps.stop, self._last):
      jax.profiler.start_trace(self._folder)
      self._running = True

  def after(self, steps: range, state: TrainState) -> None:
    if self._running and steps.stop >= self._last:
      jax.block_until_ready(state.step)
      self._stop()

  def close(self) -> str:
    """Ends a running trace; returns a warning if no requested step was traced."""
    if self._running:
      self._stop()
    if self._first <= self._last and not self._done:
      return f'--profile: no step was traced: the run ended before step {self._first}'
    return ''

  def _stop(self) -> None:
    jax.profiler.stop_trace()
    self._running, self._done = False, True


class _Nowhere(io.StringIO):
  """A stream that discards its text."""

  def write(self, text: str) -> int:
    return len(text)


class Finished(NamedTuple):
  """The finished steps of one dispatch."""

  steps: range  # range(a, b) stands for the steps a + 1 to b, counted from 1
  metrics: list[dict[str, float]]  # of each step


class MetricLogger:
  """Logs the metrics of a run to metrics.jsonl, TensorBoard and stderr every `log.every` steps.

  Args:
    config: of the run.
    workdir: the run's directory.
    start: the step that the run starts from.
    params: of the model; their shapes suffice.
    model: its `flops_per_token(params, context)`, if it has one, gives the utilization.
    rows: the training data.
  """

  def __init__(
    self,
    config: ConfigDict,
    workdir: pathlib.Path,
    start: int,
    params: Params,
    model: nn.Module,
    rows: Rows,
  ):
    self.workdir = workdir
    self.metrics = Metrics(workdir, start or None, jax.process_index() == 0)
    self.progress = Progress(config.steps, start, None if jax.process_index() == 0 else _Nowhere())
    self._every = config.log.every
    # Tokens without padding.
    self._tokens_per_step = config.batch_size * rows.tokens_per_row()
    self._flops_per_token = components.flops_per_token(config, model, params)
    self._peak_flops = chips.peak_flops(jax.devices()[0].device_kind)
    self._epochs = lambda step: rows.epochs(step * config.batch_size)
    self._pending: tuple[range, Mapping[str, Array]] | None = None
    # Step and time of the last line; None until the first steps, which compile, have ended.
    self._since: tuple[int, float] | None = None
    self._excluded = 0.0  # seconds since then outside training
    self.data_seconds = 0.0  # seconds since then that the loop waited for a batch

  def steps(self, steps: range, metrics: Mapping[str, Array]) -> Finished | None:
    """Stores the metrics of steps that were just started; flushes the steps before them."""
    finished = self.flush()
    self._pending = (steps, metrics)
    return finished

  def flush(self) -> Finished | None:
    """Waits for the pending steps, logs them and returns their metrics."""
    if self._pending is None:
      return None
    steps, metrics = self._pending
    self._pending = None
    stacked = jax.device_get(dict(metrics))
    at = [{name: float(x[i]) for name, x in stacked.items()} for i in range(len(steps))]
    logged = [step for step in range(steps.start + 1, steps.stop + 1) if step % self._every == 0]
    for step in logged:
      # The time is known for all steps of a dispatch together.
      self._write(step, at[step - steps.start - 1], steps.stop if step == logged[-1] else None)
    if not logged:
      self.progress.update(steps.stop, {})
    return Finished(steps, at)

  @contextlib.contextmanager
  def excluded(self) -> Iterator[None]:
    """Excludes the time of the block from throughput and remaining time."""
    start = time.perf_counter()
    try:
      yield
    finally:
      seconds = time.perf_counter() - start
      self._excluded += seconds
      self.progress.exclude(seconds)

  def restart_clock(self, step: int) -> None:
    """Measures throughput from the end of this step: the first step includes compilation."""
    self._since = (step, time.perf_counter())
    self._excluded = self.data_seconds = 0.0

  def close(self) -> None:
    self.metrics.close()
    self.progress.close()

  def _write(self, step: int, values: Mapping[str, float], reached: int | None) -> None:
    values = {name: value for name, value in values.items() if name != 'streak'}
    row = {f'train/{name}': value for name, value in (values | self._epochs(step)).items()}
    shown = {'loss': values['loss']} if 'loss' in values else {}
    if reached is not None and self._since is not None:
      now, steps = time.perf_counter(), reached - self._since[0]
      seconds = max(1e-9, now - self._since[1] - self._excluded)
      shown['tokens/s'] = row['train/tokens_per_second'] = steps * self._tokens_per_step / seconds
      row['train/step_seconds'] = seconds / steps
      row['train/data_seconds'] = self.data_seconds / steps
      utilization = self._utilization(row['train/tokens_per_second'])
      if utilization is not None:
        shown['MFU'] = row['train/mfu'] = utilization
      self._since = (reached, now)
      self._excluded = self.data_seconds = 0.0
    self.metrics.write(step, row)
    self.progress.update(step, shown)

  def _utilization(self, tokens_per_second: float) -> float | None:
    if self._flops_per_token is None or self._peak_flops is None:
      return None
    return self._flops_per_token * tokens_per_second / jax.device_count() / self._peak_flops
