"""How a process joins the others that train as one with it.

A process of a TPU slice, or of `srun`, finds the others by itself; elsewhere it is told:

  --coordinator=HOST:PORT --processes=N --process=I

or by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Flags come before variables.
With --processes alone, the others are found as ever, and their number must be this one.

jax is imported inside functions: programs load it only after their flags are right.
"""

import contextlib
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
from lm.parallel import failure_detector
from lm.parallel.multihost import line, state


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

  Afterwards the loss of another process ends this one (failure_detector), SIGTERM belongs to JAX's
  preemption service, which `Stop` asks, and SIGINT ends this process as ever.

  Raises:
    UserError: there are not as many processes as were expected.
    PeerLost: they did not find each other.
  """
  import jax

  explicit = told.coordinator is not None
  around = told.processes if explicit else _detected()
  if around == 1:
    if told.processes not in (None, 1):
      raise UserError(
        f'1 process where --processes={told.processes} were expected: neither a TPU slice nor srun '
        'tells of others; give --coordinator=HOST:PORT and --process=I as well'
      )
    return False  # JAX's preemption service would take SIGTERM away from the one process
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
      raise PeerLost(f'processes: no connection to {_where(told)}: {line(e)}') from e
  found = state()
  if told.processes not in (None, found.num_processes):
    raise UserError(
      f'{_processes(found.num_processes)} where --processes={told.processes} were expected: '
      f'{_where(told)} and its launcher know of no others'
    )
  # The handler of one process would now end the run between two steps.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  _watch_others(told)
  with _in_time(told):
    count = jax.process_count()  # the devices of all find each other
  if count != found.num_processes:
    raise UserError(f'{count} processes have devices, of {found.num_processes} that were started')
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
    failure_detector.abort(
      f'processes: {_missing(told)} within --peer_timeout={told.peer_timeout:g} seconds'
    )

  timer = threading.Timer(told.peer_timeout, give_up)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _missing(told: Settings) -> str:
  found = state()
  where = _where(told)
  if found.process_id and found.coordinator_address and not _listens(found.coordinator_address):
    return f'process {found.process_id} found no process 0 at {where}'
  return f'not all of {_processes(told.processes or found.num_processes)} came to {where}'


def _listens(address: str) -> bool:
  host, _, port = address.rpartition(':')
  try:
    socket.create_connection((host, int(port)), timeout=3).close()
  except OSError:
    return False
  return True


def _where(told: Settings) -> str:
  address = told.coordinator or state().coordinator_address
  return f'--coordinator={address}' if told.coordinator else str(address or 'the coordinator')


def _watch_others(told: Settings) -> None:
  found = state()
  if found.num_processes == 1:
    return
  client, key, seconds = found.client, 'lm/peers', told.peer_timeout
  host = found.coordinator_address.rpartition(':')[0].strip('[]')
  if found.process_id == 0:
    listener, token = failure_detector.listen()
    client.key_value_set(key, json.dumps([listener.getsockname()[1], token]))
    failure_detector.watch_all(listener, token, found.num_processes)
  else:
    port, token = json.loads(client.blocking_key_value_get(key, int(1000 * seconds)))
    failure_detector.watch_first((host, port), token, found.process_id, found.num_processes)


def _processes(number: int | None) -> str:
  return '1 process' if number == 1 else f'{number} processes'
