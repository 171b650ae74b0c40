"""Several processes that train as one: values they agree on, barriers, and how they end.

lm.parallel.distributed starts them. All processes call these functions in the same order. jax is
imported inside functions: programs load it only after their flags are right.
"""

import itertools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lm.errors import PeerLost, UserError
from lm.parallel import failure_detector

_PREPARATION = 12 * 3600  # seconds; hosts with caches of their own prepare a corpus each
_PIECE = 2**20  # bytes of a value at once; the service's messages have at most 4 MiB
_numbers = itertools.count()


def is_multiprocess() -> bool:
  """Returns whether there are other processes."""
  known = state()
  return known.client is not None and known.num_processes > 1


def is_primary() -> bool:
  """Returns whether this is the process that writes the record of the run."""
  return state().process_id == 0


def process_index_and_count() -> tuple[int, int]:
  """Returns which process this is, and how many there are."""
  known = state()
  return (known.process_id, known.num_processes) if is_multiprocess() else (0, 1)


def barrier(name: str, seconds: float, purpose: str) -> None:
  """Waits until all processes are here.

  Args:
    name: the same in all.
    seconds: how long to wait for them at most.
    purpose: what they are waited for, as in 'to prepare the data'.

  Raises:
    PeerLost: one has not come.
  """
  # Not sync_global_devices, which waits for ever.
  if is_multiprocess():
    try:
      state().client.wait_at_barrier(f'lm/{name}/{next(_numbers)}', int(1000 * seconds))
    except RuntimeError as e:
      raise PeerLost(
        f'processes: not all came within {seconds:g} seconds {purpose}: {line(e)}'
      ) from e


def wait_until_data_ready() -> None:
  """Waits for the other processes to prepare the data."""
  barrier('prepared', _PREPARATION, 'to prepare the data')


def gather(value: Any, seconds: float = 600) -> list[Any]:
  """Returns the JSON values that all processes give, in their order.

  Raises:
    PeerLost: one has given none in time.
  """
  return _exchanged(value, range(process_index_and_count()[1]), seconds)


def broadcast_from_primary(value: Any, seconds: float = 600) -> Any:
  """Returns the JSON value that process 0 gives; what the others give does not count.

  Raises:
    PeerLost: it has given none in time.
  """
  return _exchanged(value, [0], seconds)[0]


def _exchanged(value: Any, sources: Sequence[int], seconds: float) -> list[Any]:
  if not is_multiprocess():
    return [value]
  client, this = state().client, state().process_id
  prefix = f'lm/value/{next(_numbers)}'
  if this in sources:
    content = json.dumps(value).encode()
    pieces = [content[i : i + _PIECE] for i in range(0, len(content), _PIECE)]
    for i, piece in enumerate(pieces):
      client.key_value_set_bytes(f'{prefix}/{this}/{i}', piece)
    client.key_value_set(f'{prefix}/{this}/pieces', str(len(pieces)))
  found = []
  wait = int(1000 * seconds)
  try:
    for source in sources:
      number = int(client.blocking_key_value_get(f'{prefix}/{source}/pieces', wait))
      keys = [f'{prefix}/{source}/{i}' for i in range(number)]
      found.append(json.loads(b''.join(client.blocking_key_value_get_bytes(k, wait) for k in keys)))
  except RuntimeError as e:
    raise PeerLost(f'processes: process {source} gave nothing in time: {line(e)}') from e
  barrier('read', seconds, 'to read what was given')
  if this in sources:
    client.key_value_delete(f'{prefix}/{this}/')
  return found


def check_same(what: str, digest: str) -> None:
  """Raises UserError where a process has another digest of something than process 0."""
  found = gather(digest)
  others = [i for i, other in enumerate(found) if other != found[0]]
  if others:
    raise UserError(
      f'{what} of process {others[0]} differs from that of process 0; all must have the same'
    )


def check_same_code(digests: Mapping[str, str]) -> None:
  """Raises UserError where a process runs other code than process 0; `digests` are by name."""
  first, *others = gather(dict(digests))
  for i, other in enumerate(others, 1):
    differing = sorted(name for name in {**first, **other} if first.get(name) != other.get(name))
    if differing:
      raise UserError(
        f'the code of process {i} differs from that of process 0 in {", ".join(differing)}; all '
        'must run the same'
      )


def leave(code: int) -> None:
  """Tells the others that this process ends; one that failed ends here and now.

  What is left to do at the end of Python would wait for the others, who wait for this one.
  """
  if 'jax' in sys.modules and is_multiprocess():
    failure_detector.shutdown(code)
    if code not in failure_detector.ORDERLY:
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(code)


def state():
  """Returns what JAX knows of the processes: `client`, `process_id`, `num_processes`."""
  # The coordination service's client has no public name; Orbax takes it from here too.
  from jax._src import distributed

  return distributed.global_state


def line(error: Exception) -> str:
  """Returns an error of JAX, which writes pages, as one short line."""
  return ' '.join(str(error).split())[:200]
