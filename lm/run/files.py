"""Writing files so that a full disk or a kill at any moment leaves them whole."""

import os
from pathlib import Path


def replace(path: Path, content: bytes):
  """Writes a file beside `path`, brings it to the disk and moves it there in one step."""
  beside = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  try:
    with open(beside, 'wb') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(beside, path)
  finally:
    beside.unlink(missing_ok=True)


def append(file: int, content: bytes):
  """Appends all of `content` to an open file descriptor, or nothing.

  Raises:
    OSError: the disk is full or broken.
  """
  size = os.fstat(file).st_size
  written = os.write(file, content)
  if written < len(content):
    os.ftruncate(file, size)
    raise OSError(f'the disk is full: {written} of {len(content)} bytes fitted')


def open_append(path: Path) -> int:
  """Opens a file for `append` and for reading back, made if missing."""
  return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
