"""Writing files so that a full disk, a kill at any moment or a second run leaves them whole."""

import contextlib
import fcntl
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from lm.data import cache, remote
from lm.errors import UserError
from lm.text import files

_NO_CHECKPOINTS = re.compile(r'[\[\]*?\\]')


def workdir(name: str | os.PathLike, key: str = '--workdir', process: int = 0) -> Path:
  """Returns the folder of a run: a local path, or the copy of gs://..., fetched anew.

  ~ and $VARIABLES in a local path are replaced.

  Args:
    name: as the user gives it.
    key: names it in errors.
    process: of several on one machine each has a copy of its own.

  Raises:
    UserError: the bucket cannot be read; or checkpoints cannot lie there, because Orbax takes the
      path for a glob pattern, or TensorStore takes a backslash for a slash.
  """
  found = str(name) if remote.is_remote(name) else str(files.expand(str(name), key).absolute())
  if wrong := _NO_CHECKPOINTS.search(found):
    raise UserError(
      f'{key}={name}: {wrong[0]!r} in its path: no checkpoint could be read back from there; a '
      f'path has none of [ ] * ? and \\ in it ({found})'
    )
  if not remote.is_remote(name):
    return files.expand(str(name), key)
  local = remote.copy_of(str(name), cache.directory(''), process)
  remote.fetch(local, key)
  return local


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
  """Makes a workdir if need be and holds it against other runs; the system frees it at a kill.

  Raises:
    UserError: another run holds it, or it cannot be written.
  """
  if workdir.exists() and not workdir.is_dir():
    raise UserError(f'--workdir={workdir} is a file; give the name of a directory')
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    lock = (workdir / '.lock').open('w')
  except OSError as e:
    raise UserError(f'--workdir={workdir} cannot be written: {e.strerror}') from e
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      raise UserError(f'--workdir={workdir}: another run is training there') from e
    except OSError as e:  # a file system without locks
      print(
        f'warning: {workdir} cannot be held against a second run: {e.strerror}', file=sys.stderr
      )
    yield


@contextlib.contextmanager
def writing(workdir: Path) -> Iterator[None]:
  """Turns an error of the file system into a UserError of one line, which names the file."""
  try:
    yield
  except OSError as e:
    file = f' ({e.filename})' if e.filename else ''
    raise UserError(f'--workdir={workdir} cannot be written: {e.strerror or e}{file}') from e


def check_free(workdir: Path) -> None:
  """Raises UserError where a workdir is to be made anew and something is there already."""
  if workdir.exists() and not workdir.is_dir():
    raise UserError(f'--workdir={workdir} is a file; give the name of a new directory')
  if workdir.is_dir() and any(workdir.iterdir()):
    raise UserError(f'--workdir={workdir} is not empty; give the name of a new directory')


def replace(path: Path, content: bytes):
  """Writes `content` to a file as lm.text.files.replace does."""
  files.replace(path, [content])
