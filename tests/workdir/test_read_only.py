"""Programs report a workdir that is not writable in one line."""

import builtins
import errno
import json
import os

import in_process
import pytest


@pytest.fixture
def read_only(tmp_path, monkeypatch):
  """A workdir that is not writable. Root ignores permissions, so `open` fails for root instead."""
  workdir = tmp_path / 'run'
  workdir.mkdir()
  (workdir / 'config.json').write_text(json.dumps({'steps': 3, 'model': {'depth': 2}}))
  (workdir / 'metrics.jsonl').write_text('{"step": 1, "train/loss": 2.0}\n')
  workdir.chmod(0o555)
  if os.geteuid() == 0:

    def refused(file, mode='r', *args, **kwargs):
      if set(mode) & set('wax+') and str(file).startswith(str(workdir)):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))
      return plain(file, mode, *args, **kwargs)

    plain = builtins.open
    monkeypatch.setattr(builtins, 'open', refused)
  yield workdir
  workdir.chmod(0o755)


def test_a_report_for_a_folder_that_is_not_writable_is_an_error_of_one_line(read_only):
  line = in_process.mistake('report', f'--workdir={read_only}')
  assert f'--workdir={read_only} cannot be written: ' in line
  assert sorted(path.name for path in read_only.iterdir()) == ['config.json', 'metrics.jsonl']
