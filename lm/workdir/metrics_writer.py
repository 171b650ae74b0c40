"""TensorBoard event files, written without a thread or a queue that could block training."""

import datetime
import json
import math
import os
import re
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import text as text_summary

from lm.errors import UserError
from lm.workdir import files


class EventFile:
  """One new event file in a directory; TensorBoard merges all that lie there.

  Args:
    directory: created if missing.
    start_step: TensorBoard forgets what earlier files say about this step and later ones.
  """

  def __init__(self, directory: Path, start_step: int):
    directory.mkdir(parents=True, exist_ok=True)
    # TensorBoard reads every file with 'tfevents' in its name, in the order of the names.
    self._file = open_append(directory / f'events.out.tfevents.{time.time_ns():020d}')
    self._write(Event(file_version='brain.Event:2'))
    self._write(Event(step=start_step, session_log=SessionLog(status=SessionLog.START)))

  def scalars(self, step: int, values: Mapping[str, float]):
    """Writes the scalars of a step as one event."""
    entries = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    self._write(Event(step=step, summary=Summary(value=entries)))

  def text(self, step: int, name: str, text: str):
    """Writes a text, shown as it is and not as Markdown."""
    indented = '\n'.join('    ' + line for line in text.splitlines())
    self._write(Event(step=step, summary=text_summary(name, indented)))

  def flush(self):
    """Brings what was written to the disk itself."""
    os.fsync(self._file)

  def close(self):
    os.close(self._file)

  def _write(self, event: Event):
    event.wall_time = time.time()
    content = event.SerializeToString()
    length = struct.pack('<Q', len(content))
    # The TFRecord format: length, its checksum, content, its checksum.
    checks = [struct.pack('<I', masked_crc32c(part)) for part in (length, content)]
    append(self._file, length + checks[0] + content + checks[1])


_SAMPLE = re.compile(
  r'^── (.*) · ([0-9]{1,15}) characters, ([0-9]{1,15}) of them the prompt ──\n', re.MULTILINE
)


class Metrics:
  """Numbers and samples by step, as lines, text files and TensorBoard events.

  Opening cuts away whatever lies after `resume_step`, so that a resumed run leaves the same record
  as one that was never interrupted.

  Args:
    workdir: the run's directory, on a local or mounted file system.
    resume_step: the step that was restored; None starts the record afresh.
    primary: whether this process writes; on the others every method does nothing.
  """

  def __init__(self, workdir: str | Path, resume_step: int | None, primary: bool = True):
    self._primary = primary
    if not primary:
      return
    last = -1 if resume_step is None else resume_step
    path = Path(workdir) / 'metrics.jsonl'
    self._samples = Path(workdir) / 'samples'
    self._samples.mkdir(parents=True, exist_ok=True)
    _cut(path, last)
    for sample in self._samples.glob('*.txt'):
      if sample.stem.isdecimal() and int(sample.stem) > last and sample.is_file():
        sample.unlink()
    self._lines = _Lines(path)
    self._board = EventFile(Path(workdir) / 'tensorboard', last + 1)

  def write(self, step: int, values: Mapping[str, float]):
    """Adds one line; `values` are anything that `float()` takes."""
    if self._primary:
      numbers = {name: float(value) for name, value in values.items()}
      self._lines.write({'step': step} | {k: _encode(v) for k, v in numbers.items()})
      _forgive(self._board.scalars, step, numbers)

  def text(self, step: int, name: str, text: str, prompt: str = ''):
    """Adds a sample to samples/STEP.txt; `text` is what follows `prompt`."""
    if self._primary:
      _forgive(self._text, step, name, _printable(prompt), _printable(text))

  def flush(self):
    """Brings everything to the disk itself."""
    if self._primary:
      self._lines.flush()
      _forgive(self._board.flush)

  def close(self):
    if self._primary:
      self.flush()
      self._lines.close()
      _forgive(self._board.close)

  def _text(self, step: int, name: str, prompt: str, text: str):
    whole = prompt + text
    header = f'── {name} · {len(whole)} characters, {len(prompt)} of them the prompt ──'
    with open(self._samples / f'{step}.txt', 'a', encoding='utf-8', newline='') as file:
      file.write(f'{header}\n{whole}\n\n')
    self._board.text(step, name, whole)


class EventLog:
  """What happened to the run, in events.jsonl; nothing is ever cut from it.

  Each line holds `time` (ISO 8601, UTC), `event` (start, init, too_long, restore, first_step,
  save, eval, preempted, nonfinite, done, error) and fields: `step` where there is one, and
  `seconds` where training had to wait. `lm.workdir.goodput` reads them.
  """

  def __init__(self, workdir: str | Path, primary: bool = True):
    self._lines = None
    if primary:
      Path(workdir).mkdir(parents=True, exist_ok=True)
      self._lines = _Lines(Path(workdir) / 'events.jsonl')

  def write(self, event: str, **fields: Any):
    """Adds one line and brings it to the disk; `fields` are JSON values."""
    if self._lines is not None:
      now = datetime.datetime.now(datetime.UTC).isoformat(timespec='milliseconds')
      self._lines.write({'time': now, 'event': event} | {k: _encode(v) for k, v in fields.items()})
      self._lines.flush()

  def close(self):
    if self._lines is not None:
      self._lines.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
  """Returns the objects of a JSON-lines file, without torn or foreign lines; [] if it is absent.

  Raises:
    UserError: it is a folder, or cannot be read.
  """
  objects = (_parse(line) for line in _read(path).split(b'\n'))
  return [entry for entry in objects if entry is not None]


def is_step(value: Any) -> bool:
  """Returns whether a value of a record is a step."""
  return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def number_of(value: Any) -> float | None:
  """Returns the number that a value of metrics.jsonl stands for, None where it stands for none."""
  if isinstance(value, bool) or not isinstance(value, int | float | str):
    return None
  if isinstance(value, str) and value not in ('NaN', 'Infinity', '-Infinity'):
    return None
  try:
    return float(value)
  except OverflowError:  # an integer of hundreds of digits
    return None


def _read(path: Path) -> bytes:
  if not path.exists():
    return b''
  try:
    return path.read_bytes()
  except OSError as e:
    raise UserError(f'{path} cannot be read: {e.strerror}') from e


def read_samples(path: Path) -> list[tuple[str, str, str]]:
  """Returns the (name, prompt, text) triples of a samples/STEP.txt; the last of a name counts."""
  whole = _read(path).decode('utf-8', errors='replace')
  found: dict[str, tuple[str, str, str]] = {}
  position = 0
  while (header := _SAMPLE.search(whole, position)) is not None:
    start, middle = header.end(), header.end() + int(header[3])
    position = start + int(header[2])
    found.pop(header[1], None)
    found[header[1]] = header[1], whole[start:middle], whole[middle:position]
  return list(found.values()) or [('', '', whole)]


class _Lines:
  """An append-only file of JSON lines."""

  def __init__(self, path: Path):
    self._file = open_append(path)
    size = os.fstat(self._file).st_size
    if size and os.pread(self._file, 1, size - 1) != b'\n':  # torn by a killed process
      append(self._file, b'\n')

  def write(self, entry: Mapping[str, Any]):
    line = json.dumps(entry, ensure_ascii=False, allow_nan=False, default=str) + '\n'
    # The replacement of a lone surrogate is the JSON escape of it.
    _forgive(append, self._file, line.encode('utf-8', errors='backslashreplace'))

  def flush(self):
    _forgive(os.fsync, self._file)

  def close(self):
    os.close(self._file)


def _cut(path: Path, last: int):
  """Keeps the whole lines up to step `last`."""
  if not path.exists():
    return
  kept = []
  for line in _read(path).split(b'\n'):
    entry = _parse(line)
    if entry is not None and is_step(entry.get('step')) and entry['step'] <= last:
      kept.append(line + b'\n')
  files.replace(path, b''.join(kept))


def _parse(line: bytes) -> dict[str, Any] | None:
  try:
    entry = json.loads(line)
  except (ValueError, RecursionError):
    return None
  return entry if isinstance(entry, dict) else None


def _encode(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {key: _encode(entry) for key, entry in value.items()}
  if isinstance(value, float) and not math.isfinite(value):
    return 'NaN' if math.isnan(value) else 'Infinity' if value > 0 else '-Infinity'
  return value


def _printable(text: str) -> str:
  """Spells out lone surrogates, which UTF-8 cannot hold."""
  return text.encode('utf-8', errors='backslashreplace').decode()


def _forgive(write, *args):
  """Calls `write`; a full or broken disk is reported and the run goes on."""
  try:
    write(*args)
  except OSError as e:
    logging.log_first_n(logging.ERROR, 'the run record is incomplete: %s', 3, e)


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
