"""Several processes that train as one: their start, what they agree on, and their end.

A process of a TPU slice, or of `srun`, finds the others by itself; elsewhere it is told:

  --coordinator=HOST:PORT --processes=N --process=I

or by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Flags come before variables.
With --processes alone, the others are found as ever, and their number must be this one.

jax is imported inside functions: programs load it only after their flags are right.
"""

import contextlib
import itertools
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from absl import flags

from lm.errors import PeerLost, UserError
from lm.run import peers

_PREPARATION = 12 * 3600  # seconds; hosts with caches of their own prepare a corpus each
_PIECE = 2**20  # bytes of a value at once; the service's messages have at most 4 MiB
_numbers = itertools.count()


def define_flags() -> None:
  """Makes the flags of a program that may be several processes; they are this module's."""
  flags.DEFINE_string(
    'coordinator', None, 'HOST:PORT of process 0, where it is not found by itself'
  )
  flags.DEFINE_integer('processes', None, 'how many processes there must be')
  flags.DEFINE_integer('process', None, 'which of them this one is, from 0')
  flags.DEFINE_float('peer_timeout', 300, 'seconds to wait for the other processes to start')
  flags.DEFINE_integer('heartbeat', 30, 'seconds of silence after which a process is lost')


class Settings(NamedTuple):
  """What a process is told of the others. None is for what it finds by itself."""

  coordinator: str | None
  processes: int | None
  process: int | None
  peer_timeout: float = 300
  heartbeat: int = 30


def settings() -> Settings:
  """Returns what the flags say, or else the variables.

  Raises:
    UserError: they do not fit together.
  """
  given: dict[str, Any] = {name: flags.FLAGS[name].value for name in Settings._fields}
  found = completed(Settings(**given))
  check(found)
  return found


def completed(told: Settings) -> Settings:
  """Returns settings with what the variables of a launcher say of what they leave open."""
  return told._replace(
    coordinator=told.coordinator or os.environ.get('JAX_COORDINATOR_ADDRESS'),
    processes=_number('processes', 'JAX_NUM_PROCESSES', told.processes),
    process=_number('process', 'JAX_PROCESS_ID', told.process),
  )


def _number(flag: str, variable: str, given: int | None) -> int | None:
  text = os.environ.get(variable)
  if given is not None or not text:
    return given
  try:
    return int(text)
  except ValueError as e:
    raise UserError(f'{variable}={text!r} is no number; --{flag} says it as well') from e


def check(told: Settings) -> None:
  """Raises UserError where settings do not fit together."""
  host, _, port = (told.coordinator or 'host:1').rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise UserError(f'--coordinator={told.coordinator} is not HOST:PORT, as in 10.0.0.1:1234')
  if told.processes is not None and told.processes < 1:
    raise UserError(f'--processes={told.processes} is not a number of processes')
  if told.coordinator and (told.processes is None or told.process is None):
    missing = '--processes' if told.processes is None else '--process'
    raise UserError(
      f'--coordinator={told.coordinator} without {missing}; it goes with '
      '--processes=N and --process=I'
    )
  if told.process is not None and not told.coordinator:
    raise UserError(f'--process={told.process} needs --coordinator=HOST:PORT, where process 0 is')
  if told.process is not None and not 0 <= told.process < (told.processes or 1):
    raise UserError(
      f'--process={told.process} is none of --processes={told.processes}, which count from 0'
    )
  for flag in ('peer_timeout', 'heartbeat'):
    if getattr(told, flag) < 1:
      raise UserError(f'--{flag}={getattr(told, flag)} is not 1 second or more')


def start(told: Settings) -> bool:
  """Joins the other processes, before anything touches the backend; whether there are several.

  From here on the loss of another process ends this one (lm.run.peers), SIGTERM belongs to JAX's
  preemption service, which `Stop` asks, and SIGINT ends this process as ever.

  Raises:
    UserError: there are not as many processes as were expected.
    PeerLost: they did not find each other.
  """
  import jax

  if told.coordinator is None and _detected() == 1:
    if told.processes not in (None, 1):
      raise UserError(
        f'1 process where --processes={told.processes} were expected: neither a TPU slice nor srun '
        'tells of others; give --coordinator=HOST:PORT and --process=I as well'
      )
    return False
  explicit = told.coordinator is not None
  with _in_time(told):
    try:
      jax.distributed.initialize(
        told.coordinator,
        told.processes if explicit else None,
        told.process,
        cluster_detection_method='deactivate' if explicit else None,
        # Ours, which says in one line what is wrong, comes first.
        initialization_timeout=int(told.peer_timeout) + 60,
        heartbeat_timeout_seconds=told.heartbeat,
        shutdown_timeout_seconds=int(told.peer_timeout),
      )
    except (RuntimeError, ValueError) as e:
      raise PeerLost(f'processes: no connection to {_where(told)}: {_line(e)}') from e
  state = _state()
  if told.processes not in (None, state.num_processes):
    raise UserError(
      f'{_processes(state.num_processes)} where --processes={told.processes} were expected: '
      f'{_where(told)} and its launcher know of no others'
    )
  # The handler of one process would now end the run between two steps.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  _watch_others(told)
  with _in_time(told):
    count = jax.process_count()  # the devices of all find each other
  if count != state.num_processes:
    raise UserError(f'{count} processes have devices, of {state.num_processes} that were started')
  if count > 1 and jax.process_index() == 0:
    print(f'{count} processes with {jax.device_count()} devices', file=sys.stderr)
  return count > 1


def _detected() -> int:
  """Returns how many processes JAX finds around this one: TPU slices, SLURM, Open MPI."""
  # JAX has no public way to ask whether `initialize` would find anybody.
  from jax._src import clusters

  kinds = clusters.ClusterEnv._cluster_types
  found = (kind for kind in kinds if not kind.opt_in_only_method and kind.is_env_present())
  kind = next(found, None)
  return 1 if kind is None else kind.get_process_count()


@contextlib.contextmanager
def _in_time(told: Settings) -> Iterator[None]:
  """Ends the process with one line when what is inside takes longer than the timeout."""
  # JAX itself waits in C++ and then aborts the process with pages of text, which no `except` sees.

  def give_up() -> None:
    peers.end(f'processes: {_missing(told)} within --peer_timeout={told.peer_timeout:g} seconds')

  timer = threading.Timer(told.peer_timeout, give_up)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _missing(told: Settings) -> str:
  state = _state()
  where = _where(told)
  if state.process_id and state.coordinator_address and not _listens(state.coordinator_address):
    return f'process {state.process_id} found no process 0 at {where}'
  return f'not all of {_processes(told.processes or state.num_processes)} came to {where}'


def _listens(address: str) -> bool:
  host, _, port = address.rpartition(':')
  try:
    socket.create_connection((host, int(port)), timeout=3).close()
  except OSError:
    return False
  return True


def _where(told: Settings) -> str:
  address = told.coordinator or _state().coordinator_address
  return f'--coordinator={address}' if told.coordinator else str(address or 'the coordinator')


def _watch_others(told: Settings) -> None:
  state = _state()
  if state.num_processes == 1:
    return
  client, key, seconds = state.client, 'lm/peers', told.peer_timeout
  host = state.coordinator_address.rpartition(':')[0].strip('[]')
  if state.process_id == 0:
    listener, token = peers.listen()
    client.key_value_set(key, json.dumps([listener.getsockname()[1], token]))
    peers.watch_all(listener, token, state.num_processes)
  else:
    port, token = json.loads(client.blocking_key_value_get(key, int(1000 * seconds)))
    peers.watch_first((host, port), token, state.process_id, state.num_processes)


def several() -> bool:
  """Returns whether there are other processes."""
  state = _state()
  return state.client is not None and state.num_processes > 1


def is_first() -> bool:
  """Returns whether this is the process that writes the record of the run."""
  return _state().process_id == 0


def count() -> tuple[int, int]:
  """Returns which process this is, and how many there are."""
  state = _state()
  return (state.process_id, state.num_processes) if several() else (0, 1)


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
  if several():
    try:
      _state().client.wait_at_barrier(f'lm/{name}/{next(_numbers)}', int(1000 * seconds))
    except RuntimeError as e:
      raise PeerLost(
        f'processes: not all came within {seconds:g} seconds {purpose}: {_line(e)}'
      ) from e


def prepared() -> None:
  """Waits for the other processes to prepare the data."""
  barrier('prepared', _PREPARATION, 'to prepare the data')


def gather(value: Any, seconds: float = 600) -> list[Any]:
  """Returns the JSON values that all processes give, in their order.

  Raises:
    PeerLost: one has given none in time.
  """
  return _exchanged(value, range(count()[1]), seconds)


def from_first(value: Any, seconds: float = 600) -> Any:
  """Returns the JSON value that process 0 gives; what the others give does not count.

  Raises:
    PeerLost: it has given none in time.
  """
  return _exchanged(value, [0], seconds)[0]


def _exchanged(value: Any, sources, seconds: float) -> list[Any]:
  if not several():
    return [value]
  client, this = _state().client, _state().process_id
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
    raise PeerLost(f'processes: process {source} gave nothing in time: {_line(e)}') from e
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


class Stop:
  """Whether the processes were told to stop: SIGTERM to any of them, by JAX's preemption service.

  It is asked once after every dispatch of steps, by all processes; all get the same answer.
  """

  def __init__(self) -> None:
    self._dispatches = 0

  def begin(self) -> None:
    pass

  @property
  def signal(self) -> str | None:
    from jax.experimental import multihost_utils

    # Dispatches and not steps: the service stops all at the largest count that it was told plus 1.
    self._dispatches += 1
    reached = multihost_utils.reached_preemption_sync_point(self._dispatches)
    return 'SIGTERM' if reached else None


def leave(code: int) -> None:
  """Tells the others that this process ends; one that failed ends here and now.

  What is left to do at the end of Python would wait for the others, who wait for this one.
  """
  if 'jax' in sys.modules and several():
    peers.leave(code)
    if code not in peers.ORDERLY:
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(code)


def _state():
  # The coordination service's client has no public name; Orbax takes it from here too.
  from jax._src import distributed

  return distributed.global_state


def _processes(number: int | None) -> str:
  return '1 process' if number == 1 else f'{number} processes'


def _line(error: Exception) -> str:
  return ' '.join(str(error).split())[:200]
