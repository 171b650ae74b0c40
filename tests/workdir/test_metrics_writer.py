import json
import math
import os
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from lm.workdir import files, metrics_writer
from lm.workdir.metrics_writer import EventLog, Metrics


def _lines(workdir, name='metrics.jsonl'):
  return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def _crc32c(content):
  """Returns the Castagnoli checksum by its definition, bit by bit."""
  rest = 0xFFFFFFFF
  for byte in content:
    rest ^= byte
    for _ in range(8):
      rest = (rest >> 1) ^ (0x82F63B78 if rest & 1 else 0)
  return rest ^ 0xFFFFFFFF


def _masked(content):
  crc = _crc32c(content)
  return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _board(workdir):
  """Returns the records of the event files; checks every checksum."""
  events = []
  for path in sorted((workdir / 'tensorboard').iterdir()):
    rest = path.read_bytes()
    while rest:
      (length,) = struct.unpack('<Q', rest[:8])
      content = rest[12 : 12 + length]
      assert struct.unpack('<I', rest[8:12]) == (_masked(rest[:8]),)
      assert struct.unpack('<I', rest[12 + length : 16 + length]) == (_masked(content),)
      events.append(Event.FromString(content))
      rest = rest[16 + length :]
  return events


def test_metrics_round_trip_exactly(tmp_path):
  values = {'train/loss': 0.1 + 0.2, 'train/tiny': 5e-324, 'eval/x/loss': math.pi * 1e300}
  metrics = Metrics(tmp_path, None)
  metrics.write(7, values)
  metrics.write(8, {'train/loss': np.float32(0.1)})
  metrics.close()
  assert _lines(tmp_path) == [
    {'step': 7} | values,
    {'step': 8, 'train/loss': float(np.float32(0.1))},
  ]


def test_values_that_are_not_finite_are_written_as_valid_json(tmp_path):
  metrics = Metrics(tmp_path, None)
  metrics.write(1, {'a': float('nan'), 'b': float('inf'), 'c': -float('inf')})
  metrics.close()

  def refuse(constant):
    raise AssertionError(f'{constant} is not JSON')

  entry = json.loads((tmp_path / 'metrics.jsonl').read_text(), parse_constant=refuse)
  assert math.isnan(float(entry['a']))
  assert (float(entry['b']), float(entry['c'])) == (math.inf, -math.inf)


def test_a_resume_removes_later_lines_and_an_incomplete_line(tmp_path):
  metrics = Metrics(tmp_path, None)
  for step in range(1, 6):
    metrics.write(step, {'train/loss': float(step)})
    metrics.text(step, 'sample', 'text')
  metrics.close()
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 2, "train/lo')
  metrics = Metrics(tmp_path, resume_step=3)
  assert [entry['step'] for entry in _lines(tmp_path)] == [1, 2, 3]
  assert sorted(p.name for p in (tmp_path / 'samples').iterdir()) == ['1.txt', '2.txt', '3.txt']
  metrics.write(4, {'train/loss': 40.0})
  metrics.close()
  assert _lines(tmp_path)[-1] == {'step': 4, 'train/loss': 40.0}


def test_a_new_run_replaces_old_metrics(tmp_path):
  Metrics(tmp_path, None).write(1, {'train/loss': 1.0})
  Metrics(tmp_path, None).close()
  assert _lines(tmp_path) == []


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='needs SIGKILL')
def test_a_run_resumes_after_its_writer_was_killed(tmp_path):
  code = (
    'import itertools, sys; from lm.workdir.metrics_writer import Metrics\n'
    'm = Metrics(sys.argv[1], None)\n'
    'for step in itertools.count(1): m.write(step, {"train/loss": 1 / step})'
  )
  process = subprocess.Popen([sys.executable, '-c', code, str(tmp_path)])
  path = tmp_path / 'metrics.jsonl'
  deadline = time.monotonic() + 60
  while not (path.exists() and path.stat().st_size > 20_000):
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  process.kill()
  process.wait()
  Metrics(tmp_path, resume_step=100).close()
  assert _lines(tmp_path) == [{'step': s, 'train/loss': 1 / s} for s in range(1, 101)]


def test_tensorboard_files_have_the_scalars_and_purge_removed_steps(tmp_path):
  assert _crc32c(b'123456789') == 0xE3069283  # the published check value
  metrics = Metrics(tmp_path, None)
  metrics.write(1, {'train/loss': 0.5, 'train/norm': 2.0})
  metrics.text(1, 'sample', '床前明月光')
  metrics.close()
  Metrics(tmp_path, resume_step=1).close()
  version, begin, scalars, text, version_again, resumed = _board(tmp_path)
  assert version.file_version == version_again.file_version == 'brain.Event:2'
  assert (begin.step, begin.session_log.status) == (0, SessionLog.START)
  assert {v.tag: v.simple_value for v in scalars.summary.value} == {
    'train/loss': 0.5,
    'train/norm': 2.0,
  }
  assert '床前明月光' in text.summary.value[0].tensor.string_val[0].decode()
  assert (resumed.step, resumed.session_log.status) == (2, SessionLog.START)


def test_samples_of_any_text_round_trip(tmp_path):
  forged = 'x\n── b · 3 characters, 1 of them the prompt ──\nabc\r\n\n\n床前\x00'
  metrics = Metrics(tmp_path, None)
  metrics.text(3, 'a', forged, prompt='床前明月光\n')
  metrics.text(3, 'b', 'plain')
  metrics.text(3, 'lone', '\udc80')
  metrics.close()
  assert metrics_writer.read_samples(tmp_path / 'samples/3.txt') == [
    ('a', '床前明月光\n', forged),
    ('b', '', 'plain'),
    ('lone', '', '\\udc80'),
  ]


def test_only_the_primary_process_writes(tmp_path):
  metrics, events = Metrics(tmp_path, None, primary=False), EventLog(tmp_path, primary=False)
  metrics.write(1, {'a': 1.0})
  metrics.text(1, 'a', 'b')
  metrics.flush()
  events.write('start')
  metrics.close()
  events.close()
  assert list(tmp_path.iterdir()) == []


def test_events_are_appended_after_restarts_and_after_an_incomplete_line(tmp_path):
  events = EventLog(tmp_path)
  events.write('start', experiment='床前', bad=float('nan'), text='\udc80')
  events.close()
  with open(tmp_path / 'events.jsonl', 'a') as file:
    file.write('{"time": "20')
  events = EventLog(tmp_path)
  events.write('done', step=3)
  events.close()
  start, done = metrics_writer.read_lines(tmp_path / 'events.jsonl')
  assert (start['event'], start['experiment'], start['bad']) == ('start', '床前', 'NaN')
  assert start['time'].endswith('+00:00')
  assert (done['event'], done['step']) == ('done', 3)


def test_a_line_that_does_not_fit_on_the_disk_is_removed(tmp_path, monkeypatch):
  file = metrics_writer.AppendOnlyFile(tmp_path / 'lines')
  file.append(b'first\n')
  write = os.write
  with monkeypatch.context() as patch:
    patch.setattr(os, 'write', lambda file, content: write(file, content[:3]))
    with pytest.raises(OSError, match='full'):
      file.append(b'partial\n')
  file.append(b'next\n')
  file.close()
  assert (tmp_path / 'lines').read_bytes() == b'first\nnext\n'


def test_a_full_disk_loses_lines_but_raises_nothing(tmp_path, monkeypatch):
  metrics = Metrics(tmp_path, None)

  def full(*_):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(os, 'write', full)
    metrics.write(1, {'a': 1.0})
  metrics.write(2, {'a': 2.0})
  metrics.close()
  assert [entry['step'] for entry in _lines(tmp_path)] == [2]


def test_replacing_a_file_leaves_no_other_file(tmp_path):
  (tmp_path / 'a').write_text('old')
  files.replace(tmp_path / 'a', b'new')
  assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {'a': 'new'}


def test_a_flush_syncs_lines_and_tensorboard(tmp_path, monkeypatch):
  synced = []
  monkeypatch.setattr(os, 'fsync', lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
  metrics, events = Metrics(tmp_path, None), EventLog(tmp_path)
  metrics.flush()
  (board,) = (tmp_path / 'tensorboard').iterdir()
  assert synced == [(tmp_path / 'metrics.jsonl').stat().st_ino, board.stat().st_ino]
  events.write('start')
  assert synced[2:] == [(tmp_path / 'events.jsonl').stat().st_ino]
  metrics.close()
  events.close()
