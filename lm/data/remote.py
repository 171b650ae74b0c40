"""Local mirrors of folders in a bucket (gs://...).

A bucket can neither append to a file nor lock it, and arrays are memory-mapped from files. A folder
gs://... therefore has a mirror in the local cache, whose file `.remote` contains the URL. `fetch`
downloads changed files and `push` uploads them. Checkpoints are not mirrored, as Orbax writes them
to the bucket from all processes.
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
# The URL of each mirror that this process uses. The file `.remote` is for people: one that came
# with the workdir of a stranger must not send the next run to a bucket.
_urls: dict[pathlib.Path, str] = {}


def is_remote(name: str | os.PathLike) -> bool:
  """Returns whether a name is the URL of a bucket."""
  return str(name).startswith(_SCHEME)


def local_mirror(name: str, mirrors: pathlib.Path, process: int = 0) -> pathlib.Path:
  """Returns the local folder for gs://BUCKET/FOLDER, created if missing, without fetching files.

  Args:
    name: URL of the folder.
    mirrors: parent of all mirrors.
    process: index of a process; processes on one machine need separate mirrors.
  """
  url = name.rstrip('/')
  local = mirrors / f'remote-{hashlib.sha256(url.encode()).hexdigest()[:16]}-{process}'
  local.mkdir(parents=True, exist_ok=True)
  if _urls.get(local) != url:
    files.write_atomic(local / _URL_FILE, [url.encode()])
    _urls[local] = url
  return local


def remote_url(local: pathlib.Path) -> str | None:
  """Returns the URL of a mirror, None for other folders."""
  return _urls.get(local)


def fetch(local: pathlib.Path, key: str = '--workdir', under: str = '') -> None:
  """Downloads new and changed files into a mirror, or into its subfolder `under`.

  Does nothing if `local` is not a mirror.

  Raises:
    UserError: the bucket cannot be read.
  """
  url = remote_url(local)
  if url is None:
    return
  with _reported(key, url):
    filesystem, root = _filesystem(url)
    sizes = filesystem.find(f'{root}/{under}'.rstrip('/'), detail=True)
    for path in sorted(sizes, key=_comes_last):
      name = path[len(root) :].lstrip('/')
      file = local / name
      state = _state(file)
      known = state and _known.get(file) == state and state[1] == sizes[path]['size']
      if known or not name or name.split('/')[0] in _ORBAX:
        continue
      if '..' in name.split('/'):
        raise UserError(f'{path} leads out of its folder')
      file.parent.mkdir(parents=True, exist_ok=True)
      partial = file.with_name(f'{file.name}.fetched')
      filesystem.get_file(path, str(partial))
      partial.replace(file)
      _known[file] = _state(file)


def push(local: pathlib.Path, key: str = '--workdir', under: str = '') -> None:
  """Uploads new and changed files of a mirror, or of its subfolder `under`.

  Does nothing if `local` is not a mirror.

  Raises:
    UserError: the bucket cannot be written.
  """
  url = remote_url(local)
  if url is None:
    return
  with _reported(key, url):
    filesystem, root = _filesystem(url)
    present = [path for path in sorted((local / under).rglob('*')) if path.is_file()]
    for file in sorted(present, key=lambda path: _comes_last(path.name)):
      name, state = file.relative_to(local).as_posix(), _state(file)
      if file.name.startswith('.') or name.split('/')[0] in _ORBAX or _known.get(file) == state:
        continue
      filesystem.makedirs(os.path.dirname(f'{root}/{name}'), exist_ok=True)
      filesystem.put_file(str(file), f'{root}/{name}')
      _known[file] = state
    removed = [path for path in _known if path.is_relative_to(local / under) and not path.exists()]
    for file in removed:
      filesystem.rm_file(f'{root}/{file.relative_to(local).as_posix()}')
      del _known[file]


@contextlib.contextmanager
def _reported(key: str, url: str) -> Iterator[None]:
  """Raises errors of the bucket's client as UserError, in one line."""
  try:
    yield
  except UserError:
    raise
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
  with contextlib.suppress(FileNotFoundError):
    return file.stat().st_mtime_ns, file.stat().st_size
  return None
