"""Several processes of one run: start-up, exchange of host values, and the loss of a process.

`start` calls `jax.distributed.initialize`. Every process then opens a connection to process 0, over
which `gather`, `broadcast_from_primary` and `barrier` send JSON. All processes call these three in
the same order. The calls occupy no device, and each has a timeout, which may be hours.

The same connections detect failures. When a process dies, the operating system closes its
connections, and process 0 informs the others. Each ends with one line and exit code 134. JAX alone
would wait for its heartbeat and then abort with pages of text. The heartbeat still detects a host
that falls silent with open connections.

jax is imported inside functions: programs load it only after their flags are checked.
"""

import contextlib
import json
import os
import queue
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from absl import flags

from lm.errors import PeerLost, UserError, first_line

# The exit code of an abort, with which JAX ends a process after the loss of another one. Only the
# process that caused the failure ends with a different code, by which a launcher finds it.
LOST = 134
_ORDERLY = (0, 75)  # exit codes after which the other processes end on their own
_GRACE = 5.0  # seconds for a process to report its own error after the failure of another one
_FLUSH = 0.2  # seconds for messages to arrive before the connections close
_CONNECT = 10.0  # seconds for one attempt to connect
_RENDEZVOUS = 2048  # bytes of the addresses, port and token of process 0
_VARIABLES = {
  'coordinator': 'JAX_COORDINATOR_ADDRESS',
  'processes': 'JAX_NUM_PROCESSES',
  'process': 'JAX_PROCESS_ID',
}
# Launchers that JAX detects: a variable that only the launcher sets, and its number of processes.
_LAUNCHERS = (
  ('SLURM_STEP_NODELIST', 'SLURM_NTASKS'),
  ('OMPI_MCA_orte_hnp_uri', 'OMPI_COMM_WORLD_SIZE'),
)
# Errors of `jax.distributed.initialize`: JAX detects no cluster, and devices are in use already.
_NO_CLUSTER = 'coordinator_address should be defined'
_TOO_LATE = 'must be called before any JAX calls'


class _Link(NamedTuple):
  """A connection to another process, and the values received over it."""

  connection: socket.socket
  reader: BinaryIO
  values: queue.SimpleQueue


class _Group(NamedTuple):
  """The index of this process and its links. Process 0 is linked to all others, they only to it."""

  process: int
  processes: int
  links: dict[int, _Link]


_group = _Group(0, 1, {})
_leaving = threading.Event()


class Settings(NamedTuple):
  """The flags of `define_flags`. JAX detects the values that are None."""

  coordinator: str | None = None
  processes: int | None = None
  process: int | None = None
  init_timeout: float = 300
  heartbeat: int = 30


# Start-up.


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines the flags of a program that may run as several processes.

  absl assigns the flags to this module, from which a program adopts them for its --help.
  """
  flags.DEFINE_string(
    'coordinator', None, 'HOST:PORT of process 0, where JAX does not detect it', flag_values=values
  )
  flags.DEFINE_integer('processes', None, 'number of processes', 1, flag_values=values)
  flags.DEFINE_integer('process', None, 'index of this process, from 0', 0, flag_values=values)
  flags.DEFINE_float(
    'init_timeout', 300, 'seconds to wait for the other processes to start', 1, flag_values=values
  )
  flags.DEFINE_integer(
    'heartbeat', 30, 'seconds of silence after which a process is lost', 1, flag_values=values
  )


def settings(values: flags.FlagValues = flags.FLAGS) -> Settings:
  """Returns the flags; environment variables such as JAX_PROCESS_ID give the missing ones.

  Raises:
    UserError: they are incomplete or inconsistent.
  """
  given: dict[str, Any] = {name: values[name].value for name in Settings._fields}
  for name, variable in _VARIABLES.items():
    if given[name] is None and (text := os.environ.get(variable)):
      try:
        given[name] = values[name].parser.parse(text)
      except ValueError as e:
        raise UserError(f'{variable}={text!r} is not a value of --{name}: {e}') from e
  found = Settings(**given)
  coordinator, processes, process = found[:3]
  host, _, port = (coordinator or 'host:1').rpartition(':')
  valid = host and port.isdecimal() and 0 < int(port) < 2**16
  checks = (
    (not valid, f'--coordinator={coordinator} is not HOST:PORT, as in 10.0.0.1:1234'),
    (coordinator and processes is None, f'--coordinator={coordinator} also needs --processes=N'),
    (coordinator and process is None, f'--coordinator={coordinator} also needs --process=I'),
    (
      process is not None and not coordinator,
      f'--process={process} also needs --coordinator=HOST:PORT of process 0',
    ),
    (
      process is not None and processes is not None and process >= processes,
      f'--process={process} must be less than --processes={processes}',
    ),
  )
  for wrong, message in checks:
    if wrong:
      raise UserError(message)
  return found


def start(settings: Settings) -> bool:
  """Connects the processes of the run; returns whether there are several.

  Call it before JAX initializes its devices. Afterwards the loss of a process ends this one, SIGINT
  ends this process, and JAX's preemption service handles SIGTERM (`host.PreemptionService`).

  Raises:
    UserError: the number of processes differs from the expected one.
    PeerLost: process 0 cannot be reached.
  """
  import jax

  launched = settings.processes if settings.coordinator else _launched()
  expected = settings.processes or launched
  count = 1
  with _deadline(settings, expected):
    if launched != 1 and _initialize(settings):
      count = jax.process_count()  # waits until all processes have listed their devices
    if expected not in (None, count):
      raise UserError(
        f'{count} of {expected} processes found: unless a TPU slice, srun or mpirun connects '
        f'them, each needs --coordinator=HOST:PORT, --processes={expected} and --process=I'
      )
    if count > 1:
      _connect(settings.coordinator)
  if count == 1:
    if jax.distributed.is_initialized():
      # JAX's preemption service has replaced the handler of SIGTERM; this sets Python's again.
      jax.distributed.shutdown()
      signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return False
  # A handler that ends the run between two steps would act in one process only.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  if is_primary():
    print(f'{count} processes with {jax.device_count()} devices', file=sys.stderr)
  return True


def _launched() -> int | None:
  """Returns the number of processes that SLURM or Open MPI has started; None without these."""
  for name, variable in _LAUNCHERS:
    if {name, variable} <= os.environ.keys():
      return int(os.environ[variable])
  return None


def _initialize(settings: Settings) -> bool:
  """Initializes `jax.distributed`; returns False if JAX detects no cluster."""
  import jax

  explicit = settings.coordinator is not None
  try:
    jax.distributed.initialize(
      settings.coordinator,
      settings.processes if explicit else None,
      settings.process,
      cluster_detection_method='deactivate' if explicit else None,
      initialization_timeout=int(settings.init_timeout) + 60,  # later than `_deadline`
      heartbeat_timeout_seconds=settings.heartbeat,
      shutdown_timeout_seconds=int(settings.init_timeout),
    )
  except (RuntimeError, ValueError) as e:
    alone = _NO_CLUSTER in str(e) or (_TOO_LATE in str(e) and jax.process_count() == 1)
    if alone and not explicit:
      return False
    raise PeerLost(f'processes: no connection to {_where(settings)}: {first_line(e)}') from e
  return True


@contextlib.contextmanager
def _deadline(settings: Settings, expected: int | None) -> Iterator[None]:
  """Ends the process with one line when the block takes longer than `init_timeout`.

  JAX waits in C++ and then aborts the process with pages of text. Python cannot catch the abort.
  """

  def give_up() -> None:
    problem = f'not all{f" {expected}" if expected else ""} processes came to {_where(settings)}'
    if settings.process and settings.coordinator:
      try:
        _open(*settings.coordinator.rsplit(':', 1)).close()
      except OSError:
        problem = f'process {settings.process} found no process 0 at {_where(settings)}'
    _abort(f'processes: {problem} within --init_timeout={settings.init_timeout:g} seconds')

  timer = threading.Timer(settings.init_timeout, give_up)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _where(settings: Settings) -> str:
  given = settings.coordinator
  return f'--coordinator={given}' if given else 'the coordinator that JAX detected'


# Connections.


def _connect(coordinator: str | None = None) -> None:
  """Opens the connections between process 0 and all others, with a thread that reads each."""
  global _group
  import jax
  import numpy as np
  from jax.experimental import multihost_utils

  index, count = jax.process_index(), jax.process_count()
  dual = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if dual else socket.AF_INET
  # All processes listen; the addresses of process 0 are broadcast.
  listener = socket.create_server(('', 0), family=family, dualstack_ipv6=dual)
  rendezvous = [_addresses(coordinator), listener.getsockname()[1], secrets.token_hex(16)]
  content = np.frombuffer(json.dumps(rendezvous).encode().ljust(_RENDEZVOUS), np.uint8)
  hosts, port, token = json.loads(multihost_utils.broadcast_one_to_all(content).tobytes())
  with listener:
    links = {0: _call(hosts, port, token, index)} if index else _accept(listener, token, count)
  _group = _Group(index, count, links)
  for other in links:
    threading.Thread(target=_follow, args=(_group, other), daemon=True).start()


def _addresses(coordinator: str | None) -> list[str]:
  """Returns names and addresses of this host, of which other hosts may reach only some."""
  found = [coordinator.rpartition(':')[0]] if coordinator else []
  for family, outside in ((socket.AF_INET, '192.0.2.1'), (socket.AF_INET6, '2001:db8::1')):
    # The local address of the default route. A datagram socket sends nothing when it connects.
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
      probe.connect((outside, 9))
      found.append(probe.getsockname()[0])
  return [*dict.fromkeys([*found, socket.gethostname(), 'localhost'])]


def _open(host: str, port: str | int) -> socket.socket:
  return socket.create_connection((host.strip('[]'), int(port)), timeout=_CONNECT)


def _call(hosts: list[str], port: int, token: str, index: int) -> _Link:
  """Returns the link to process 0, for a process with another `index`."""
  for host in hosts:
    with contextlib.suppress(OSError):
      link = _link(_open(host, port))
      link.connection.sendall(f'{token} {index}\n'.encode())
      return link
  raise PeerLost(
    f'processes: process {index} cannot reach process 0 at port {port} of {" or ".join(hosts)}'
  )


def _accept(listener: socket.socket, token: str, count: int) -> dict[int, _Link]:
  """Returns the links of process 0 to all others; closes connections without the token."""
  links: dict[int, _Link] = {}
  while len(links) < count - 1:
    connection, _ = listener.accept()
    link = _link(connection)
    connection.settimeout(_CONNECT)  # a foreign program may send nothing
    given, index = b'', b''
    with contextlib.suppress(OSError):
      given, _, index = link.reader.readline(_RENDEZVOUS).partition(b' ')
    if given == token.encode():
      connection.settimeout(None)
      links[int(index)] = link
    else:
      connection.close()
  return links


def _link(connection: socket.socket) -> _Link:
  connection.settimeout(None)
  return _Link(connection, connection.makefile('rb'), queue.SimpleQueue())


def _send(links: Iterable[_Link], *message: Any) -> bytes:
  """Sends a message, one line of JSON; returns the line."""
  line = json.dumps(message).encode() + b'\n'
  for link in links:
    with contextlib.suppress(OSError):  # the thread that reads the link detects its end
      link.connection.sendall(line)
  return line


def _follow(group: _Group, other: int) -> None:
  """Receives the messages of another process until its connection closes."""
  ended = False
  with contextlib.suppress(OSError, ValueError):  # a reset connection, half a line
    for line in group.links[other].reader:
      kind, *content = json.loads(line)
      if kind == 'value':
        group.links[other].values.put(content[0])
      elif kind == 'lost':
        _on_exit(group, *content)
      else:
        ended = True
        _on_exit(group, other, *content)
  if not ended:
    _on_exit(group, other, None)


def _on_exit(group: _Group, other: int, code: int | None) -> None:
  """Ends this process if another one has failed; its exit `code` is None if it sent none."""
  if code in _ORDERLY or _leaving.is_set():
    return
  if group.process == 0:
    _send(group.links.values(), 'lost', other, code)
  if code is not None:
    time.sleep(_GRACE)
  elif group.process == 0:
    time.sleep(_FLUSH)
  if not _leaving.is_set():
    how = 'has died or lost its host' if code is None else f'has ended with code {code}'
    _abort(f'process {group.process} of {group.processes} ends: process {other} {how}')


def _abort(line: str) -> None:
  """Ends this process immediately, with a line on stderr and exit code LOST."""
  os.write(2, f'{line}\n'.encode())
  os._exit(LOST)


def _is_distributed() -> bool:
  return 'jax' in sys.modules and sys.modules['jax'].distributed.is_initialized()


def leave(code: int) -> None:
  """Informs the other processes that this one ends with `code`; ends it now if it failed.

  An orderly exit of Python would wait for the others, which wait for this process.
  """
  if not _is_distributed():
    return
  _leaving.set()
  _send(_group.links.values(), 'end', code)
  if code not in _ORDERLY:
    time.sleep(_FLUSH)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# Values and barriers.


def is_multiprocess() -> bool:
  """Returns whether the run has several processes."""
  return _group.processes > 1


def is_primary() -> bool:
  """Returns whether this is process 0, which writes the files of the run."""
  return _group.process == 0


def process_index_and_count() -> tuple[int, int]:
  """Returns the index of this process and the number of processes."""
  return _group.process, _group.processes


def gather(value: Any, seconds: float = 600, purpose: str = 'to gather values') -> list[Any]:
  """Returns the JSON values of all processes, ordered by process.

  Args:
    value: of this process.
    seconds: timeout of the wait for the others.
    purpose: of the wait, for the error.

  Raises:
    PeerLost: a process sends nothing in time.
  """
  if not is_multiprocess() and _is_distributed():
    _connect()  # `jax.distributed` was initialized by the user, not by `start`
  if not is_multiprocess():
    return [value]
  links, end = _group.links, time.monotonic() + seconds
  if not is_primary():
    _send(links.values(), 'value', value)
  values = []
  try:
    for other in sorted(links):
      values.append(links[other].values.get(timeout=max(end - time.monotonic(), 0)))
  except queue.Empty as e:
    raise PeerLost(
      f'processes: nothing from process {other} within the {seconds:g} seconds of waiting {purpose}'
    ) from e
  if not is_primary():
    return values[0]
  return json.loads(_send(links.values(), 'value', [value, *values]))[1]


def broadcast_from_primary(value: Any, seconds: float = 600) -> Any:
  """Returns the JSON value of process 0; the values of all others are ignored.

  Raises:
    PeerLost: a process sends nothing in time.
  """
  return gather(value if is_primary() else None, seconds)[0]


def barrier(seconds: float, purpose: str) -> None:
  """Waits until all processes have called it.

  Args:
    seconds: timeout.
    purpose: of the wait, for the error, such as 'to prepare the data'.

  Raises:
    PeerLost: a process has not called it in time.
  """
  gather(None, seconds, purpose)


def check_same(digests: Mapping[str, str]) -> None:
  """Raises UserError if a digest of another process differs from that of process 0.

  Args:
    digests: of this process, by the name of what was hashed.
  """
  first, *others = gather(dict(digests))
  for i, other in enumerate(others, 1):
    differing = sorted(name for name in {**first, **other} if first.get(name) != other.get(name))
    if differing:
      raise UserError(
        f'process {i} differs from process 0 in {", ".join(differing)}; all processes must have '
        'the same code, config and data'
      )
