"""Run one training command as N processes of this machine, as one job.

  python tpu_scripts/local_multiprocess.py [--devices=2] 4 -- python -m lm.train --config=...

Each process gets JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Its output appears
line by line with the prefix '[0] '. When one fails, the others have --grace seconds to end, and are
then killed. The exit code is that of the first failure. Code 134 means that another process was
lost, and counts only without any other failure. SIGTERM goes to process 0, which passes it on to
all processes; SIGINT goes to all.

--devices sets the CPU devices of each process. The script needs only Python's standard library.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time

LOST = (134, -signal.SIGABRT)  # after the loss of another process: the code of lm, and that of JAX
ORDERLY = (0, 75)
PORT_TAKEN = ('Address already in use', 'Failed to add port')
RACE = 15.0  # a process whose port is taken ends within these seconds
TRIES = 3


def main() -> int:
  """Returns the exit code of the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('processes', type=int, metavar='N')
  parser.add_argument('--devices', type=int, help='CPU devices of each process')
  parser.add_argument(
    '--grace', type=float, default=20, help='seconds for the others to end before they are killed'
  )
  parser.add_argument('command', nargs=argparse.REMAINDER, metavar='-- COMMAND')
  arguments = parser.parse_args()
  command = arguments.command[arguments.command[:1] == ['--'] :]
  if arguments.processes < 1:
    parser.error(f'{arguments.processes} is not a positive number of processes')
  if arguments.devices is not None and arguments.devices < 1:
    parser.error(f'--devices={arguments.devices} is not a positive number of devices')
  if not command:
    parser.error(
      'the command is missing, as in: 2 -- python -m lm.train --config=... --workdir=...'
    )
  for _ in range(TRIES):
    job = Job(command, arguments.processes, arguments.devices)
    code = job.wait(arguments.grace)
    if not job.port_taken:
      break
  return code


class Job:
  """The processes of one attempt."""

  def __init__(self, command: list[str], count: int, devices: int | None):
    self.port_taken = False
    self._forwarded = False
    self._began = time.monotonic()
    address = f'127.0.0.1:{free_port()}'
    self._processes: list[subprocess.Popen] = []
    self._readers: list[threading.Thread] = []
    # Before the first process starts, so that no signal leaves one behind.
    for signum in (signal.SIGTERM, signal.SIGINT):
      signal.signal(signum, self._forward)
    for i in range(count):
      process = start(command, environment(address, count, i, devices))
      self._processes.append(process)
      reader = threading.Thread(target=self._pass_on, args=(i, process), daemon=True)
      reader.start()
      self._readers.append(reader)

  def wait(self, grace: float) -> int:
    """Waits until all have ended; returns the code of the first cause."""
    codes: list[int] = []  # in the order of the ends
    running = dict(enumerate(self._processes))
    deadline = None
    while running:
      for i, process in list(running.items()):
        code = process.poll()
        if code is None:
          continue
        del running[i]
        codes.append(code)
        if code not in ORDERLY:
          print(f'local_multiprocess: process {i} ended with {named(code)}', file=sys.stderr)
          deadline = deadline or time.monotonic() + grace
      if deadline is not None and time.monotonic() > deadline:
        for i, process in running.items():
          print(f'local_multiprocess: process {i} is killed', file=sys.stderr)
          process.kill()
        deadline = float('inf')
      time.sleep(0.05)
    for reader in self._readers:
      reader.join(timeout=5)
    return cause(codes)

  def _forward(self, signum: int, frame) -> None:
    del frame
    # A second signal kills. SIGTERM to one process is enough, since it passes the signal on.
    some = self._processes if signum == signal.SIGINT or self._forwarded else self._processes[:1]
    for process in some:
      if process.poll() is None:
        process.send_signal(signal.SIGKILL if self._forwarded else signum)
    self._forwarded = True

  def _pass_on(self, i: int, process: subprocess.Popen) -> None:
    assert process.stdout is not None
    for line in process.stdout:
      early = time.monotonic() - self._began < RACE
      if early and any(sign in line for sign in PORT_TAKEN):
        self.port_taken = True
      sys.stderr.write(f'[{i}] {line.rstrip()}\n')
      sys.stderr.flush()


def start(command: list[str], variables: dict[str, str]) -> subprocess.Popen:
  """Starts a process in its own session, which Ctrl-C in the terminal does not reach."""
  return subprocess.Popen(
    command,
    env=variables,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    errors='replace',
    start_new_session=True,
  )


def environment(address: str, count: int, i: int, devices: int | None) -> dict[str, str]:
  """Returns the variables of process `i`."""
  variables = {
    'JAX_COORDINATOR_ADDRESS': address,
    'JAX_NUM_PROCESSES': str(count),
    'JAX_PROCESS_ID': str(i),
    'PYTHONUNBUFFERED': '1',
  }
  if devices is not None:
    flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={devices}'
    variables |= {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags.strip()}
  return os.environ | variables


def free_port() -> int:
  """Returns a free port, which another program may still take first."""
  with socket.create_server(('127.0.0.1', 0)) as server:
    return server.getsockname()[1]


def cause(codes: list[int]) -> int:
  """Returns the exit code of the job from those of its processes, in the order of their ends."""
  failed = [code for code in codes if code not in ORDERLY]
  first = next((code for code in failed if code not in LOST), None)
  code = first if first is not None else max(failed, default=max(codes))
  return 128 - code if code < 0 else code


def named(code: int) -> str:
  """Returns the name of the signal, or 'code N'."""
  return signal.Signals(-code).name if code < 0 else f'code {code}'


if __name__ == '__main__':
  sys.exit(main())
