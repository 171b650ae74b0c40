"""The states of machines and workers."""

import dataclasses

NOT_FOUND = 'NOT_FOUND'
# States of a queued resource: waiting for capacity; ended for good.
QUEUEING = ('ACCEPTED', 'WAITING_FOR_RESOURCES')
ENDED = ('FAILED', 'SUSPENDED')
# States of a node that is lost for good: a spot node cannot be restarted.
GONE = ('PREEMPTED', 'TERMINATED', NOT_FOUND)


@dataclasses.dataclass(frozen=True)
class Queued:
  """A queued resource: its state or NOT_FOUND, our label or '', and its failure or ''."""

  state: str
  label: str = ''
  why: str = ''


@dataclasses.dataclass(frozen=True)
class Node:
  """A node, which is one slice: its state or NOT_FOUND, and how many workers it has."""

  name: str
  state: str
  workers: int = 0


@dataclasses.dataclass(frozen=True)
class Worker:
  """The state of a run on a worker.

  Attributes:
    name: The host's name.
    state: BARE (no setup), or ABSENT, RUNNING, EXITED, LOST or HELD, as in remote_run.sh.
    code: The exit code of EXITED, the other run of HELD, else '-'.
  """

  name: str
  state: str
  code: str = '-'


def summary(workers: tuple[Worker, ...]) -> str:
  """Returns a phrase such as '3 RUNNING, 1 EXITED 75' for messages."""
  kinds = [w.state if w.code == '-' else f'{w.state} {w.code}' for w in workers]
  return ', '.join(f'{kinds.count(kind)} {kind}' for kind in dict.fromkeys(kinds)) or 'no answer'
