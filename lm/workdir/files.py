"""The run directory: its path, its lock against a second run, and atomic writes."""

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

_FORBIDDEN = re.compile(r'[\[\]*?\\]')


def workdir(name: str | os.PathLike, key: str = '--workdir', process: int = 0) -> Path:
  """Returns the local directory of a run; a directory gs://... is fetched to a local copy.

  ~ and $VARIABLES in a local path are expanded.

  Args:
    name: the path from the user.
    key: the argument's name in errors.
    process: the index of the process; each process of a machine has its own copy of a bucket.

  Raises:
    UserError: the bucket cannot be read, or the path has a character that prevents a restore. Orbax
      reads the path as a glob pattern, and TensorStore reads a backslash as a slash.
  """
  is_remote = remote.is_remote(name)
  path = Path() if is_remote else files.expand_path(str(name), key)
  full = str(name) if is_remote else str(path.absolute())
  if wrong := _FORBIDDEN.search(full):
    raise UserError(
      f'{key}={name}: {wrong[0]!r} in its path prevents the restore of a checkpoint; the path must '
      f'not contain [ ] * ? or \\ ({full})'
    )
  if is_remote:
    path = remote.local_mirror(str(name), cache.directory(''), process)
    remote.fetch(path, key)
  return path


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
  """Locks a workdir against other runs within a block; creates it if it is missing.

  The lock ends with the process, however that ends.

  Raises:
    UserError: another run has the lock, the workdir is not writable, or a link leads out of it.
  """
  if workdir.exists() and not workdir.is_dir():
    raise UserError(f'--workdir={workdir} is a file; give the name of a directory')
  check_links(workdir)
  with one_line_errors(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    lock = (workdir / '.lock').open('w')
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      raise UserError(f'--workdir={workdir}: another run is training there') from e
    except OSError as e:  # a file system without locks
      print(
        f'warning: {workdir} cannot be locked against a second run: {e.strerror}', file=sys.stderr
      )
    yield


def check_links(workdir: Path) -> None:
  """Raises UserError if a workdir has a link that leads out of it, a pipe or a device.

  Writes would follow the link, and reads would show what it leads to. The workdir itself may be a
  link.
  """
  root, folders = workdir.resolve(), [workdir]
  while folders:
    with contextlib.suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
      for entry in entries:
        if entry.is_dir(follow_symlinks=False):
          folders.append(Path(entry.path))
        elif not entry.is_file(follow_symlinks=False):
          _check_special(entry, root, workdir)


def _check_special(entry: os.DirEntry, root: Path, workdir: Path) -> None:
  """Raises UserError for an entry that is no link, or a link out of the folder `root`."""
  name = f'--workdir={workdir}: {os.path.relpath(entry.path, workdir)!r:.200}'
  if not entry.is_symlink():
    raise UserError(f'{name} is neither a file nor a folder; delete it')
  try:
    inside = Path(entry.path).resolve().is_relative_to(root)
  except (OSError, RuntimeError):  # links in a circle
    inside = False
  if not inside:
    raise UserError(
      f'{name} is a link to {os.readlink(entry.path)!r:.200}, which is not in the workdir; replace '
      'it by what it leads to, or make the workdir itself the link'
    )


@contextlib.contextmanager
def one_line_errors(workdir: Path) -> Iterator[None]:
  """Converts an OSError within a block to a UserError that names the file."""
  try:
    yield
  except OSError as e:
    file = f' ({e.filename})' if e.filename else ''
    raise UserError(f'--workdir={workdir} cannot be written: {e.strerror or e}{file}') from e


def check_new(workdir: Path) -> None:
  """Raises UserError unless a workdir is missing or empty."""
  if workdir.exists() and not workdir.is_dir():
    raise UserError(f'--workdir={workdir} is a file; give the name of a new directory')
  if workdir.is_dir() and any(workdir.iterdir()):
    raise UserError(f'--workdir={workdir} is not empty; give the name of a new directory')


def replace(path: Path, content: bytes) -> None:
  """Writes `content` to a file atomically; see `lm.text.files.write_atomic`."""
  files.write_atomic(path, [content])
