"""TensorBoard event files, written without a thread or a queue that could block training."""

import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import text as text_summary

from lm.run import files


class EventFile:
  """One new event file in a directory; TensorBoard merges all that lie there.

  Args:
    directory: created if missing.
    start_step: TensorBoard forgets what earlier files say about this step and later ones.
  """

  def __init__(self, directory: Path, start_step: int):
    directory.mkdir(parents=True, exist_ok=True)
    # TensorBoard reads every file with 'tfevents' in its name, in the order of the names.
    self._file = files.open_append(directory / f'events.out.tfevents.{time.time_ns():020d}')
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
    files.append(self._file, length + checks[0] + content + checks[1])
