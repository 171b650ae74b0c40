"""The decisions of babysit: one pure function of an observation and a history.

The rows of the table, in the order of the checks:

| row           | observation                                         | action                     |
|---------------|-----------------------------------------------------|----------------------------|
| `error`       | gcloud fails for another reason than NOT_FOUND      | back off; never delete     |
| `unreachable` | READY, and a worker does not answer                 | back off; never delete     |
| `errors`      | the same, MAX_ERRORS times                          | give up: 3, or 4 (capacity)|
| `done`        | every worker EXITED 0                               | done: 0                    |
| `wall`        | MAX_HOURS are over                                  | give up: 5                 |
| `expired`     | FAILED, and never ACTIVE                            | give up: 4                 |
| `lost`        | node PREEMPTED, TERMINATED or NOT_FOUND; SUSPENDED, | delete, create;            |
|               | FAILED after ACTIVE, NOT_FOUND                      | no failure                 |
| `recreations` | the same, MAX_RECREATIONS times                     | give up: 5                 |
| `pending`     | the request waits, nodes are created or repaired    | wait                       |
| `stuck`       | the same for WAIT_MINUTES                           | give up: 4                 |
| `held`        | another run holds a worker                          | give up: 2                 |
| `saved`       | a worker EXITED 75                                  | stop all, start; no failure|
| `failed`      | a worker EXITED otherwise, or is LOST               | stop all, start; a failure |
| `failures`    | the same, MAX_FAILURES times, no newer checkpoint   | give up: 5                 |
| `running`     | every worker RUNNING                                | sleep                      |
| `idle`        | no worker ever ran it                               | set up, start; no failure  |
| `mixed`       | workers do not agree                                | wait                       |
| `disagreed`   | the same for MIXED_MINUTES                          | stop all, start; a failure |
"""

import dataclasses

from tpu_scripts.errors import CLOUD, GAVE_UP, LOST, USAGE
from tpu_scripts.states import ENDED, GONE, NOT_FOUND, QUEUEING, Node, Worker, summary


@dataclasses.dataclass(frozen=True)
class Limits:
  """The limits of babysit: seconds (wall, wait, mixed) and counts."""

  wall: float
  recreations: int
  failures: int = 3
  wait: float = 1800
  mixed: float = 300
  errors: int = 20


@dataclasses.dataclass(frozen=True)
class Observation:
  """The state at time `now`, in seconds. After an `error`, given by its kind, it is not known.

  `step` is the step of the newest checkpoint; None without a checkpoint, or if nobody asked for it.
  """

  now: float
  queue: str = 'ACTIVE'
  nodes: tuple[Node, ...] = ()
  workers: tuple[Worker, ...] = ()
  step: int | None = None
  error: str = ''
  why: str = ''


@dataclasses.dataclass(frozen=True)
class History:
  """Past events: their counts, and the times of their first occurrence in seconds, or None."""

  began: float
  active: bool = False
  recreations: int = 0
  failures: int = 0
  step: int | None = None
  errors: int = 0
  waiting: float | None = None
  mixed: float | None = None


@dataclasses.dataclass(frozen=True)
class Action:
  """The next action: sleep, start, recreate, done or give_up; and the row of the table.

  `polls` is the length of the sleep that follows, and `code` the exit code of the program.
  """

  kind: str
  row: str
  reason: str
  code: int = 0
  polls: int = 1


def decide(seen: Observation, history: History, limits: Limits) -> Action:
  """Returns the next action by the table above. A pure function."""
  if seen.error:
    return _back_off('error', seen.error, f'{seen.error}: {seen.why}', history, limits)
  expected = max(1, sum(node.workers for node in seen.nodes))
  ready = seen.queue == 'ACTIVE' and all(node.state == 'READY' for node in seen.nodes)
  ran_well = [w for w in seen.workers if (w.state, w.code) == ('EXITED', '0')]
  if ready and len(ran_well) >= expected:
    return Action('done', 'done', f'every worker exited 0 ({expected})')
  if seen.now - history.began > limits.wall:
    return Action('give_up', 'wall', 'MAX_HOURS are over', GAVE_UP)
  if not ready:
    return _machines(seen, history, limits)
  if len(seen.workers) < expected:
    reason = f'{len(seen.workers)} of {expected} workers answer'
    return _back_off('unreachable', 'network', reason, history, limits)
  return _workers(seen, history, limits)


def _back_off(row: str, kind: str, reason: str, history: History, limits: Limits) -> Action:
  # A running job does not need our network, so that machines and job are left alone.
  if history.errors + 1 >= limits.errors:
    code = LOST if kind == 'capacity' else CLOUD
    return Action('give_up', 'errors', f'{limits.errors} times in a row: {reason}', code)
  return Action('sleep', row, reason, polls=min(2**history.errors, 20))


def _machines(seen: Observation, history: History, limits: Limits) -> Action:
  states = ', '.join([seen.queue, *(f'{node.name} {node.state}' for node in seen.nodes)])
  if seen.queue == 'FAILED' and not history.active:
    return Action('give_up', 'expired', f'no capacity in time: {states} {seen.why}', LOST)
  gone = seen.queue == 'ACTIVE' and any(node.state in GONE for node in seen.nodes)
  if gone or seen.queue in (*ENDED, NOT_FOUND):
    if history.recreations >= limits.recreations:
      reason = f'{states}, and MAX_RECREATIONS={limits.recreations} are used up'
      return Action('give_up', 'recreations', reason, GAVE_UP)
    return Action('recreate', 'lost', states, polls=0)
  # The wait for capacity may take hours, and VALID_UNTIL ends it.
  began = _since(history.waiting, seen.now)
  if seen.queue not in QUEUEING and seen.now - began > limits.wait:
    return Action('give_up', 'stuck', f'{states} for WAIT_MINUTES', LOST)
  return Action('sleep', 'pending', states)


def _workers(seen: Observation, history: History, limits: Limits) -> Action:
  words, states = summary(seen.workers), {worker.state for worker in seen.workers}
  codes = [worker.code for worker in seen.workers if worker.state == 'EXITED']
  for worker in seen.workers:
    if worker.state == 'HELD':
      return Action('give_up', 'held', f'{worker.name} runs {worker.code}', USAGE)
  if '75' in codes:
    return Action('start', 'saved', words)
  bad = [code for code in codes if code != '0'] + ['LOST'] * ('LOST' in states)
  if bad:
    # Code 134 means that another process died; the cause has another code.
    cause = next((code for code in bad if code != '134'), '134')
    return _counted('failed', f'{words}; the cause exited {cause}', seen, history, limits)
  if states == {'RUNNING'}:
    return Action('sleep', 'running', words)
  if states <= {'ABSENT', 'BARE'}:
    return Action('start', 'idle', words)
  if history.mixed is not None and seen.now - history.mixed > limits.mixed:
    return _counted('disagreed', f'{words} for MIXED_MINUTES', seen, history, limits)
  return Action('sleep', 'mixed', words)


def _counted(row: str, reason: str, seen: Observation, history: History, limits: Limits) -> Action:
  failures = _failures(seen, history)
  if failures >= limits.failures:
    reason = f'{failures} failures without a newer checkpoint than step {seen.step}: {reason}'
    return Action('give_up', 'failures', reason, GAVE_UP)
  return Action('start', row, reason)


def _failures(seen: Observation, history: History) -> int:
  newer = seen.step is not None and (history.step is None or seen.step > history.step)
  return 1 if newer else history.failures + 1


def after(seen: Observation, history: History, action: Action) -> History:
  """Returns the history after an action that succeeded. A pure function."""
  changes: dict[str, object] = {}
  if action.row in ('error', 'unreachable'):
    return dataclasses.replace(history, errors=history.errors + 1)
  if action.row == 'lost':
    changes = {'active': False, 'recreations': history.recreations + 1}
  elif seen.queue == 'ACTIVE':
    changes = {'active': True}
  if action.row in ('failed', 'disagreed'):
    changes |= {'failures': _failures(seen, history), 'step': _newest(seen.step, history.step)}
  waits = action.row == 'pending' and seen.queue not in QUEUEING
  changes['waiting'] = _since(history.waiting, seen.now) if waits else None
  changes['mixed'] = _since(history.mixed, seen.now) if action.row == 'mixed' else None
  return dataclasses.replace(history, errors=0, **changes)  # type: ignore[arg-type]


def _since(began: float | None, now: float) -> float:
  return now if began is None else began


def _newest(*steps: int | None) -> int | None:
  return max((step for step in steps if step is not None), default=None)
