"""The course of a run: its steps, and what is due between them."""

import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from lm.data import batches, remote
from lm.errors import Preempted, UserError
from lm.parallel import mesh as meshes
from lm.run import evidence, placement, processes, report, stopping, vanished
from lm.run.build import Functions
from lm.run.checkpoint import Checkpoints, badness, kept_steps
from lm.run.cli import NoStop, Stop
from lm.run.evaluators import Evaluators
from lm.run.logging import Events
from lm.run.profile import Profile
from lm.run.record import values_at
from lm.run.step import ZERO_GRADIENTS, StepFunction, TrainState
from lm.run.stopping import Stopping
from lm.run.watch import Finished, Watch


@dataclasses.dataclass
class Course:
  """A run from step to step; these are the parts that it needs."""

  config: ConfigDict
  workdir: pathlib.Path
  functions: Functions
  train_steps: StepFunction  # several in one dispatch
  transforms: Sequence[batches.Transform]
  evaluators: Evaluators
  checkpoints: Checkpoints
  events: Events
  watch: Watch
  seen: Stopping | None  # None where the run does not stop early
  higher_is_better: bool = False  # the direction of the metric that the run stops by
  unsaved: int | None = None  # the last step whose checkpoint failed

  def go(
    self,
    state: TrainState,
    rows: batches.AnyRows,
    stop: Stop | NoStop | processes.Stop,
    last: int,
    profile_steps: int,
  ) -> None:
    """Takes the steps from the state's up to `last`."""
    start = int(state.step)
    traced = profile_steps if processes.is_first() else 0
    profile = Profile(self.workdir / 'profile', start + 3, traced)
    stop.begin()
    try:
      self._steps(state, rows, stop, last, profile)
    finally:
      if note := profile.close():
        self.watch.progress.message(f'warning: {note}')

  def _steps(
    self,
    state: TrainState,
    rows: batches.AnyRows,
    stop: Stop | NoStop | processes.Stop,
    last: int,
    profile: Profile,
  ) -> None:
    start = int(state.step)
    if start:
      self._take_in(start, state)
    if start >= last or stopping.is_over(self.seen, self.config):
      self.watch.progress.message(f'{self.workdir} is at step {start} already; nothing to train')
      self._end(start)
      return
    sharding = meshes.batch_sharding(self.functions.mesh, self.functions.rules)
    # Metrics of a dispatch are read while the next one runs; its batches are kept until then.
    batch = None
    for steps, newer in self._batches(rows, sharding, start, last):
      first, step = steps.start == start, steps.stop
      profile.before(steps)
      state, metrics = self.train_steps(state, newer)
      zeros = metrics.pop(ZERO_GRADIENTS)
      self._check(self.watch.steps(steps, metrics), state, batch)
      batch = newer
      due, signal = self._due(step, last), stop.signal
      finished = self.watch.flush() if due or signal or first else None
      if first:
        self.watch.restart_clock(step)
        self.events.write('first_step', step=step)
      profile.after(steps, state)
      self._check(finished, state, batch)
      if steps.start == 0:
        vanished.check_gradients(state.params, zeros[0], self.config)
      if due or signal:
        with self.watch.excluded():
          self._milestone(step, state, evaluate=due and not signal)
      if signal:
        self.checkpoints.wait()
        self.events.write('preempted', step=step)
        where = remote.original(self.workdir) or self.workdir
        raise Preempted(f'{signal}: saved step {step} in {where}; run again to go on')
      if stopping.is_over(self.seen, self.config):
        last = step
        break
    self._finish(last)

  def _batches(self, rows: batches.AnyRows, sharding, start: int, last: int):
    """Yields the steps of each dispatch, as the range they go from and to, and their batches."""
    config = self.config
    select = placement.local_rows(config.batch_size, sharding)
    stacked = meshes.batch_sharding(self.functions.mesh, self.functions.rules, stacked=True)
    spans = self._spans(start, last)
    source = batches.train_batches(
      rows, self.transforms, config.batch_size, config.seed, spans, select
    )
    waiting = time.perf_counter()
    for steps, batch in source:
      on_mesh = placement.put_batch(batch, stacked)
      self.watch.data_seconds += time.perf_counter() - waiting
      yield steps, on_mesh
      waiting = time.perf_counter()

  def _spans(self, start: int, last: int) -> Iterator[range]:
    """Yields the steps of each dispatch; it ends where something else is due."""
    while start < last:
      rests = (n - start % n for n in (self.config.eval.every, self.config.checkpoint.every))
      stop = start + min(self.config.dispatch, last - start, *rests)
      yield range(start, stop)
      start = stop

  def _due(self, step: int, last: int) -> bool:
    every = (self.config.eval.every, self.config.checkpoint.every)
    return step == last or any(step % n == 0 for n in every)

  def _milestone(self, step: int, state: TrainState, evaluate: bool) -> None:
    # Saved first: an evaluation that fails must not cost the steps that led to it.
    self.watch.metrics.flush()
    start = time.perf_counter()
    seen = None if self.seen is None else self.seen._asdict()
    self._try_saving(lambda: self.checkpoints.save(step, state, seen), step)
    self._prune(step)
    self.events.write('save', step=step, seconds=time.perf_counter() - start)
    push_record(self.workdir)
    if evaluate and self._wanted(step):
      self._evaluate(step, state)

  def _evaluate(self, step: int, state: TrainState) -> None:
    start = time.perf_counter()
    values = self.evaluators.run(step, state.params, self.watch)
    self.watch.metrics.flush()
    self.events.write('eval', step=step, seconds=time.perf_counter() - start)
    if self.seen is not None:
      self.seen = stopping.see(self.seen, step, values, self.config, self.higher_is_better)
    write_report(self.workdir)
    push_record(self.workdir)

  def _wanted(self, step: int) -> bool:
    return step == self.config.steps or step % self.config.eval.every == 0

  def _take_in(self, step: int, state: TrainState) -> None:
    """Takes in the evaluation of a restored step, which came after its save."""
    values = processes.from_first(_evaluation(self.workdir, step))
    if not values and self._wanted(step):  # killed in between
      self._evaluate(step, state)
    elif self.seen is not None and self.seen.metric in values:
      self.seen = stopping.see(self.seen, step, values, self.config, self.higher_is_better)

  def _try_saving(self, act: Callable[[], None], step: int) -> None:
    # A full disk must not end a run: it is told, training goes on, the older checkpoint stays.
    try:
      act()
      self.unsaved = None
    except Exception as e:
      self.unsaved = step
      reason = ' '.join(f'{type(e).__name__}: {e}'.split())[:300]
      self.events.write('error', step=step, error=f'saving failed: {reason}')
      self.watch.progress.message(f'warning: saving failed, training goes on: {reason}')
      if not processes.is_first():
        print(f'warning: saving failed, training goes on: {reason}', file=sys.stderr)

  def _prune(self, unscored: int | None = None) -> None:
    """Deletes what is not to be kept; `unscored` is a step that is to be evaluated yet."""
    config = self.config.checkpoint
    scores = badness(self.workdir, config.best)
    kept = kept_steps(self.checkpoints.steps(), scores, config.keep, config.keep_best)
    self.checkpoints.prune(kept if unscored is None else kept | {unscored})

  def _check(self, finished: Finished | None, state: TrainState, batches: Any) -> None:
    """Stops the run at the first of some steps that ends a bad streak, or whose loss is 0.

    Args:
      finished: the steps of one dispatch.
      state: after these steps or later ones.
      batches: of these steps, stacked.
    """
    if finished is None:
      return
    for i, values in enumerate(finished.metrics):
      step = finished.steps.start + i + 1
      batch = functools.partial(jax.tree.map, lambda x, i=i: x[i], batches)
      vanished.check_loss(step, values, self.functions.objective, batch, self.config)
      if values['streak'] >= self.config.nonfinite_limit:
        self._stop_not_finite(step, values, state, batch())

  def _stop_not_finite(self, step: int, values, state: TrainState, batch) -> None:
    self.events.write('nonfinite', step=step)
    file = evidence.write(
      self.workdir, step, values, self.functions, self.config.seed, state, batch
    )
    raise FloatingPointError(
      f'{int(values["streak"])} steps in a row were not finite, up to step {step}; see {file}'
    )

  def _finish(self, last: int) -> None:
    self._try_saving(self.checkpoints.wait, last)
    self._prune()
    if self.unsaved is not None:
      raise RuntimeError(f'the checkpoint of step {self.unsaved} could not be saved')
    self._end(last)

  def _end(self, step: int) -> None:
    early = step < self.config.steps and stopping.is_over(self.seen, self.config)
    if early and self.seen is not None:
      self.watch.progress.message(stopping.line(self.seen, step))
      self.events.write('stopped_early', step=step, **self.seen._asdict())
    self.events.write('done', step=step)


def write_report(workdir: pathlib.Path) -> None:
  """Writes report.html; a full disk or a damaged record costs the report, not the run."""
  if jax.process_index() == 0:
    try:
      report.write(workdir)
    except (OSError, UserError) as e:
      print(f'warning: report.html was not written: {e}', file=sys.stderr)


def push_record(workdir: pathlib.Path) -> None:
  """Stores the record in its bucket, if it has one; a broken network costs that and not the run."""
  if processes.is_first():
    try:
      remote.push(workdir)
    except UserError as e:
      print(f'warning: the record is only in {workdir} for now: {e}', file=sys.stderr)


def _evaluation(workdir: pathlib.Path, step: int) -> dict[str, float]:
  """Returns what the record has of the evaluation of a step, by name; empty if there was none."""
  return {k: v for k, v in values_at(workdir, step).items() if k.startswith('eval/')}
