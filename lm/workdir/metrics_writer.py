"""Writers and readers of a run's metrics, samples and events.

The writers use no thread and no queue. If the disk is full or broken, lines are lost and the run
continues.
"""

import datetime
import json
import math
import os
import re
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from absl import logging
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import text as text_summary

from lm.errors import UserError
from lm.workdir import files

_SAMPLE = re.compile(
  r'^── (.*) · ([0-9]{1,15}) characters, ([0-9]{1,15}) of them the prompt ──\n', re.MULTILINE
)


class Metrics:
  """A writer of metrics and samples by step: JSON lines, text files and TensorBoard events.

  The constructor removes all records after `resume_step`, so that a resumed run leaves the same
  files as an uninterrupted one.

  Args:
    workdir: the run's directory, on a local or mounted file system.
    resume_step: the restored step; None for a new run.
    primary: whether this process writes; otherwise the methods do nothing.
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
    for step, sample in sample_files(self._samples).items():
      if step > last:
        sample.unlink()
    self._lines = AppendOnlyFile(path)
    self._tensorboard = _EventFile(Path(workdir) / 'tensorboard', last + 1)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Appends the values of a step by metric name; `float()` must accept each value."""
    if self._primary:
      scalars = {name: float(value) for name, value in values.items()}
      _forgive(self._lines.append, json_line({'step': step} | scalars))
      entries = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
      _forgive(self._tensorboard.write, Event(step=step, summary=Summary(value=entries)))

  def text(self, step: int, name: str, text: str, prompt: str = '') -> None:
    """Appends a sample to samples/STEP.txt; `text` continues `prompt`."""
    if self._primary:
      _forgive(self._text, step, name, _printable(prompt), _printable(text))

  def flush(self) -> None:
    """Flushes the files to the disk (fsync)."""
    if self._primary:
      self._lines.flush()
      self._tensorboard.flush()

  def close(self) -> None:
    """Flushes and closes the files."""
    if self._primary:
      self.flush()
      self._lines.close()
      self._tensorboard.close()

  def _text(self, step: int, name: str, prompt: str, text: str) -> None:
    full = prompt + text
    header = f'── {name} · {len(full)} characters, {len(prompt)} of them the prompt ──'
    with open(self._samples / f'{step}.txt', 'a', encoding='utf-8', newline='') as file:
      file.write(f'{header}\n{full}\n\n')
    # Markdown shows indented lines verbatim.
    indented = '\n'.join('    ' + line for line in full.splitlines())
    self._tensorboard.write(Event(step=step, summary=text_summary(name, indented)))


class EventLog:
  """A writer of events.jsonl, which contains the events of all starts of a run.

  Each line has `time` (ISO 8601, UTC), `event` and optional fields. The events are start,
  warm_start, note, schedule, restore, first_step, save, eval, preempted, nonfinite, stopped_early,
  done, error, and, for a workdir by `lm.vectors import`, imported. The field `step` is the training
  step. The field `seconds` is the time that training waited for the event;
  `lm.workdir.run_data.goodput` sums it.
  """

  def __init__(self, workdir: str | Path, primary: bool = True):
    self._lines = None
    if primary:
      Path(workdir).mkdir(parents=True, exist_ok=True)
      self._lines = AppendOnlyFile(Path(workdir) / 'events.jsonl')

  def write(self, event: str, **fields: Any) -> None:
    """Appends one line and flushes it to the disk; `fields` are JSON values."""
    if self._lines is not None:
      now = datetime.datetime.now(datetime.UTC).isoformat(timespec='milliseconds')
      _forgive(self._lines.append, json_line({'time': now, 'event': event} | fields))
      self._lines.flush()

  def close(self) -> None:
    """Closes the file."""
    if self._lines is not None:
      self._lines.close()


class AppendOnlyFile:
  """A file of complete records.

  If a killed process left the last line incomplete, the constructor appends a newline to it.
  """

  def __init__(self, path: Path):
    self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    size = os.fstat(self._file).st_size
    if size and os.pread(self._file, 1, size - 1) != b'\n':
      self.append(b'\n')

  def append(self, content: bytes) -> None:
    """Appends all of `content` or nothing.

    Raises:
      OSError: the disk is full or broken.
    """
    size = os.fstat(self._file).st_size
    count = os.write(self._file, content)
    if count < len(content):
      os.ftruncate(self._file, size)
      raise OSError(f'the disk is full: {count} of {len(content)} bytes were stored')

  def flush(self) -> None:
    """Flushes the file to the disk (fsync)."""
    _forgive(os.fsync, self._file)

  def close(self) -> None:
    """Closes the file."""
    _forgive(os.close, self._file)


class _EventFile(AppendOnlyFile):
  """A new TensorBoard event file; TensorBoard merges all files of the directory.

  Args:
    directory: created if missing.
    start_step: the first step of this file. TensorBoard drops the events that earlier files have
      at this step and after it.
  """

  def __init__(self, directory: Path, start_step: int):
    directory.mkdir(parents=True, exist_ok=True)
    # TensorBoard reads all files with 'tfevents' in their names, sorted by name.
    super().__init__(directory / f'events.out.tfevents.{time.time_ns():020d}')
    self.write(Event(file_version='brain.Event:2'))
    self.write(Event(step=start_step, session_log=SessionLog(status=SessionLog.START)))

  def write(self, event: Event) -> None:
    """Appends an event as a TFRecord: length, its checksum, content, its checksum."""
    event.wall_time = time.time()
    content = event.SerializeToString()
    parts = struct.pack('<Q', len(content)), content
    self.append(b''.join(part + struct.pack('<I', masked_crc32c(part)) for part in parts))


def json_line(entry: Mapping[str, Any]) -> bytes:
  """Returns an object as a line of JSON; NaN and infinite floats become strings, such as 'NaN'."""
  line = json.dumps(_finite(entry), ensure_ascii=False, allow_nan=False, default=str) + '\n'
  # 'backslashreplace' encodes a lone surrogate as \udXXX, which is also its escape in JSON.
  return line.encode('utf-8', errors='backslashreplace')


def read_lines(path: Path) -> list[dict[str, Any]]:
  """Returns the objects in the intact lines of a JSON-lines file; [] for a missing file.

  Raises:
    UserError: the path is a folder, or is not readable.
  """
  objects = (_parse(line) for line in read_bytes(path).split(b'\n'))
  return [entry for entry in objects if entry is not None]


def read_bytes(path: Path) -> bytes:
  """Returns the content of a file; b'' for a missing file.

  Raises:
    UserError: the path is a folder, or is not readable.
  """
  try:
    return path.read_bytes() if path.exists() else b''
  except OSError as e:
    raise UserError(f'{path} cannot be read: {e.strerror}') from e


def sample_files(folder: Path) -> dict[int, Path]:
  """Returns the files STEP.txt of a folder by step."""
  return {int(p.stem): p for p in folder.glob('*.txt') if p.stem.isdecimal() and p.is_file()}


def read_samples(path: Path) -> list[tuple[str, str, str]]:
  """Returns (name, prompt, text) of the last sample of each name in samples/STEP.txt."""
  content = read_bytes(path).decode('utf-8', errors='replace')
  found: dict[str, tuple[str, str, str]] = {}
  position = 0
  while (header := _SAMPLE.search(content, position)) is not None:
    name, start, middle = header[1], header.end(), header.end() + int(header[3])
    position = start + int(header[2])
    found.pop(name, None)
    found[name] = name, content[start:middle], content[middle:position]
  return list(found.values()) or [('', '', content)]


def is_step(value: Any) -> TypeGuard[int]:
  """Returns whether a JSON value is a valid step."""
  return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def to_float(value: Any) -> float | None:
  """Returns a JSON value as a float, also 'NaN' and 'Infinity'; None if it is not a number."""
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  if not is_number and value not in ('NaN', 'Infinity', '-Infinity'):
    return None
  try:
    return float(value)
  except OverflowError:  # an integer of hundreds of digits
    return None


def _cut(path: Path, last: int) -> None:
  """Removes the damaged lines and those after step `last`."""
  if path.exists():
    lines = ((line, (_parse(line) or {}).get('step')) for line in read_bytes(path).split(b'\n'))
    kept = [line + b'\n' for line, step in lines if is_step(step) and step <= last]
    files.replace(path, b''.join(kept))


def _parse(line: bytes) -> dict[str, Any] | None:
  try:
    entry = json.loads(line)
  except (ValueError, RecursionError):
    return None
  return entry if isinstance(entry, dict) else None


def _finite(value: Any) -> Any:
  """Returns a JSON value with a string in place of each float that is not finite."""
  if isinstance(value, Mapping):
    return {key: _finite(entry) for key, entry in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(entry) for entry in value]
  if isinstance(value, float) and not math.isfinite(value):
    return 'NaN' if math.isnan(value) else 'Infinity' if value > 0 else '-Infinity'
  return value


def _printable(text: str) -> str:
  """Returns a text with escapes for lone surrogates, which UTF-8 cannot encode."""
  return text.encode('utf-8', errors='backslashreplace').decode()


def _forgive(write: Callable[..., None], *args: Any) -> None:
  """Calls `write` and logs an error of the disk instead of raising it."""
  try:
    write(*args)
  except OSError as e:
    logging.log_first_n(logging.ERROR, "the run's metrics or events are incomplete: %s", 3, e)
