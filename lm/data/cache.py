"""The preparation cache: directories that appear whole or not at all.

An artefact is a directory named by the digest of everything that shaped it. It is written beside
its place under a name with '.partial', its meta.json last, and then renamed. Who builds one holds
a lock, so that a second process waits for the first and takes what it made, for half a day at most;
leftovers of a process that was killed are removed by the next that holds the lock.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import numpy as np

from lm.data import remote
from lm.errors import UserError
from lm.text.files import expand_path

_META = 'meta.json'
_HOME = '~/.cache/lm'
_PAUSE = 0.1  # seconds between two looks at a lock
_LONGEST = 12 * 3600.0  # seconds
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def directory(cache: str) -> pathlib.Path:
  """Returns the cache directory: `cache`, or else $LM_CACHE, or else ~/.cache/lm.

  For one in a bucket (gs://...) it is a copy, whose artefacts are fetched and stored one by one.
  """
  name = cache or os.environ.get('LM_CACHE') or _HOME
  if remote.is_remote(name):
    return remote.copy_of(name, expand_path(_HOME, 'data.cache').absolute())
  return expand_path(name, 'data.cache').absolute()


def digest(value: Any) -> str:
  """Returns a digest of a value made of dicts, lists, strings and numbers."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]


def artefact(
  cache: pathlib.Path, name: str, build: Callable[[pathlib.Path], dict[str, Any]]
) -> tuple[pathlib.Path, dict[str, Any]]:
  """Returns the directory of an artefact and its meta.json, building it if need be.

  Args:
    cache: the cache directory; made if missing.
    name: what it is and the digest of what shaped it.
    build: writes files into an empty directory and returns what else meta.json says.

  Raises:
    UserError: the cache cannot be written, or the disk is full.
  """
  place = cache / name
  meta = _intact(place)
  if meta is not None:
    return place, meta
  try:
    with locked(cache / f'.{name}.lock'):
      meta = _intact(place)  # made by the process we waited for
      if meta is None:
        remote.fetch(cache, 'data.cache', under=name)
        meta = _intact(place)
      if meta is None:
        meta = _build(place, build)
        remote.push(cache, 'data.cache', under=name)
      return place, meta
  except OSError as e:
    if e.errno in _FULL:
      raise UserError(
        f'data.cache={cache}: the disk is full ({e.strerror}); make room, or set another directory'
      ) from e
    if e.errno in (
      errno.EACCES,
      errno.EPERM,
      errno.EROFS,
      errno.ENOTDIR,
      errno.EEXIST,
      errno.ENOENT,
    ):
      raise UserError(f'data.cache={cache}: cannot be written: {e.strerror}') from e
    raise


@contextlib.contextmanager
def locked(file: pathlib.Path) -> Iterator[None]:
  """Holds a lock between processes; the system frees it when its holder dies.

  Raises:
    UserError: another process has held it for longer than any preparation takes.
  """
  file.parent.mkdir(parents=True, exist_ok=True)
  what = file.name[1:-5]
  with file.open('a+') as f:
    began, told = time.monotonic(), False
    while not _held(f):
      if not told:
        print(f'waiting for another process to prepare {what}', file=sys.stderr)
        told = True
      if time.monotonic() - began > _LONGEST:
        f.seek(0)
        raise UserError(
          f'{file} is held since {_LONGEST / 3600:g} hours by {f.read().strip() or "a process"}, '
          f'which prepares {what} and does not end; end it, or set another data.cache'
        )
      time.sleep(_PAUSE)
    f.truncate(0)
    f.write(f'process {os.getpid()} of {os.uname().nodename}')
    f.flush()
    yield


def _held(file: TextIO) -> bool:
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  return True


def save_array(file: pathlib.Path, values: np.ndarray) -> None:
  """Writes an array as .npy; a full disk is told by its errno, which `np.save` loses."""
  buffer = io.BytesIO()
  np.save(buffer, values)
  file.write_bytes(buffer.getbuffer())


def _build(place: pathlib.Path, build: Callable[[pathlib.Path], dict[str, Any]]) -> dict[str, Any]:
  """Builds an artefact; the caller holds its lock, so nobody else writes under its name."""
  if place.exists():
    print(f'warning: {place} is damaged and is prepared anew', file=sys.stderr)
    shutil.rmtree(place)
  partial = place.with_name(f'{place.name}.partial')
  shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
  partial.mkdir(parents=True)
  try:
    meta = build(partial)
    meta['files'] = {f.name: f.stat().st_size for f in sorted(partial.iterdir())}
    (partial / _META).write_text(json.dumps(meta, indent=2) + '\n')
    for file in partial.iterdir():
      _sync(file)
    _sync(partial)
    partial.rename(place)
    _sync(place.parent)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise
  return meta


def _intact(place: pathlib.Path) -> dict[str, Any] | None:
  """Returns the meta.json of an artefact whose files have the sizes it says, or None."""
  try:
    meta = json.loads((place / _META).read_text())
    sizes = {name: (place / name).stat().st_size for name in meta['files']}
  except (OSError, ValueError, KeyError, TypeError):
    return None
  return meta if sizes == meta['files'] else None


def _sync(path: pathlib.Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
