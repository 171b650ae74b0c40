"""Folders in a bucket (gs://...), each with a copy on this machine that everything else works on.

A bucket can neither append to a file nor lock one, and arrays are read from memory-mapped files. So
what is named gs://... is a folder of the local cache, in which the file `.remote` says where its
content belongs: `fetch` brings it here, `push` stores what has changed. Checkpoints alone never lie
in the copy: Orbax writes them to `original`, from all processes at once.
"""

import hashlib
import os
import pathlib
from collections.abc import Callable

from lm.errors import UserError
from lm.text import files

_SCHEME = 'gs://'
_MARK = '.remote'
_ORBAX = ('checkpoints', 'damaged')  # what only lies in the bucket

# What was pushed or fetched in this process: file -> time and size.
_known: dict[pathlib.Path, tuple[int, int] | None] = {}


def is_remote(name: str | os.PathLike) -> bool:
  """Returns whether a name is one of a bucket's."""
  return str(name).startswith(_SCHEME)


def copy_of(name: str, copies: pathlib.Path, process: int = 0) -> pathlib.Path:
  """Returns the folder to work on for gs://BUCKET/FOLDER, made if missing; fetches nothing.

  Args:
    name: of the folder in a bucket.
    copies: where copies lie.
    process: of several on one machine each may have a copy of its own.
  """
  url = name.rstrip('/')
  local = copies / f'remote-{hashlib.sha256(url.encode()).hexdigest()[:16]}-{process}'
  local.mkdir(parents=True, exist_ok=True)
  if original(local) != url:
    files.write_atomic(local / _MARK, [url.encode()])
  return local


def original(local: pathlib.Path) -> str | None:
  """Returns the name in the bucket of a copy, None for a folder that is none."""
  mark = local / _MARK
  return mark.read_text() if mark.is_file() else None


def fetch(local: pathlib.Path, key: str = '--workdir', under: str = '') -> None:
  """Fetches what a copy, or a folder in it, lacks or has otherwise; nothing for other folders.

  Raises:
    UserError: the bucket cannot be read.
  """
  url = original(local)
  if url is not None:
    _told(key, url, lambda: _fetch(local, url, under))


def push(local: pathlib.Path, key: str = '--workdir', under: str = '') -> None:
  """Stores what has changed in a copy, or in a folder in it; nothing for other folders.

  Raises:
    UserError: the bucket cannot be written.
  """
  url = original(local)
  if url is not None:
    _told(key, url, lambda: _push(local, url, under))


def _told(key: str, url: str, act: Callable[[], None]) -> None:
  try:
    act()
  except ImportError as e:
    raise UserError(f"{key}={url} needs gcsfs: pip install -c constraints.txt -e '.[tpu]'") from e
  except Exception as e:  # whatever the bucket's client makes of missing rights and networks
    reason = ' '.join(f'{type(e).__name__}: {e}'.split())[:200]
    raise UserError(f'{key}={url} cannot be reached: {reason}') from e


def _filesystem(url: str):
  import fsspec

  filesystem, root = fsspec.core.url_to_fs(url)
  filesystem.invalidate_cache()  # other processes write there too
  return filesystem, root.rstrip('/')


def _fetch(local: pathlib.Path, url: str, under: str) -> None:
  filesystem, root = _filesystem(url)
  found = filesystem.find(f'{root}/{under}'.rstrip('/'), detail=True).items()
  for there, info in sorted(found, key=lambda item: _is_last(item[0])):
    name = there[len(root) :].lstrip('/')
    if not name or name.split('/')[0] in _ORBAX:
      continue
    here = local / name
    if here in _known and _known[here] == _state(here) and here.stat().st_size == info['size']:
      continue
    here.parent.mkdir(parents=True, exist_ok=True)
    beside = here.with_name(f'{here.name}.fetched')
    filesystem.get_file(there, str(beside))
    beside.replace(here)
    _known[here] = _state(here)


def _push(local: pathlib.Path, url: str, under: str) -> None:
  filesystem, root = _filesystem(url)
  there_now = [path for path in sorted((local / under).rglob('*')) if path.is_file()]
  for here in sorted(there_now, key=lambda path: _is_last(path.name)):
    name = here.relative_to(local).as_posix()
    state = _state(here)
    if here.name.startswith('.') or name.split('/')[0] in _ORBAX or _known.get(here) == state:
      continue
    filesystem.makedirs(os.path.dirname(f'{root}/{name}'), exist_ok=True)
    filesystem.put_file(str(here), f'{root}/{name}')
    _known[here] = state
  gone = [path for path in _known if path.is_relative_to(local / under) and not path.exists()]
  for here in gone:
    filesystem.rm_file(f'{root}/{here.relative_to(local).as_posix()}')
    del _known[here]


def _is_last(name: str) -> bool:
  """Returns whether a file says that the rest of its folder is whole."""
  return name.rpartition('/')[2] in ('meta.json', 'config.json')


def _state(file: pathlib.Path) -> tuple[int, int] | None:
  try:
    found = file.stat()
  except FileNotFoundError:
    return None
  return found.st_mtime_ns, found.st_size
