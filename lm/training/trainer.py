"""The course of a run: its steps, and what is due between them."""

import contextlib
import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lm import components
from lm.components import Components
from lm.config import validate
from lm.config.base import sizes
from lm.data import batches, cache, prepare, remote
from lm.errors import Preempted, UserError
from lm.evaluation import host_memory
from lm.evaluation.evaluators import Evaluators
from lm.parallel import host, mesh, multihost
from lm.parallel import mesh as meshes
from lm.parallel.preemption import Stop
from lm.report import page
from lm.text.tokenizers import vocabulary_size
from lm.training import diagnostics, early_stopping, schedule_jump, warm_start
from lm.training.callbacks import Finished, MetricLogger, Profile
from lm.training.early_stopping import Stopping
from lm.training.train_step import (
  ZERO_GRADIENTS,
  StepFunction,
  abstract_state,
  check_step,
  make_train_steps,
)
from lm.types import TrainState
from lm.workdir import environment, experiment, files, run_data, sources
from lm.workdir.checkpoints import (
  Checkpoints,
  badness,
  holds_checkpoints,
  kept_steps,
  restore_newest,
)
from lm.workdir.metrics_writer import EventLog
from lm.workdir.run_data import values_at


@dataclasses.dataclass
class Course:
  """A run from step to step; these are the parts that it needs."""

  config: ConfigDict
  workdir: pathlib.Path
  functions: Components
  train_steps: StepFunction  # several in one dispatch
  transforms: Sequence[batches.Transform]
  evaluators: Evaluators
  checkpoints: Checkpoints
  events: EventLog
  watch: MetricLogger
  seen: Stopping | None  # None where the run does not stop early
  higher_is_better: bool = False  # the direction of the metric that the run stops by
  unsaved: int | None = None  # the last step whose checkpoint failed

  def go(
    self,
    state: TrainState,
    rows: batches.AnyRows,
    stop: Stop,
    last: int,
    profile_steps: int,
  ) -> None:
    """Takes the steps from the state's up to `last`."""
    start = int(state.step)
    traced = profile_steps if multihost.is_primary() else 0
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
    stop: Stop,
    last: int,
    profile: Profile,
  ) -> None:
    start = int(state.step)
    if start:
      self._take_in(start, state)
    if start >= last or early_stopping.should_stop(self.seen, self.config):
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
        diagnostics.check_gradients(state.params, zeros[0], self.config)
      if due or signal:
        with self.watch.excluded():
          self._milestone(step, state, evaluate=due and not signal)
      if signal:
        self.checkpoints.wait()
        self.events.write('preempted', step=step)
        where = remote.original(self.workdir) or self.workdir
        raise Preempted(f'{signal}: saved step {step} in {where}; run again to go on')
      if early_stopping.should_stop(self.seen, self.config):
        last = step
        break
    self._finish(last)

  def _batches(self, rows: batches.AnyRows, sharding, start: int, last: int):
    """Yields the steps of each dispatch, as the range they go from and to, and their batches."""
    config = self.config
    select = mesh.local_rows(config.batch_size, sharding)
    stacked = meshes.batch_sharding(self.functions.mesh, self.functions.rules, stacked=True)
    spans = self._spans(start, last)
    source = batches.train_batches(
      rows, self.transforms, config.batch_size, config.seed, spans, select
    )
    waiting = time.perf_counter()
    for steps, batch in source:
      on_mesh = mesh.make_global_batch(batch, stacked)
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
    values = self.evaluators.run(
      step, state.params, self.workdir, self.watch.metrics, self.watch.progress
    )
    self.watch.metrics.flush()
    self.events.write('eval', step=step, seconds=time.perf_counter() - start)
    if self.seen is not None:
      self.seen = early_stopping.update(self.seen, step, values, self.config, self.higher_is_better)
    write_report(self.workdir)
    push_record(self.workdir)

  def _wanted(self, step: int) -> bool:
    return step == self.config.steps or step % self.config.eval.every == 0

  def _take_in(self, step: int, state: TrainState) -> None:
    """Takes in the evaluation of a restored step, which came after its save."""
    values = multihost.broadcast_from_primary(_evaluation(self.workdir, step))
    if not values and self._wanted(step):  # killed in between
      self._evaluate(step, state)
    elif self.seen is not None and self.seen.metric in values:
      self.seen = early_stopping.update(self.seen, step, values, self.config, self.higher_is_better)

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
      if not multihost.is_primary():
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
      diagnostics.check_loss(step, values, self.functions.objective, batch, self.config)
      if values['streak'] >= self.config.nonfinite_limit:
        self._stop_not_finite(step, values, state, batch())

  def _stop_not_finite(self, step: int, values, state: TrainState, batch) -> None:
    self.events.write('nonfinite', step=step)
    file = diagnostics.write(
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
    early = step < self.config.steps and early_stopping.should_stop(self.seen, self.config)
    if early and self.seen is not None:
      self.watch.progress.message(early_stopping.line(self.seen, step))
      self.events.write('stopped_early', step=step, **self.seen._asdict())
    self.events.write('done', step=step)


def write_report(workdir: pathlib.Path) -> None:
  """Writes report.html; a full disk or a damaged record costs the report, not the run."""
  if jax.process_index() == 0:
    try:
      page.write_report(workdir)
    except (OSError, UserError) as e:
      print(f'warning: report.html was not written: {e}', file=sys.stderr)


def push_record(workdir: pathlib.Path) -> None:
  """Stores the record in its bucket, if it has one; a broken network costs that and not the run."""
  if multihost.is_primary():
    try:
      remote.push(workdir)
    except UserError as e:
      print(f'warning: the record is only in {workdir} for now: {e}', file=sys.stderr)


def _evaluation(workdir: pathlib.Path, step: int) -> dict[str, float]:
  """Returns what the record has of the evaluation of a step, by name; empty if there was none."""
  return {k: v for k, v in values_at(workdir, step).items() if k.startswith('eval/')}


def train(
  config: ConfigDict,
  path_and_arg: str,
  workdir: pathlib.Path,
  stop: Stop,
  stop_at: int | None = None,
  profile_steps: int = 0,
  new_data: bool = False,
) -> None:
  """Trains until `config.steps`, or takes up where the workdir stands.

  Args:
    config: the whole configuration.
    path_and_arg: the file it came from, kept in the workdir with its neighbours.
    workdir: the record of the run.
    stop: asked after every step.
    stop_at: ends the run at this step without touching the schedules.
    profile_steps: how many steps to trace into workdir/profile, from the third one on.
    new_data: whether a run that is resumed goes on with other training data than before, in the
      tokens of its own tokenizer.

  Raises:
    UserError: something in the config, the data or the workdir is wrong.
    Preempted: the process was told to stop, and the state is saved.
    FloatingPointError: too many steps in a row were not finite.
    RuntimeError: the last checkpoint could not be saved.
  """
  early_stopping.check(config)
  validate.validate_config(config)
  diagnostics.check_pattern(config)
  warm_start.check(config.init)
  host.enable_compilation_cache(cache.directory(config.data.cache))
  show = prepare.show_progress if multihost.is_primary() else None
  if new_data and (workdir / 'tokenizer.json').is_file():
    tokenizer = experiment.open_tokenizer(workdir)
  else:
    tokenizer = prepare.tokenizer(config.data, show)
  functions = components.build_components(config, vocabulary_size(tokenizer))
  rows = prepare.rows(config.data, config.data.train, tokenizer, config.seed, show)
  functions = components.pass_word_counts(functions, config, rows, tokenizer)
  transforms = batches.open_transforms(config.data.transforms, tokenizer, rows)
  host_memory.check_batches(config, functions, rows, transforms)
  diagnostics.check_targets(rows, transforms, config)
  evaluators = Evaluators(config, functions, tokenizer)
  multihost.wait_until_data_ready()
  same = experiment.digest(config, tokenizer, rows.content)
  multihost.check_same('the config, the tokenizer or the data', same)
  if multihost.is_multiprocess():
    multihost.check_same_code(sources.digests(pathlib.Path(path_and_arg.partition(':')[0])))
  # Before anything is written: whatever is wrong with a function of the config, an axis that does
  # not divide over the mesh, and a run to begin from that does not fit.
  abstract, _ = abstract_state(functions)
  directions = evaluators.directions(abstract.params)
  early_stopping.check_monitored(config, directions)
  train_steps = make_train_steps(functions, config.seed, config.microbatches, abstract)
  row = batches.batch_at(rows, transforms, 1, config.seed, 0)

  def trace(batch_size: int) -> Any:
    return check_step(train_steps, functions, abstract, _first_batch(config, row, batch_size))

  trace(config.batch_size)
  host_memory.check_program(trace, config, functions, abstract, rows, transforms)
  programs = evaluators.programs(abstract.params)
  host_memory.check_evaluations(programs, functions, abstract.params, abstract)
  state, taken = None, None
  # A resume has no state before that of the checkpoint: two would need twice the memory.
  if not multihost.broadcast_from_primary(holds_checkpoints(workdir)):
    state, taken = warm_start.initial_state(config, functions, tokenizer, abstract)
  older = schedule_jump.length_of(workdir)  # before the config of this start takes its place
  alone = files.lock_workdir(workdir) if multihost.is_primary() else contextlib.nullcontext()
  with alone:
    with files.writing(workdir):
      warnings: list[str] = []
      if multihost.is_primary():
        warnings = experiment.write_run_config(
          config, path_and_arg, tokenizer, workdir, rows.content, new_data
        )
      _wait_for_record(workdir)
      events = EventLog(workdir, multihost.is_primary())
      events.write(
        'start', experiment=pathlib.Path(path_and_arg).name.replace('.py', ''), steps=config.steps
      )
      environment.write(workdir, path_and_arg.partition(':')[0])
      if taken is not None:
        events.write('init', **taken.fields())
      if multihost.is_primary():
        run_data.write_directions(workdir, directions)
      checkpoints = Checkpoints(workdir)
      state, saved = restore_newest(checkpoints, abstract, events) or (state, None)
      assert state is not None
      watch = MetricLogger(config, workdir, state, functions.model, rows)
    notes = {'data.train': getattr(rows, 'note', '')} | evaluators.notes
    for which, note in notes.items():
      if note:
        events.write('too_long', set=which, note=note)
        watch.progress.message(f'{which}: {note}')
    updates = int(state.step) - int(state.skipped)
    rates = schedule_jump.jump(config, functions.optimizer, older, updates)
    if rates is not None:
      events.write('schedule', step=int(state.step), **rates)
      warnings.append(schedule_jump.line(rates, older, config.optim.steps))
    watch.progress.message(f'model: {sizes(config.model)}')
    if line := evaluators.transforms_line():
      watch.progress.message(line)
    for warning in warnings:
      watch.progress.message(f'warning: {warning}')
    if taken is not None:
      watch.progress.message(taken.line())
    seen = early_stopping.restore(config, saved)
    run = Course(
      config,
      workdir,
      functions,
      train_steps,
      transforms,
      evaluators,
      checkpoints,
      events,
      watch,
      seen,
      bool(seen is not None and directions[seen.metric]),
    )
    try:
      run.go(state, rows, stop, min(stop_at or config.steps, config.steps), profile_steps)
    except Exception as e:
      if not isinstance(e, Preempted):
        events.write('error', error=f'{type(e).__name__}: {e}'[:500])
        # The others may be anywhere: to wait for them as closing does would be for ever.
        checkpoints.abandoned = multihost.is_multiprocess()
      raise
    finally:
      watch.close()
      events.close()
      checkpoints.close()
      write_report(workdir)
      push_record(workdir)


def _first_batch(
  config: ConfigDict, row: Mapping[str, np.ndarray], batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of the batches of one dispatch, of rows like this one."""
  shape = (min(config.dispatch, config.steps), batch_size)
  return {k: jax.ShapeDtypeStruct((*shape, *x.shape[1:]), x.dtype) for k, x in row.items()}


def _wait_for_record(workdir: pathlib.Path) -> None:
  """Waits until process 0 has made the workdir, which all must see."""
  if multihost.is_primary():
    remote.push(workdir)
  multihost.barrier('record', 600, 'for process 0 to make the workdir')
  if not multihost.is_primary():
    remote.fetch(workdir)
  if not (workdir / 'config.json').is_file():
    raise UserError(
      f'--workdir={workdir}: process {multihost.process_index_and_count()[0]} does not see what '
      'process 0 has written there; several hosts need a workdir on a file system that they share'
    )
