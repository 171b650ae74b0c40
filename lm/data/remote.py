"""Local mirrors of folders in a bucket (gs://...).

A bucket can neither append to a file nor lock it, and arrays are memory-mapped from files. So
gs://... is a folder of the local cache; its file `.remote` holds the URL. `fetch` downloads what
changed and `push` uploads it. Only checkpoints are never mirrored: Orbax writes them to the bucket,
from all processes together.
"""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterator

from lm.errors import UserError
from lm.text import files

_SCHEME = 'gs://'
_URL_FILE = '.remote'
_ORBAX = ('checkpoints', 'damaged')  # folders that exist in the bucket alone

# Files pushed or fetched by this process: modification time and size.
_known: dict[pathlib.Path, tuple[int, int] | None] = {}


def is_remote(name: str | os.PathLike) -> bool:
  """Returns whether a name is the URL of a bucket."""
  return str(name).startswith(_SCHEME)


def local_mirror(name: str, mirrors: pathlib.Path, process: int = 0) -> pathlib.Path:
  """Returns the local folder for gs://BUCKET/FOLDER, created if missing; fetches nothing.

  Args:
    name: URL of the folder.
    mirrors: parent of all mirrors.
    process: index of a process; processes on one machine need separate mirrors.
  """
  url = name.rstrip('/')
  local = mirrors / f'remote-{hashlib.sha256(url.encode()).hexdigest()[:16]}-{process}'
  local.mkdir(parents=True, exist_ok=True)
  if remote_url(local) != url:
    files.write_atomic(local / _URL_FILE, [url.encode()])
  return local


def remote_url(local: pathlib.Path) -> str | None:
  """Returns the URL of a mirror, None for other folders."""
  file = local / _URL_FILE
  return file.read_text() if file.is_file() else None


def fetch(local: pathlib.Path, key: str = '--workdir', under: str = '') -> None:
  """Downloads new and changed files into a mirror, or a folder in it; ignores other folders.

  Raises:
    UserError: the bucket cannot be read.
  """
  url = remote_url(local)
  if url is None:
    return
  with _reported(key, url):
    filesystem, root = _filesystem(url)
    found = filesystem.find(f'{root}/{under}'.rstrip('/'), detail=True).items()
    for there, info in sorted(found, key=lambda item: _comes_last(item[0])):
      name = there[len(root) :].lstrip('/')
      here = local / name
      if not name or name.split('/')[0] in _ORBAX:
        continue
      if here in _known and _known[here] == _state(here) and here.stat().st_size == info['size']:
        continue
      here.parent.mkdir(parents=True, exist_ok=True)
      partial = here.with_name(f'{here.name}.fetched')
      filesystem.get_file(there, str(partial))
      partial.replace(here)
      _known[here] = _state(here)


def push(local: pathlib.Path, key: str = '--workdir', under: str = '') -> None:
  """Uploads new and changed files of a mirror, or a folder in it; ignores other folders.

  Raises:
    UserError: the bucket cannot be written.
  """
  url = remote_url(local)
  if url is None:
    return
  with _reported(key, url):
    filesystem, root = _filesystem(url)
    present = [path for path in sorted((local / under).rglob('*')) if path.is_file()]
    for here in sorted(present, key=lambda path: _comes_last(path.name)):
      name, state = here.relative_to(local).as_posix(), _state(here)
      if here.name.startswith('.') or name.split('/')[0] in _ORBAX or _known.get(here) == state:
        continue
      filesystem.makedirs(os.path.dirname(f'{root}/{name}'), exist_ok=True)
      filesystem.put_file(str(here), f'{root}/{name}')
      _known[here] = state
    removed = [path for path in _known if path.is_relative_to(local / under) and not path.exists()]
    for here in removed:
      filesystem.rm_file(f'{root}/{here.relative_to(local).as_posix()}')
      del _known[here]


@contextlib.contextmanager
def _reported(key: str, url: str) -> Iterator[None]:
  """Turns errors of the bucket's client into one line."""
  try:
    yield
  except ImportError as e:
    raise UserError(f"{key}={url} needs gcsfs: pip install -c constraints.txt -e '.[tpu]'") from e
  except Exception as e:  # clients raise many types for missing permissions and networks
    reason = ' '.join(f'{type(e).__name__}: {e}'.split())[:200]
    raise UserError(f'{key}={url} cannot be reached: {reason}') from e


def _filesystem(url: str):
  import fsspec

  filesystem, root = fsspec.core.url_to_fs(url)
  filesystem.invalidate_cache()  # other processes write there too
  return filesystem, root.rstrip('/')


def _comes_last(name: str) -> bool:
  """Returns whether a file marks the rest of its folder as complete."""
  return name.rpartition('/')[2] in ('meta.json', 'config.json')


def _state(file: pathlib.Path) -> tuple[int, int] | None:
  try:
    found = file.stat()
  except FileNotFoundError:
    return None
  return found.st_mtime_ns, found.st_size
