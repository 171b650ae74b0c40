"""The training loop from its beginning to its end: take up, take steps, leave a record."""

import contextlib
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lm.config.base import sizes
from lm.data import batches, prepare, remote
from lm.errors import Preempted, UserError
from lm.run import (
  build,
  check,
  environment,
  experiment,
  files,
  host,
  host_memory,
  init,
  processes,
  record,
  schedule,
  sources,
  stopping,
  vanished,
)
from lm.run.checkpoint import Checkpoints, holds_checkpoints, restore_newest
from lm.run.cli import NoStop, Stop
from lm.run.course import Course, push_record, write_report
from lm.run.evaluators import Evaluators
from lm.run.logging import Events
from lm.run.step import abstract_state, check_step, make_train_steps
from lm.run.watch import Watch
from lm.text.tokenizers import vocabulary_size


def train(
  config: ConfigDict,
  path_and_arg: str,
  workdir: pathlib.Path,
  stop: Stop | NoStop | processes.Stop,
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
  stopping.check(config)
  check.numbers(config)
  vanished.check_pattern(config)
  init.check(config.init)
  host.keep_compiled(config.data.cache)
  show = prepare.show_progress if processes.is_first() else None
  if new_data and (workdir / 'tokenizer.json').is_file():
    tokenizer = experiment.open_tokenizer(workdir)
  else:
    tokenizer = prepare.tokenizer(config.data, show)
  functions = build.functions(config, vocabulary_size(tokenizer))
  rows = prepare.rows(config.data, config.data.train, tokenizer, config.seed, show)
  functions = build.with_counts(functions, config, rows, tokenizer)
  transforms = batches.open_transforms(config.data.transforms, tokenizer, rows)
  host_memory.check_batches(config, functions, rows, transforms)
  vanished.check_targets(rows, transforms, config)
  evaluators = Evaluators(config, functions, tokenizer)
  processes.prepared()
  same = experiment.digest(config, tokenizer, rows.content)
  processes.check_same('the config, the tokenizer or the data', same)
  if processes.several():
    processes.check_same_code(sources.digests(pathlib.Path(path_and_arg.partition(':')[0])))
  # Before anything is written: whatever is wrong with a function of the config, an axis that does
  # not divide over the mesh, and a run to begin from that does not fit.
  abstract, _ = abstract_state(functions)
  directions = evaluators.directions(abstract.params)
  stopping.check_monitored(config, directions)
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
  if not processes.from_first(holds_checkpoints(workdir)):
    state, taken = init.initial_state(config, functions, tokenizer, abstract)
  older = schedule.length_of(workdir)  # before the config of this start takes its place
  alone = files.held(workdir) if processes.is_first() else contextlib.nullcontext()
  with alone:
    with files.writing(workdir):
      warnings: list[str] = []
      if processes.is_first():
        warnings = experiment.record(
          config, path_and_arg, tokenizer, workdir, rows.content, new_data
        )
      _wait_for_record(workdir)
      events = Events(workdir, processes.is_first())
      events.write(
        'start', experiment=pathlib.Path(path_and_arg).name.replace('.py', ''), steps=config.steps
      )
      environment.write(workdir, path_and_arg.partition(':')[0])
      if taken is not None:
        events.write('init', **taken.fields())
      if processes.is_first():
        record.write_directions(workdir, directions)
      checkpoints = Checkpoints(workdir)
      state, saved = restore_newest(checkpoints, abstract, events) or (state, None)
      assert state is not None
      watch = Watch(config, workdir, state, functions.model, rows)
    notes = {'data.train': getattr(rows, 'note', '')} | evaluators.notes
    for which, note in notes.items():
      if note:
        events.write('too_long', set=which, note=note)
        watch.progress.message(f'{which}: {note}')
    updates = int(state.step) - int(state.skipped)
    rates = schedule.jump(config, functions.optimizer, older, updates)
    if rates is not None:
      events.write('schedule', step=int(state.step), **rates)
      warnings.append(schedule.line(rates, older, config.optim.steps))
    watch.progress.message(f'model: {sizes(config.model)}')
    if line := evaluators.transforms_line():
      watch.progress.message(line)
    for warning in warnings:
      watch.progress.message(f'warning: {warning}')
    if taken is not None:
      watch.progress.message(taken.line())
    seen = stopping.take_up(config, saved)
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
        checkpoints.abandoned = processes.several()
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
  if processes.is_first():
    remote.push(workdir)
  processes.barrier('record', 600, 'for process 0 to make the workdir')
  if not processes.is_first():
    remote.fetch(workdir)
  if not (workdir / 'config.json').is_file():
    raise UserError(
      f'--workdir={workdir}: process {processes.count()[0]} does not see what process 0 '
      'has written there; the workdir of several hosts lies on a file system that they share'
    )
