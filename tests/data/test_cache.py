import errno
import json
import multiprocessing
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import pytest

from lm.data import cache
from lm.errors import UserError


def write(place):
  (place / 'data').write_bytes(b'complete')
  return {'answer': 42}


def never(place):
  raise AssertionError('built although it exists')


def test_an_artifact_is_built_once(tmp_path):
  place, meta = cache.get_or_build(tmp_path, 'artifact', write)
  assert place == tmp_path / 'artifact' and (place / 'data').read_bytes() == b'complete'
  assert meta['answer'] == 42
  assert cache.get_or_build(tmp_path, 'artifact', never) == (place, meta)
  assert json.loads((place / 'meta.json').read_text()) == meta


@pytest.mark.parametrize('damage', ['cut', 'gone', 'no meta', 'torn meta'])
def test_a_damaged_artifact_is_rebuilt_with_a_warning(tmp_path, capsys, damage):
  place, _ = cache.get_or_build(tmp_path, 'artifact', write)
  if damage == 'cut':
    (place / 'data').write_bytes(b'who')
  elif damage == 'gone':
    (place / 'data').unlink()
  elif damage == 'no meta':
    (place / 'meta.json').unlink()
  else:
    (place / 'meta.json').write_text('{"files": {')
  cache.get_or_build(tmp_path, 'artifact', write)
  assert (place / 'data').read_bytes() == b'complete'
  assert f'{place} is damaged' in capsys.readouterr().err


def test_a_failed_build_leaves_no_files(tmp_path):
  def fail(place):
    write(place)
    raise ZeroDivisionError

  with pytest.raises(ZeroDivisionError):
    cache.get_or_build(tmp_path, 'artifact', fail)
  assert [p.name for p in tmp_path.iterdir()] == ['.artifact.lock']


def test_a_full_disk_is_reported_in_one_line(tmp_path):
  def fill(place):
    write(place)
    raise OSError(errno.ENOSPC, 'No space left on device')

  with pytest.raises(UserError, match=r'data\.cache=.*: the disk is full'):
    cache.get_or_build(tmp_path, 'artifact', fill)
  assert [p.name for p in tmp_path.iterdir()] == ['.artifact.lock']
  cache.get_or_build(tmp_path, 'artifact', write)


def test_saving_an_array_keeps_the_errno_of_a_full_disk(tmp_path):
  # A limit on the size of files acts like a full disk: both cut a write short.
  program = (
    'import pathlib, resource, signal, sys, numpy as np\n'
    'from lm.data import cache\n'
    'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
    'resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n'
    'def build(place):\n'
    "  cache.save_array(place / 'a.npy', np.arange(100_000))\n"
    '  return {}\n'
    "cache.get_or_build(pathlib.Path(sys.argv[1]), 'artifact', build)\n"
  )
  assert hasattr(resource, 'RLIMIT_FSIZE')
  run = subprocess.run([sys.executable, '-c', program, tmp_path], capture_output=True, text=True)
  assert 'UserError: data.cache=' in run.stderr and 'the disk is full' in run.stderr
  assert [p.name for p in tmp_path.iterdir()] == ['.artifact.lock']


def test_a_cache_that_cannot_be_created_is_reported(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=r'data\.cache=.*file'):
    cache.get_or_build(tmp_path / 'file', 'artifact', write)


def build_slowly(place):
  with (place.parent / 'builders').open('a') as f:
    f.write(f'{os.getpid()}\n')
  (place / 'data').write_bytes(b'half')
  # Until the other process requests the same artifact.
  while len((place.parent / 'arrived').read_text().split()) < 2:
    time.sleep(0.01)
  return write(place)


def in_process(tmp_path):
  with (pathlib.Path(tmp_path) / 'arrived').open('a') as f:
    f.write(f'{os.getpid()}\n')
  cache.get_or_build(pathlib.Path(tmp_path), 'artifact', build_slowly)


def test_two_processes_at_once_build_one_artifact(tmp_path):
  context = multiprocessing.get_context('spawn')
  processes = [context.Process(target=in_process, args=(str(tmp_path),)) for _ in range(2)]
  for process in processes:
    process.start()
  for process in processes:
    process.join(60)
    assert process.exitcode == 0
  assert len((tmp_path / 'builders').read_text().split()) == 1
  assert (tmp_path / 'artifact' / 'data').read_bytes() == b'complete'


def test_files_of_a_killed_process_are_replaced(tmp_path):
  process = multiprocessing.get_context('spawn').Process(target=in_process, args=(str(tmp_path),))
  process.start()
  while not (tmp_path / 'artifact.partial' / 'data').exists():
    time.sleep(0.01)
  os.kill(process.pid, signal.SIGKILL)
  process.join(60)
  assert (tmp_path / 'artifact.partial').exists() and not (tmp_path / 'artifact').exists()
  cache.get_or_build(tmp_path, 'artifact', write)
  assert (tmp_path / 'artifact' / 'data').read_bytes() == b'complete'
  assert not (tmp_path / 'artifact.partial').exists()


def test_the_directory_follows_the_environment(monkeypatch):
  monkeypatch.setenv('LM_CACHE', '/from/environment')
  assert cache.directory('') == pathlib.Path('/from/environment')
  assert cache.directory('/from/config') == pathlib.Path('/from/config')
  monkeypatch.delenv('LM_CACHE')
  assert cache.directory('') == pathlib.Path.home() / '.cache' / 'lm'


def test_a_process_that_holds_the_lock_too_long_is_reported(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(cache, '_MAX_SECONDS', 0.2)
  file = tmp_path / '.tokens-1.lock'
  with (
    cache.locked(file),
    pytest.raises(UserError, match=rf'by process {os.getpid()} of .* preparing tokens-1'),
    cache.locked(file),  # opening the file again locks like a second process
  ):
    raise AssertionError('two hold it')
  assert 'waiting for another process to prepare tokens-1' in capsys.readouterr().err
  with cache.locked(file):  # the lock is free again
    pass


def test_the_files_of_an_artifact_are_on_disk_before_it_is_renamed(tmp_path, monkeypatch):
  synced = {}

  def fsync(descriptor):
    synced[os.fstat(descriptor).st_ino] = (tmp_path / 'artifact').exists()

  monkeypatch.setattr(os, 'fsync', fsync)
  place, _ = cache.get_or_build(tmp_path, 'artifact', write)
  before = {path.stat().st_ino: False for path in (place, place / 'data', place / 'meta.json')}
  # The directory entry is synchronized last.
  assert synced == before | {tmp_path.stat().st_ino: True}
