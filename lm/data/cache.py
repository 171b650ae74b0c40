"""The preparation cache: artifacts that are stored completely or not at all.

An artifact is a directory named by the digest of its inputs. It is created under a name ending in
'.partial', its meta.json last, and then renamed. A lock makes a second process wait, for at most
half a day, until it can use the result of the first. The next holder of the lock removes the files
of a killed process.
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
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from lm.data import remote
from lm.errors import UserError
from lm.text.files import expand_path

_META = 'meta.json'
_HOME = '~/.cache/lm'
_POLL_SECONDS = 0.1  # between two attempts to take a lock
_MAX_SECONDS = 12 * 3600.0  # of waiting for a lock
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNWRITABLE = (
  *(errno.EACCES, errno.EPERM, errno.EROFS),
  *(errno.ENOTDIR, errno.EEXIST, errno.ENOENT),
)


def directory(cache: str) -> pathlib.Path:
  """Returns the cache directory: `cache`, or else $LM_CACHE, or else ~/.cache/lm.

  For gs://... it is a local mirror; artifacts are fetched and stored one by one.
  """
  name = cache or os.environ.get('LM_CACHE') or _HOME
  if remote.is_remote(name):
    return remote.local_mirror(name, expand_path(_HOME, 'data.cache').absolute())
  return expand_path(name, 'data.cache').absolute()


def digest(value: Any) -> str:
  """Returns a digest of a value made of dicts, lists, strings, integers and floats."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]


def artifact(
  cache: str,
  kind: str,
  inputs: Mapping[str, Any],
  build: Callable[[pathlib.Path], dict[str, Any]],
) -> tuple[pathlib.Path, dict[str, Any]]:
  """Returns the directory of the artifact made from `inputs`, and its meta.json; see get_or_build.

  Args:
    cache: `data.cache` of the config.
    kind: the beginning of the directory's name.
    inputs: JSON values that determine the artifact; meta.json has them under 'shaped_by'.
    build: writes files into an empty directory and returns further entries of meta.json.
  """
  name = f'{kind}-{digest(inputs)}'
  return get_or_build(directory(cache), name, lambda place: build(place) | {'shaped_by': inputs})


def get_or_build(
  cache: pathlib.Path, name: str, build: Callable[[pathlib.Path], dict[str, Any]]
) -> tuple[pathlib.Path, dict[str, Any]]:
  """Returns the directory of an artifact and its meta.json, after building it if necessary.

  Args:
    cache: the cache directory; created if missing.
    name: kind and digest of the inputs.
    build: writes files into an empty directory and returns further entries of meta.json.

  Raises:
    UserError: the cache cannot be written, or the disk is full.
  """
  place = cache / name
  meta = _intact(place)
  if meta is not None:
    return place, meta
  try:
    with locked(cache / f'.{name}.lock'):
      meta = _intact(place)  # built by the previous holder of the lock
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
        f'data.cache={cache}: the disk is full ({e.strerror}); free some space, or set another '
        'directory'
      ) from e
    if e.errno in _UNWRITABLE:
      raise UserError(f'data.cache={cache}: not writable: {e.strerror}') from e
    raise


@contextlib.contextmanager
def locked(file: pathlib.Path) -> Iterator[None]:
  """Holds a lock between processes; the system releases it when its holder dies.

  Raises:
    UserError: another process has held the lock for longer than any preparation takes.
  """
  file.parent.mkdir(parents=True, exist_ok=True)
  what = file.name[1:-5]
  with file.open('a+') as f:
    waiting_since = None
    while True:
      try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
      except BlockingIOError:
        if waiting_since is None:
          waiting_since = time.monotonic()
          print(f'waiting for another process to prepare {what}', file=sys.stderr)
      if time.monotonic() - waiting_since > _MAX_SECONDS:
        raise UserError(
          f'{file} has been locked for {_MAX_SECONDS / 3600:g} hours by '
          f'{file.read_text().strip() or "a process"}, which is still preparing {what}; end it, or '
          'set another data.cache'
        )
      time.sleep(_POLL_SECONDS)
    file.write_text(f'process {os.getpid()} of {os.uname().nodename}')
    yield


def save_array(file: pathlib.Path, values: np.ndarray) -> None:
  """Writes an array as .npy; errors keep their errno, which `np.save` loses."""
  buffer = io.BytesIO()
  np.save(buffer, values)
  file.write_bytes(buffer.getbuffer())


def _build(place: pathlib.Path, build: Callable[[pathlib.Path], dict[str, Any]]) -> dict[str, Any]:
  """Builds an artifact; the caller holds its lock."""
  if place.exists():
    print(f'warning: {place} is damaged and is prepared again', file=sys.stderr)
    shutil.rmtree(place)
  partial = place.with_name(f'{place.name}.partial')
  shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
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
  """Returns the meta.json of an artifact whose files have the recorded sizes, or None."""
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
