"""Files: what their names mean, their bytes as checked UTF-8, and writing them whole."""

import codecs
import glob
import itertools
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from lm.errors import UserError

_SURROGATE = re.compile('[\ud800-\udfff]')
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
    files = sorted(p for p in matches(path) if p.is_file())
    if not files:
      a_folder = '; it is a folder, name its files as in FOLDER/*.txt' if path.is_dir() else ''
      raise UserError(f'{key}={name!r}: no such file{a_folder}')
    found += files
  return found


def matches(path: pathlib.Path) -> list[pathlib.Path]:
  """Returns what a path or glob pattern finds.

  Folders that exist are taken by their names, from the root on, and only what follows is a pattern:
  in 'run[1]/*.txt' the folder 'run[1]' is not 'run1'.
  """
  if path.exists():
    return [path]
  literal = next((folder for folder in path.parents if folder.is_dir()), pathlib.Path())
  pattern = path.relative_to(literal)
  found = glob.glob(str(pathlib.Path(glob.escape(str(literal)), pattern)), recursive=True)
  return list(map(pathlib.Path, found))


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


def lines(
  file: BinaryIO, name: str | pathlib.Path, longest: int, first: int = 1
) -> Iterator[bytes]:
  """Yields the lines of a file from where it stands, each with its line end.

  Args:
    file: open for reading.
    name: what errors call it.
    longest: bytes that a line may have; no more are held.
    first: the number of the first line.

  Raises:
    UserError: a line is longer.
  """
  for number in itertools.count(first):
    line = file.readline(longest + 1)
    if len(line) > longest:
      raise UserError(
        f'{name}, line {number}: more than {longest:,} bytes without a line end; the line ends are '
        'lost, or it is no file of this kind'
      )
    if not line:
      return
    yield line


def text_start(data: bytes, file: pathlib.Path) -> int:
  """Returns where the text of a file begins: after the mark that some programs begin UTF-8 with.

  Args:
    data: the first bytes of the file, or all.
    file: its name.

  Raises:
    UserError: they are of another encoding.
  """
  if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
    raise UserError(
      f'{file} is not UTF-8 but UTF-16, by its first bytes; convert it, as with iconv -f utf-16 '
      '-t utf-8'
    )
  return len(codecs.BOM_UTF8) if data[:3] == codecs.BOM_UTF8 else 0


def decode(data: bytes, file: pathlib.Path, offset: int = 0, line: int = 1) -> str:
  """Returns UTF-8 bytes, found at `offset` of a file and on its line `line`, as text.

  At offset 0 a byte order mark is left out.

  Raises:
    UserError: they are not UTF-8, or hold a NUL and so are no text.
  """
  if not offset:
    offset = text_start(data, file)
    data = data[offset:]
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


def has_lone_surrogate(text: str) -> str:
  """Returns what to say of the first lone surrogate in a text, where there is one, else ''."""
  half = None if text.isascii() else _SURROGATE.search(text)
  if half is None:
    return ''
  near = text[max(half.start() - 20, 0) : half.start()]
  return (
    f'has the lone surrogate {half[0]!a} at character {half.start()}, after {near!a}: half a '
    'character, which no file can hold; mend the source'
  )
