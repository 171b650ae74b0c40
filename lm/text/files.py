"""Files: what their names mean, their bytes as checked UTF-8, and writing them whole."""

import glob
import os
import pathlib
import re
from collections.abc import Iterable

from lm.errors import UserError

CONVERT = 'convert it, as with iconv -f ENCODING -t utf-8 (of Latin letters often latin1)'


def expand(name: str, key: str) -> pathlib.Path:
  """Returns the path of `name` with ~ and $VARIABLES replaced; `key` names it in errors.

  Raises:
    UserError: a variable is not set.
  """
  expanded = os.path.expandvars(name)
  unset = re.search(r'\$\{?(\w+)', expanded)
  if unset:
    told = '; it is the folder of data, see experiments/README.md' * (unset[1] == 'LM_DATA')
    raise UserError(f'{key}={name!r}: the environment variable {unset[1]} is not set{told}')
  return pathlib.Path(expanded).expanduser()


def find(names: str | Iterable[str], key: str) -> list[pathlib.Path]:
  """Returns the files that one or several names or glob patterns mean, in sorted order.

  Raises:
    UserError: a name or pattern finds no file.
  """
  found: list[pathlib.Path] = []
  for name in [names] if isinstance(names, str) else names:
    path = expand(name, key)
    matches = [path] if path.exists() else map(pathlib.Path, glob.glob(str(path), recursive=True))
    files = sorted(p for p in matches if p.is_file())
    if not files:
      a_folder = '; it is a folder, name its files as in FOLDER/*.txt' if path.is_dir() else ''
      raise UserError(f'{key}={name!r}: no such file{a_folder}')
    found += files
  return found


def replace(path: pathlib.Path, pieces: Iterable[bytes]) -> None:
  """Writes a file beside `path`, brings it to the disk and moves it there in one step.

  Raises:
    OSError: the disk is full or broken; what was at `path` is there still.
  """
  beside = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  try:
    with open(beside, 'wb') as file:
      file.writelines(pieces)
      file.flush()
      os.fsync(file.fileno())
    os.replace(beside, path)
  finally:
    beside.unlink(missing_ok=True)


def decode(data: bytes, file: pathlib.Path, offset: int = 0, line: int = 1) -> str:
  """Returns UTF-8 bytes, found at `offset` of a file and on its line `line`, as text.

  Raises:
    UserError: they are not UTF-8, or hold a NUL and so are no text.
  """
  nul = data.find(b'\0')
  if nul >= 0:
    raise UserError(f'{file} is not a text file: it has a NUL at byte {offset + nul}')
  try:
    return data.decode('utf-8')
  except UnicodeDecodeError as e:
    line += data.count(b'\n', 0, e.start)
    raise UserError(
      f'{file} is not UTF-8 at byte {offset + e.start}, in line {line}; {CONVERT}'
    ) from e
