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

import numpy as np
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


@pytest.mark.parametrize('damage', ['cut', 'gone', 'flipped', 'no meta', 'torn meta', 'other meta'])
def test_a_damaged_artifact_is_rebuilt_with_a_warning(tmp_path, capsys, damage):
  place, _ = cache.get_or_build(tmp_path, 'artifact', write)
  if damage == 'cut':
    (place / 'data').write_bytes(b'who')
  elif damage == 'gone':
    (place / 'data').unlink()
  elif damage == 'flipped':
    (place / 'data').write_bytes(b'complexe')
  elif damage == 'other meta':
    meta = (place / 'meta.json').read_text()
    (place / 'meta.json').write_text(meta.replace('42', '43'))
  elif damage == 'no meta':
    (place / 'meta.json').unlink()
  else:
    (place / 'meta.json').write_text('{"files": {')
  _, meta = cache.get_or_build(tmp_path, 'artifact', write)
  assert (place / 'data').read_bytes() == b'complete' and meta['answer'] == 42
  assert f'{place} is damaged' in capsys.readouterr().err


def test_an_artifact_under_another_name_is_rebuilt(tmp_path, capsys):
  place, _ = cache.get_or_build(tmp_path, 'artifact', write)
  place.rename(tmp_path / 'other')
  cache.get_or_build(tmp_path, 'other', write)
  assert 'other is damaged' in capsys.readouterr().err


def test_a_file_has_a_checksum_for_each_chunk(tmp_path, monkeypatch):
  monkeypatch.setattr(cache, '_CHUNK', 2**16)
  content = np.random.default_rng(0).bytes(3 * 2**16 + 5)
  (tmp_path / 'x').write_bytes(content)
  before = cache.file_checksums(tmp_path / 'x')
  changed = bytearray(content)
  changed[2**16 + 3] ^= 128
  (tmp_path / 'x').write_bytes(changed)
  after = cache.file_checksums(tmp_path / 'x')
  assert len(before) == 4 and [a == b for a, b in zip(before, after, strict=True)] == [1, 0, 1, 1]


@pytest.mark.parametrize('dtype', [np.float32, np.float16, np.uint8, np.bool_])
def test_checksums_of_parts_add_up_to_the_weighted_sum_of_all_elements(dtype):
  x = np.random.default_rng(0).integers(0, 200, (3, 5, 7)).astype(dtype)
  bits = x.view(f'u{x.itemsize}').astype(object)
  weights = [np.random.PCG64(axis).random_raw(n).astype(object) for axis, n in enumerate(x.shape)]
  total = sum(
    int(bits[i, j, k]) * (weights[0][i] | 1) * (weights[1][j] | 1) * (weights[2][k] | 1)
    for i, j, k in np.ndindex(x.shape)
  )
  assert cache.array_checksum(x) == total % 2**64
  cuts = [(slice(a, b), slice(c, d)) for a, b in ((0, 2), (2, 3)) for c, d in ((0, 1), (1, 5))]
  parts = [cache.array_checksum(x[cut], (*cut, slice(None))) for cut in cuts]
  assert sum(parts) % 2**64 == total % 2**64


def test_changes_that_are_likely_together_change_a_checksum():
  x = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
  known = {cache.array_checksum(x)}
  for changed in (-x, x.T.copy(), x[::-1].copy(), x[:, ::-1].copy(), np.roll(x, 1, 0), x * 0):
    known.add(cache.array_checksum(changed))
  swapped = x.copy()
  swapped[[3, 4]] = swapped[[4, 3]]
  signs = x.copy()
  signs[0, :2] *= -1
  known |= {cache.array_checksum(swapped), cache.array_checksum(signs)}
  assert len(known) == 9


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
