"""The preparation cache: artifacts that are stored completely or not at all.

An artifact is a directory named by the digest of its inputs. It is created under a name ending in
'.partial', its meta.json last, and then renamed. A lock makes a second process wait, for at most
half a day, until it can use the result of the first. The next holder of the lock removes the files
of a killed process.

Every file has checksums, which a process verifies when it first opens the artifact. Rows are read
in a random order, so that the first batches touch all of a file anyway.

The checksum of an array is the sum of its elements, read as unsigned integers, each multiplied by
odd random weights of 64 bits, modulo 2**64: multilinear hashing (Lemire and Kaser 2014, "Strongly
Universal String Hashing is Fast"). A change of one element always changes it. Other damage is
missed with a probability of 2**-32 at most, but not what an attacker chooses. A sum has no order:
parts of an array, on any devices and processes, add up to the checksum of the array.
"""

import concurrent.futures
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lm.data import remote
from lm.errors import UserError
from lm.text.files import expand_path

MODULUS = 2**64
_CHUNK = 2**26  # bytes of a file that have a checksum of their own
_LINE = 2**14  # uint32 in a line of a chunk
_WEIGHTS = 2**16  # elements whose weights are multiplied out, in 512 KiB
_META = 'meta.json'
_HOME = '~/.cache/lm'
_POLL_SECONDS = 0.1  # between two attempts to take a lock
_MAX_SECONDS = 12 * 3600.0  # of waiting for a lock
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNWRITABLE = (
  *(errno.EACCES, errno.EPERM, errno.EROFS),
  *(errno.ENOTDIR, errno.EEXIST, errno.ENOENT),
)

# Artifacts that this process has verified: the digest of meta.json, and the state of each file.
_verified: dict[pathlib.Path, tuple[str, list[tuple[int, int, int]]]] = {}


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
  if place.exists():
    print(
      f'warning: {place} is damaged or of an older version and is prepared again', file=sys.stderr
    )
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
    shutil.rmtree(place)
  partial = place.with_name(f'{place.name}.partial')
  shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
  partial.mkdir(parents=True)
  try:
    meta = build(partial)
    built = sorted(path for path in partial.rglob('*') if path.is_file())
    meta['files'] = {
      str(f.relative_to(partial)): [f.stat().st_size, file_checksums(f)] for f in built
    }
    meta['digest'] = digest([place.name, meta])
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
  """Returns the meta.json of an artifact, or None if a file has changed since."""
  try:
    meta = json.loads((place / _META).read_text())
    if meta['digest'] != digest([place.name, {k: v for k, v in meta.items() if k != 'digest'}]):
      return None
    stats = {name: (place / name).stat() for name in meta['files']}
    state = meta['digest'], [(s.st_size, s.st_mtime_ns, s.st_ino) for s in stats.values()]
    if _verified.get(place) != state:
      for name, (size, checksums) in meta['files'].items():
        if stats[name].st_size != size or file_checksums(place / name) != checksums:
          return None
      _verified[place] = state
  except (OSError, ValueError, KeyError, TypeError):
    return None
  return meta


def file_checksums(file: pathlib.Path) -> list[str]:
  """Returns the checksum of each chunk of 64 MiB of a file, in hexadecimal digits."""
  if not file.stat().st_size:
    return []
  data = np.asarray(np.memmap(file, np.uint8, 'r'))
  with concurrent.futures.ThreadPoolExecutor() as pool:
    return list(pool.map(lambda at: _checksum(data[at : at + _CHUNK]), range(0, len(data), _CHUNK)))


def _checksum(data: np.ndarray) -> str:
  if missing := -len(data) % (4 * _LINE):
    data = np.pad(data, (0, missing))
  return f'{array_checksum(data.view(np.uint32).reshape(-1, _LINE)):016x}'


def array_checksum(part: np.ndarray, index: Sequence[slice] = ()) -> int:
  """Returns the checksum of a part of an array.

  The weight of an element is the product of one weight for each of its indices.

  Args:
    part: elements of at most 4 bytes; for those of 8, changes of the highest bits may cancel.
    index: the place of the part in the array, a slice for each axis; () for the entire array.
  """
  weights = []
  for axis, size in enumerate(part.shape):
    start = (index[axis].start or 0) if index else 0
    raw = np.random.PCG64(axis).random_raw(start + size)[start:]
    weights.append(raw | np.uint64(1))
  while len(weights) > 1 and len(weights[-2]) * len(weights[-1]) <= _WEIGHTS:
    last = weights.pop()
    weights[-1] = np.outer(weights[-1], last).ravel()
  total = part.view(f'u{part.itemsize}')
  for weight in reversed(weights):
    total = np.einsum('ij,j->i', total.reshape(-1, len(weight)), weight, dtype=np.uint64)
  return int(total.sum(dtype=np.uint64))


def _sync(path: pathlib.Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
