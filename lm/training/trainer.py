"""The training loop: `train` builds and checks everything, `Trainer` runs the steps."""

import contextlib
import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tokenizers import Tokenizer

from lm import components
from lm.components import Components
from lm.config import resolve, validate
from lm.config.base import sizes
from lm.data import batches, cache, pipeline, remote
from lm.errors import Preempted, UserError
from lm.evaluation import host_memory
from lm.evaluation.evaluators import Evaluators
from lm.parallel import host, multihost
from lm.parallel import mesh as meshes
from lm.parallel.host import Stop
from lm.progress import Report, show_documents, silent
from lm.text.tokenizers import vocabulary_size
from lm.training import diagnostics, early_stopping, warm_start
from lm.training.callbacks import Callback, Finished, MetricLogger, Profile, open_callbacks
from lm.training.early_stopping import Stopping
from lm.training.train_step import (
  ZERO_GRADIENTS,
  StepFunction,
  abstract_params,
  abstract_state,
  check_step,
  evaluated,
  make_train_steps,
)
from lm.types import Params, TrainState
from lm.workdir import experiment, files, run_data, sources
from lm.workdir.checkpoints import Checkpoints, has_checkpoints, kept_steps, restore_newest
from lm.workdir.metrics_writer import EventLog
from lm.workdir.run_data import losses_by_step, metrics_at

# Chooses the checkpoints of further models, where a config has `models` or `view`.
PINNED = 'lm.training.named_trees:pinned'


class Setup(NamedTuple):
  """The data and the functions of a training run.

  Attributes:
    tokenizer: of the run.
    rows: of the training split.
    transforms: of data.transforms.
    row: one row, transformed.
    components: with an objective that knows the corpus; `row` initializes the parameters.
  """

  tokenizer: Tokenizer
  rows: batches.Rows
  transforms: tuple[batches.Transform, ...]
  row: dict[str, np.ndarray]
  components: Components


def set_up(
  config: ConfigDict,
  tokenizer: Tokenizer | None = None,
  report: Report = silent,
  devices: Sequence[jax.Device] | None = None,
) -> Setup:
  """Prepares the data of a config, and builds its functions.

  Args:
    config: of the experiment.
    tokenizer: None for that of the config.
    report: receives the count of documents read.
    devices: of the mesh; None for all.

  Raises:
    UserError: something in the config or the data is wrong.
  """
  tokenizer = tokenizer or pipeline.tokenizer(config.data, report)
  built = components.build_components(config, vocabulary_size(tokenizer), devices)
  rows = pipeline.packed_rows(config.data, config.data.train_split, tokenizer, config.seed, report)
  built = components.pass_corpus(built, config, rows, tokenizer)
  transforms = batches.open_transforms(config.data.transforms, tokenizer, rows)
  first = batches.batch_at(rows, transforms, 1, config.seed, 0)
  row = {name: x[0] for name, x in first.items()}
  built = components.with_row(built, config, components.abstract_row(row))
  return Setup(tokenizer, rows, transforms, row, built)


def train(
  config: ConfigDict,
  path_and_arg: str,
  workdir: pathlib.Path,
  stop: Stop,
  until_step: int | None = None,
  profile_steps: int = 0,
  new_data: bool = False,
) -> None:
  """Trains until `config.steps`, from the newest checkpoint of the workdir if there is one.

  Everything that can be wrong is checked before anything is written.

  Args:
    config: of the experiment.
    path_and_arg: FILE.py[:ARG] of the config; the file and its modules are copied to the workdir.
    workdir: directory of the run.
    stop: reports a stop signal, such as SIGTERM; it is checked after every dispatch of steps.
    until_step: ends the run at this step, without an effect on schedules.
    profile_steps: how many steps to trace into workdir/profile, from the third one on.
    new_data: whether a resumed run may change its training data; it keeps its tokenizer.

  Raises:
    UserError: something in the config, the data or the workdir is wrong.
    Preempted: `stop` has a signal, and the state is saved.
    FloatingPointError: too many steps in a row were not finite.
    RuntimeError: the last checkpoint could not be saved.
  """
  validate.validate_config(config)
  digests_of_frozen: dict[str, str] = {}
  if config.models or config.view:
    config, digests_of_frozen = resolve.resolve(PINNED, 'models')(config, workdir)
  diagnostics.check_pattern(config)
  if config.report:
    resolve.resolve(config.report, 'report')
  callbacks = open_callbacks(config.callbacks)
  warm_start.check(config.warm_start)
  host.enable_compilation_cache(cache.directory(config.data.cache))
  show = show_documents if multihost.is_primary() else silent
  kept = new_data and (workdir / 'tokenizer.json').is_file()
  tokenizer = experiment.read_tokenizer(workdir) if kept else None
  tokenizer, rows, transforms, row, built = set_up(config, tokenizer, show)
  host_memory.check_batches(config, built, rows, transforms)
  diagnostics.check_targets(rows, transforms, config)
  evaluators = Evaluators(config, built, tokenizer)
  if multihost.is_multiprocess():
    # Each host with a cache of its own prepares the data, which may take hours.
    multihost.barrier(12 * 3600, 'to prepare the data')
    digests = sources.digests(pathlib.Path(path_and_arg.partition(':')[0]))
    digests['the config, tokenizer or data'] = experiment.run_digest(
      config, tokenizer, rows.content
    )
    multihost.check_same(digests)
  abstract, _ = abstract_state(built)
  evaluated_params = evaluated(built)
  params = abstract.params if evaluated_params is None else abstract_params(built)
  directions = evaluators.directions(params)
  early_stopping.check_monitored(config, directions)
  train_steps = make_train_steps(built, config.seed, config.microbatches, abstract)

  def trace(batch_size: int) -> Any:
    return check_step(train_steps, built, abstract, _first_batch(config, row, batch_size))

  trace(config.batch_size)
  host_memory.check_program(trace, config, built, abstract, rows, transforms)
  programs = evaluators.programs(params)
  host_memory.check_evaluations(programs, built, params, abstract)
  state, started_from = None, None
  # A resumed run initializes no state: memory would hold it and the restored one.
  if not multihost.broadcast_from_primary(has_checkpoints(workdir)):
    state, started_from = warm_start.initial_state(config, built, tokenizer, abstract)
  frozen: Params = {} if state is None else state.frozen
  if state is None and abstract.frozen:
    frozen = warm_start.frozen_trees(config, built, tokenizer, abstract)
  old_length = diagnostics.schedule_length(workdir)  # before this config replaces the older one
  lock = files.lock_workdir(workdir) if multihost.is_primary() else contextlib.nullcontext()
  with lock:
    with files.one_line_errors(workdir):
      warnings: list[str] = []
      if multihost.is_primary():
        shapes = components.abstract_row(row)
        warnings = experiment.write_run_config(
          config, path_and_arg, tokenizer, workdir, rows.content, new_data, shapes
        )
        experiment.write_frozen(workdir, digests_of_frozen)
      _wait_for_workdir(workdir)
      events = EventLog(workdir, multihost.is_primary())
      events.write('start', experiment=experiment.name_of(path_and_arg), steps=config.steps)
      if started_from is not None:
        events.write('warm_start', **started_from.fields())
      if multihost.is_primary():
        experiment.write_environment(workdir, pathlib.Path(path_and_arg.partition(':')[0]))
        run_data.write_directions(workdir, directions)
      checkpoints = Checkpoints(workdir)
      state, saved = restore_newest(checkpoints, abstract, events) or (state, None)
      assert state is not None
      state = state.replace(frozen=frozen)
      logger = MetricLogger(config, workdir, int(state.step), params, built.model, rows)
    notes = {'data.train_split': rows.note} | evaluators.notes
    for subject, note in notes.items():
      if note:
        events.write('note', subject=subject, note=note)
        logger.progress.message(f'{subject}: {note}')
    updates = int(state.step) - int(state.skipped)
    rates = diagnostics.schedule_jump(config, built.optimizer, old_length, updates)
    if rates is not None:
      events.write('schedule', step=int(state.step), **rates)
      warnings.append(diagnostics.schedule_jump_line(rates, old_length, config.optim.decay_steps))
    warnings += [] if started_from is None else started_from.differences
    lines = [f'model: {sizes(config.model)}', *(f'warning: {warning}' for warning in warnings)]
    lines += [] if started_from is None else [started_from.line()]
    for line in lines:
      logger.progress.message(line)
    stopping = early_stopping.restore(config, saved)
    trainer = Trainer(
      config,
      workdir,
      built,
      train_steps,
      transforms,
      evaluators,
      checkpoints,
      events,
      logger,
      stopping,
      bool(stopping is not None and directions[stopping.metric]),
      evaluated_params,
      callbacks,
    )
    try:
      trainer.fit(state, rows, stop, min(until_step or config.steps, config.steps), profile_steps)
    except Exception as e:
      if not isinstance(e, Preempted):
        events.write('error', error=f'{type(e).__name__}: {e}'[:500])
        # Closing waits for the other processes, which may never reach it.
        checkpoints.abandoned = multihost.is_multiprocess()
      raise
    finally:
      logger.close()
      events.close()
      checkpoints.close()
      write_report(config, workdir)
      push_workdir(workdir)


@dataclasses.dataclass
class Trainer:
  """The training loop: runs the steps, and saves and evaluates between them."""

  config: ConfigDict
  workdir: pathlib.Path
  components: Components
  train_steps: StepFunction  # several steps in one dispatch
  transforms: Sequence[batches.Transform]
  evaluators: Evaluators
  checkpoints: Checkpoints
  events: EventLog
  logger: MetricLogger
  stopping: Stopping | None  # None without early stopping
  higher_is_better: bool = False  # direction of the metric of early stopping
  # The parameters that evaluations and programs use; None for those that are trained.
  evaluated: Callable[[TrainState], Params] | None = None
  callbacks: tuple[Callback, ...] = ()
  unsaved: int | None = None  # the last step whose checkpoint could not be saved

  def fit(
    self, state: TrainState, rows: batches.Rows, stop: Stop, last: int, profile_steps: int
  ) -> None:
    """Trains from the step of the state to step `last`."""
    start = int(state.step)
    traced = profile_steps if multihost.is_primary() else 0
    profile = Profile(self.workdir / 'profile', start + 3, traced)
    stop.begin()
    try:
      self._loop(state, rows, stop, last, profile)
    finally:
      if note := profile.close():
        self.logger.progress.message(f'warning: {note}')

  def _loop(
    self, state: TrainState, rows: batches.Rows, stop: Stop, last: int, profile: Profile
  ) -> None:
    start = int(state.step)
    if start:
      self._read_evaluation(start, state)
    if start >= last or self._should_stop():
      self.logger.progress.message(f'{self.workdir} is at step {start} already; nothing to train')
      self._log_end(start)
      return
    # The metrics of a dispatch are read while the next one runs. `batch` holds the batches of the
    # earlier dispatch until then.
    batch = None
    for steps, next_batch in self._batches(rows, start, last):
      first, step = steps.start == start, steps.stop
      if profile.active:
        profile.before(steps)
      state, metrics = self.train_steps(state, next_batch)
      zero_gradients = metrics.pop(ZERO_GRADIENTS)
      self._check(self.logger.steps(steps, metrics), state, batch)
      batch = next_batch
      due, signal = self._due(step, last), stop.signal
      calls = [call for call in self.callbacks if step % call.every == 0]
      finished = self.logger.flush() if due or signal or first or calls else None
      if first:
        self.logger.restart_clock(step)
        self.events.write('first_step', step=step)
      if profile.active:
        profile.after(steps, state)
      self._check(finished, state, batch)
      if steps.start == 0:
        diagnostics.check_gradients(state.params, zero_gradients[0], self.config)
      if due or signal:
        with self.logger.excluded():
          self._save_and_evaluate(step, state, evaluate=due and not signal)
      if calls and finished is not None:
        with self.logger.excluded():
          for call in calls:
            call(step, state, finished.metrics[-1])
      if signal:
        self.checkpoints.wait()
        self.events.write('preempted', step=step)
        where = remote.remote_url(self.workdir) or self.workdir
        raise Preempted(f'{signal}: saved step {step} in {where}; run again to resume')
      if self._should_stop():
        last = step
        break
    self._finish(last)

  def _batches(
    self, rows: batches.Rows, start: int, last: int
  ) -> Iterator[tuple[range, dict[str, jax.Array]]]:
    """Yields the range of steps of each dispatch, and their batches on a new first axis."""
    config, mesh, rules = self.config, self.components.mesh, self.components.rules
    select = meshes.local_rows(config.batch_size, meshes.batch_sharding(mesh, rules))
    stacked = meshes.batch_sharding(mesh, rules, stacked=True)
    dispatches = self._dispatches(start, last)
    source = batches.train_batches(
      rows, self.transforms, config.batch_size, config.seed, dispatches, select
    )
    waiting = time.perf_counter()
    for steps, batch in source:
      on_mesh = meshes.make_global_batch(batch, stacked)
      self.logger.data_seconds += time.perf_counter() - waiting
      yield steps, on_mesh
      waiting = time.perf_counter()

  def _dispatches(self, start: int, last: int) -> Iterator[range]:
    """Yields the steps of each dispatch; it ends where an evaluation, save or callback is due."""
    intervals = (self.config.eval.every, self.config.checkpoint.every)
    intervals += tuple(call.every for call in self.callbacks)
    while start < last:
      remaining = (n - start % n for n in intervals)
      stop = start + min(self.config.steps_per_call, last - start, *remaining)
      yield range(start, stop)
      start = stop

  def _due(self, step: int, last: int) -> bool:
    every = (self.config.eval.every, self.config.checkpoint.every)
    return step == last or any(step % n == 0 for n in every)

  def _evaluation_due(self, step: int) -> bool:
    return step == self.config.steps or step % self.config.eval.every == 0

  def _should_stop(self) -> bool:
    return self.stopping is not None and early_stopping.should_stop(self.stopping, self.config)

  def _save_and_evaluate(self, step: int, state: TrainState, evaluate: bool) -> None:
    # Saved first: an evaluation that fails must not cost the steps before it.
    self.logger.metrics.flush()
    start = time.perf_counter()
    stopping = None if self.stopping is None else self.stopping._asdict()
    params = self.evaluated and self.evaluated(state)
    self._try_saving(lambda: self.checkpoints.save(step, state, stopping, params), step)
    self._prune(step)
    self.events.write('save', step=step, seconds=time.perf_counter() - start)
    push_workdir(self.workdir)
    if evaluate and self._evaluation_due(step):
      self._evaluate(step, state)

  def _evaluate(self, step: int, state: TrainState) -> None:
    start = time.perf_counter()
    logger = self.logger
    params = self.evaluated(state) if self.evaluated else state.params
    values = self.evaluators.run(step, params, self.workdir, logger.metrics, logger.progress)
    logger.metrics.flush()
    self.events.write('eval', step=step, seconds=time.perf_counter() - start)
    self._update_stopping(step, values)
    write_report(self.config, self.workdir)
    push_workdir(self.workdir)

  def _update_stopping(self, step: int, values: Mapping[str, float]) -> None:
    if self.stopping is not None:
      self.stopping = early_stopping.update(
        self.stopping, step, values, self.config, self.higher_is_better
      )

  def _read_evaluation(self, step: int, state: TrainState) -> None:
    """Updates early stopping from the restored step's logged evaluation, or runs a missing one."""
    values = multihost.broadcast_from_primary(_evaluation(self.workdir, step))
    if not values and self._evaluation_due(step):  # killed between checkpoint and evaluation
      self._evaluate(step, state)
    elif self.stopping is not None and self.stopping.metric in values:
      self._update_stopping(step, values)

  def _try_saving(self, save: Callable[[], None], step: int) -> None:
    # A full disk must not end a run: it is reported, and the older checkpoint stays.
    try:
      save()
      self.unsaved = None
    except Exception as e:
      self.unsaved = step
      reason = ' '.join(f'{type(e).__name__}: {e}'.split())[:300]
      line = f'warning: saving failed, training continues: {reason}'
      self.events.write('error', step=step, error=f'saving failed: {reason}')
      self.logger.progress.message(line)
      if not multihost.is_primary():
        print(line, file=sys.stderr)

  def _prune(self, unscored: int | None = None) -> None:
    """Deletes old checkpoints; `unscored` is a step whose evaluation is still to come."""
    config = self.config.checkpoint
    scores = losses_by_step(self.workdir, config.monitor)
    kept = kept_steps(self.checkpoints.steps(), scores, config.keep_last, config.keep_best)
    self.checkpoints.prune(kept if unscored is None else kept | {unscored})

  def _check(self, finished: Finished | None, state: TrainState, batches: Any) -> None:
    """Raises an error at the first step whose loss is 0 or whose streak reaches the limit.

    A streak is the count of consecutive non-finite steps; `max_consecutive_nonfinite` limits it.

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
      if not values.get('loss'):
        diagnostics.check_loss(step, values, self.components.objective, batch, self.config)
      if values['streak'] >= self.config.max_consecutive_nonfinite:
        self._stop_not_finite(step, values, state, batch())

  def _stop_not_finite(
    self, step: int, values: Mapping[str, float], state: TrainState, batch: Any
  ) -> None:
    self.events.write('nonfinite', step=step)
    file = diagnostics.write_nonfinite(
      self.workdir, step, values, self.components, self.config.seed, state, batch
    )
    raise FloatingPointError(
      f'{int(values["streak"])} steps in a row were not finite, up to step {step}; see {file}'
    )

  def _finish(self, last: int) -> None:
    self._try_saving(self.checkpoints.wait, last)
    self._prune()
    if self.unsaved is not None:
      raise RuntimeError(f'the checkpoint of step {self.unsaved} could not be saved')
    self._log_end(last)

  def _log_end(self, step: int) -> None:
    if self.stopping is not None and step < self.config.steps and self._should_stop():
      self.logger.progress.message(early_stopping.line(self.stopping, step))
      self.events.write('stopped_early', step=step, **self.stopping._asdict())
    self.events.write('done', step=step)


def write_report(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Writes report.html; a full disk or a damaged workdir costs the report and not the run."""
  if config.report and multihost.is_primary():
    try:
      resolve.resolve(config.report, 'report')(workdir)
    except (OSError, UserError) as e:
      print(f'warning: report.html was not written: {e}', file=sys.stderr)


def push_workdir(workdir: pathlib.Path) -> None:
  """Uploads the workdir to its bucket, if it has one; a broken network does not end the run."""
  if multihost.is_primary():
    try:
      remote.push(workdir)
    except UserError as e:
      print(
        f'warning: the upload failed, and the workdir is only in {workdir} for now: {e}',
        file=sys.stderr,
      )


def _evaluation(workdir: pathlib.Path, step: int) -> dict[str, float]:
  """Returns the logged evaluation of a step by name; empty if there was none."""
  return {k: v for k, v in metrics_at(workdir, step).items() if k.startswith('eval/')}


def _first_batch(
  config: ConfigDict, row: Mapping[str, np.ndarray], batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes and dtypes of the batches of one dispatch."""
  shape = (min(config.steps_per_call, config.steps), batch_size)
  return {k: jax.ShapeDtypeStruct((*shape, *x.shape), x.dtype) for k, x in row.items()}


def _wait_for_workdir(workdir: pathlib.Path) -> None:
  """Waits until process 0 has made the workdir, which all processes must see."""
  if multihost.is_primary():
    remote.push(workdir)
  multihost.barrier(600, 'for process 0 to make the workdir')
  if not multihost.is_primary():
    remote.fetch(workdir)
  if not (workdir / 'config.json').is_file():
    raise UserError(
      f'--workdir={workdir}: process {multihost.process_index_and_count()[0]} does not see what '
      'process 0 has written there; several hosts need a workdir on a file system that they share'
    )
