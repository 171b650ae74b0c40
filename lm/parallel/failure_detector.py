"""How a process learns at once, and in plain words, that another one is gone.

JAX notices by itself after its heartbeat, and then aborts the process from C++ with pages of text.
Here each process holds a connection to process 0. The system closes it when a process dies, however
it dies; process 0 tells the others who it was. A host that falls silent with all its connections
open is left to the heartbeat.
"""

import contextlib
import os
import secrets
import selectors
import socket
import sys
import threading
import time

# How a shell tells an abort, by which JAX ends a process whose peer is lost: a launcher that looks
# for the cause reads the first code that is another one.
LOST = 134
ORDERLY = (0, 75)  # codes of processes that end together, each by itself
_GRACE = 5.0  # seconds for a process to fail by itself of what made another one fail
_SHORT = 0.2  # seconds for process 0 to tell the others why it ends

_leaving = threading.Event()
_connections: list[socket.socket] = []


def abort(line: str) -> None:
  """Ends this process now, wherever it hangs, with a line on stderr and the code of a lost peer."""
  os.write(2, f'{line}\n'.encode())
  os._exit(LOST)


def listen() -> tuple[socket.socket, str]:
  """Returns a listening socket of process 0, and what a process says to be let in."""
  if socket.has_dualstack_ipv6():
    listener = socket.create_server(('', 0), family=socket.AF_INET6, dualstack_ipv6=True)
  else:
    listener = socket.create_server(('', 0))
  return listener, secrets.token_hex(16)


def watch_all(listener: socket.socket, token: str, number: int) -> None:
  """Watches all other processes, from process 0."""
  threading.Thread(target=_serve, args=(listener, token, number), daemon=True).start()


def watch_first(address: tuple[str, int], token: str, this: int, number: int) -> None:
  """Watches process 0, and through it the others. Where it cannot be reached, that is told."""
  try:
    connection = socket.create_connection(address, timeout=30)
  except OSError as e:
    print(
      f'warning: process {this} cannot reach port {address[1]} of process 0 ({e}): a lost process '
      'is found by the heartbeat alone',
      file=sys.stderr,
    )
    return
  connection.settimeout(None)
  connection.sendall(f'{token} {this}\n'.encode())
  _connections.append(connection)
  threading.Thread(target=_follow, args=(connection, this, number), daemon=True).start()


def shutdown(code: int) -> None:
  """Tells the others that this process ends, and with what code."""
  _leaving.set()
  for connection in list(_connections):
    _send(connection, f'end {code}')
  if code not in ORDERLY:
    time.sleep(_SHORT)


def _serve(listener: socket.socket, token: str, number: int) -> None:
  selector = selectors.DefaultSelector()
  selector.register(listener, selectors.EVENT_READ)
  names: dict[socket.socket, int] = {}
  ended: set[int] = set()
  while True:
    for key, _ in selector.select():
      ready = key.fileobj
      assert isinstance(ready, socket.socket)
      if ready is listener:
        connection, _ = listener.accept()
        selector.register(connection, selectors.EVENT_READ)
        continue
      words = _receive(ready)
      if words and ready not in names and words[0] == token:
        names[ready] = int(words[1])
        _connections.append(ready)
      elif words and ready in names:
        ended.add(names[ready])
        _told(names[ready], int(words[1]), 0, number)
      else:
        selector.unregister(ready)
        who = names.pop(ready, None)
        if who is not None and who not in ended:
          _told(who, None, 0, number)


def _follow(connection: socket.socket, this: int, number: int) -> None:
  ended = False
  while words := _receive(connection):
    if words[0] == 'lost':
      _told(int(words[1]), None if words[2] == '-' else int(words[2]), this, number)
    else:
      ended = True
      _told(0, int(words[1]), this, number)
  if not ended:
    _told(0, None, this, number)


def _told(who: int, code: int | None, this: int, number: int) -> None:
  """Ends this process, because another one ended with a code, or, for None, without a word."""
  if code in ORDERLY or _leaving.is_set():
    return
  if this == 0:
    for connection in list(_connections):
      _send(connection, f'lost {who} {"-" if code is None else code}')
  if code is not None:
    time.sleep(_GRACE)
  elif this == 0:
    time.sleep(_SHORT)
  if not _leaving.is_set():
    how = 'has died or lost its host' if code is None else f'has ended with code {code}'
    abort(f'process {this} of {number} ends: process {who} {how}')


def _send(connection: socket.socket, line: str) -> None:
  with contextlib.suppress(OSError):  # it has gone, which is told by reading
    connection.sendall(f'{line}\n'.encode())


def _receive(connection: socket.socket) -> list[str]:
  """Returns the words of the next line, none at the end."""
  line = b''
  try:
    while not line.endswith(b'\n'):
      byte = connection.recv(1)
      if not byte:
        return []
      line += byte
  except OSError:
    return []
  return line.decode(errors='replace').split()
