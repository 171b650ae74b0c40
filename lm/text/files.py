"""Text files: names and glob patterns, checked UTF-8, atomic writes."""

import codecs
import glob
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from lm.errors import UserError

_SURROGATE = re.compile('[\ud800-\udfff]')
CONVERT = 'convert it, as with iconv -f ENCODING -t utf-8 (European text is often latin1)'


def expand_path(name: str, key: str) -> pathlib.Path:
  """Returns the path of `name` with ~ and $VARIABLES expanded; errors name `key`.

  Raises:
    UserError: a variable is not set.
  """
  expanded = os.path.expandvars(name)
  unset = re.search(r'\$\{?(\w+)', expanded)
  if unset:
    hint = '; it is the folder of data, see experiments/README.md' * (unset[1] == 'LM_DATA')
    raise UserError(f'{key}={name!r}: the environment variable {unset[1]} is not set{hint}')
  return pathlib.Path(expanded).expanduser()


def find_files(names: str | Iterable[str], key: str) -> list[pathlib.Path]:
  """Returns the files that match one or more names or glob patterns, sorted for each pattern.

  Raises:
    UserError: a name or pattern matches no file.
  """
  matches: list[pathlib.Path] = []
  for name in [names] if isinstance(names, str) else names:
    path = expand_path(name, key)
    files = sorted(p for p in glob_files(path) if p.is_file())
    if not files:
      hint = '; it is a folder, name its files as in FOLDER/*.txt' if path.is_dir() else ''
      raise UserError(f'{key}={name!r}: no such file{hint}')
    matches += files
  return matches


def glob_files(path: pathlib.Path) -> list[pathlib.Path]:
  """Returns the matches of a path or glob pattern.

  Only the part after the last existing folder is a pattern: in 'run[1]/*.txt' the existing folder
  'run[1]' does not match 'run1'.
  """
  if path.exists():
    return [path]
  literal = next((folder for folder in path.parents if folder.is_dir()), pathlib.Path())
  pattern = pathlib.Path(glob.escape(str(literal)), path.relative_to(literal))
  return list(map(pathlib.Path, glob.glob(str(pattern), recursive=True)))


def write_atomic(path: pathlib.Path, chunks: Iterable[bytes | memoryview]) -> None:
  """Writes a file atomically: to a temporary name, flushed to the disk, then renamed to `path`.

  Raises:
    OSError: the disk is full or broken; an existing file at `path` stays.
  """
  temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  temporary.unlink(missing_ok=True)  # a link of this name could lead elsewhere
  try:
    with open(temporary, 'xb') as file:
      file.writelines(chunks)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def read_lines(
  file: BinaryIO, name: str | pathlib.Path, longest: int, first: int = 1
) -> Iterator[bytes]:
  """Yields the lines of a file from its current position, with their line ends.

  Args:
    file: open for reading.
    name: its name in errors.
    longest: maximum bytes of a line, which bounds the memory.
    first: the line number of the first line.

  Raises:
    UserError: a line is longer.
  """
  for n, line in enumerate(iter(lambda: file.readline(longest + 1), b''), first):
    if len(line) > longest:
      raise UserError(
        f'{name}, line {n}: more than {longest:,} bytes without a line end; its line ends are '
        'lost, or it has another format'
      )
    yield line


def text_offset(data: bytes, file: pathlib.Path) -> int:
  """Returns the offset of the text in a file: after a UTF-8 byte order mark, or 0.

  Args:
    data: the first bytes of the file, or all.
    file: its name.

  Raises:
    UserError: the file is UTF-16.
  """
  if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
    raise UserError(
      f'{file} is not UTF-8 but UTF-16, by its first bytes; convert it, as with iconv -f utf-16 '
      '-t utf-8'
    )
  return len(codecs.BOM_UTF8) if data[:3] == codecs.BOM_UTF8 else 0


def decode(data: bytes, file: pathlib.Path, offset: int = 0, line: int = 1) -> str:
  """Returns the text of UTF-8 bytes of a file.

  Errors name positions in the file: `data` begins at byte `offset`, in line number `line`. At
  offset 0 a byte order mark is skipped.

  Raises:
    UserError: the bytes are not UTF-8, or contain a NUL and so are not text.
  """
  if not offset:
    offset = text_offset(data, file)
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


def lone_surrogate(text: str) -> str:
  """Returns the description of the first lone surrogate in a text, or ''."""
  match = None if text.isascii() else _SURROGATE.search(text)
  if match is None:
    return ''
  before = text[max(match.start() - 20, 0) : match.start()]
  return (
    f'has the lone surrogate {match[0]!a} at character {match.start()}, after {before!a}: half a '
    'character, which UTF-8 cannot encode; correct the source'
  )
