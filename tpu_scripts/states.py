"""What machines and workers can be seen to be."""

import dataclasses

NOT_FOUND = 'NOT_FOUND'
# States of a queued resource: it waits for capacity; it never comes back.
QUEUEING = ('ACCEPTED', 'WAITING_FOR_RESOURCES')
ENDED = ('FAILED', 'SUSPENDED')
# States of a node that is gone for good: a spot node cannot be started again.
GONE = ('PREEMPTED', 'TERMINATED', NOT_FOUND)


@dataclasses.dataclass(frozen=True)
class Queued:
  """A queued resource: its state or NOT_FOUND, our label or '', and why it failed or ''."""

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
  """What a worker says of a run.

  Attributes:
    name: The host's name.
    state: BARE (no setup), or ABSENT, RUNNING, EXITED, LOST or HELD, as in remote_run.sh.
    code: The exit code of EXITED, the other run of HELD, else '-'.
  """

  name: str
  state: str
  code: str = '-'


def told(workers: tuple[Worker, ...]) -> str:
  """Returns how many workers are in which state, in words."""
  kinds = [w.state if w.code == '-' else f'{w.state} {w.code}' for w in workers]
  return ', '.join(f'{kinds.count(kind)} {kind}' for kind in dict.fromkeys(kinds)) or 'no answer'
