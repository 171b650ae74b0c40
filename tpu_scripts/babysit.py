"""Restarts a job until it is done, in a loop: observe, decide (policy.py), act, sleep."""

import dataclasses
import sys
import time
from collections.abc import Sequence

from tpu_scripts import jobs, machines
from tpu_scripts.errors import CLOUD, GAVE_UP, USAGE, Stop
from tpu_scripts.gcloud import Gcloud, GcloudError
from tpu_scripts.policy import Action, History, Limits, Observation, after, decide
from tpu_scripts.settings import Settings
from tpu_scripts.source import Source


@dataclasses.dataclass(frozen=True)
class Job:
  """A run to supervise: its name, command, environment, and the code of its first start."""

  run: str
  command: Sequence[str]
  environ: Sequence[str]
  source: Source


def limits_of(settings: Settings) -> Limits:
  return Limits(
    wall=3600 * float(settings['MAX_HOURS']),
    recreations=int(settings['MAX_RECREATIONS']),
    failures=int(settings['MAX_FAILURES']),
    wait=60 * float(settings['WAIT_MINUTES']),
    mixed=60 * float(settings['MIXED_MINUTES']),
    errors=int(settings['MAX_ERRORS']),
  )


def babysit(
  settings: Settings, gcloud: Gcloud, job: Job, poll: float, delete_on_exit: bool = False
) -> int:
  """Supervises a job until it is done or cannot continue.

  Machines stay up at the end unless `delete_on_exit`, and after an error of gcloud in any case.

  Returns:
    0 done, 3 gcloud fails, 4 no capacity, 5 gave up.

  Raises:
    Stop: the machines were created from other settings, or another run holds them. Nothing was
      deleted.
  """
  limits, history, said = limits_of(settings), History(time.monotonic()), ''
  while True:
    seen = observe(settings, gcloud, job.run)
    action = decide(seen, history, limits)
    if action.kind in ('start', 'recreate'):
      said = _say(action)
      try:
        act(settings, gcloud, job, seen, action)
      except Stop as e:
        if not isinstance(e, GcloudError) and e.code == USAGE:
          raise
        if e.code != GAVE_UP:  # a job that failed immediately is counted by the next observation
          kind = e.kind if isinstance(e, GcloudError) else 'partial'
          seen = Observation(time.monotonic(), error=kind, why=str(e))
          action = decide(seen, history, limits)
    if f'{action.row} {action.reason}' != said:
      said = _say(action)
    history = after(seen, history, action)
    if action.kind in ('done', 'give_up'):
      return end(settings, gcloud, action, delete_on_exit)
    gcloud.sleep(poll * action.polls)


def observe(settings: Settings, gcloud: Gcloud, run: str) -> Observation:
  """Returns the state of the machines, of their workers, and of the checkpoints.

  Raises:
    Stop: the machines of that name were created from other settings.
  """
  now = time.monotonic()
  try:
    resource = machines.queued(settings, gcloud)
    machines.refuse_others(settings, resource)
    nodes = machines.nodes(settings, gcloud) if resource.state == 'ACTIVE' else ()
    ready = bool(nodes) and all(node.state == 'READY' for node in nodes)
    workers = jobs.status(settings, gcloud, run) if ready else ()
    well = all(w.code in ('0', '-') and w.state != 'LOST' for w in workers)
    step = None if well else jobs.newest_step(settings, gcloud, run)
    return Observation(now, resource.state, nodes, workers, step, why=resource.why)
  except GcloudError as e:
    return Observation(now, error=e.kind, why=str(e))


def act(settings: Settings, gcloud: Gcloud, job: Job, seen: Observation, action: Action) -> None:
  """Recreates the machines, or restarts the job on the existing ones."""
  if action.kind == 'recreate':
    if seen.queue != machines.NOT_FOUND:
      machines.delete(settings, gcloud)
    machines.request(settings, gcloud)
    return
  states = {worker.state for worker in seen.workers}
  if 'RUNNING' in states:
    jobs.stop(settings, gcloud, job.run)
  if 'BARE' in states:
    jobs.setup(settings, gcloud, job.source)
  jobs.launch(settings, gcloud, job.run, job.command, job.environ)


def end(settings: Settings, gcloud: Gcloud, action: Action, delete_on_exit: bool) -> int:
  """Deletes the machines, or warns that they are up; returns the exit code."""
  if delete_on_exit and action.code not in (CLOUD, USAGE):
    machines.delete(settings, gcloud)
    print(f'{settings["NAME"]} is deleted', file=sys.stderr)
  else:
    print(
      f'*** {settings["NAME"]} IS NOT DELETED AND IS BILLED if it is up: {settings.cost()}. '
      'Delete it: tpu.py delete ***',
      file=sys.stderr,
    )
  return action.code


def _say(action: Action) -> str:
  now = time.strftime('%H:%M:%S')
  print(f'{now} {action.kind} [{action.row}] {action.reason}', file=sys.stderr, flush=True)
  return f'{action.row} {action.reason}'
