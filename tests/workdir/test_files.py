import subprocess
import sys

import pytest

from lm.errors import UserError
from lm.workdir import files

LOCK = """
import pathlib, sys
from lm.workdir import files
with files.lock_workdir(pathlib.Path(sys.argv[1])):
  print('locked', flush=True)
  sys.stdin.read()
"""


def test_a_workdir_is_locked_until_its_run_ends(tmp_path):
  workdir = tmp_path / 'run'
  other = subprocess.Popen(
    [sys.executable, '-c', LOCK, str(workdir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
  )
  try:
    assert other.stdout.readline() == b'locked\n'
    with (
      pytest.raises(UserError, match='another run is training there'),
      files.lock_workdir(workdir),
    ):
      pass
  finally:
    other.kill()
    other.communicate()
  with files.lock_workdir(workdir):
    assert workdir.is_dir()


def test_a_workdir_that_is_a_file_is_an_error_of_one_line(tmp_path):
  (tmp_path / 'file').write_text('')
  lock = files.lock_workdir(tmp_path / 'file')
  with pytest.raises(UserError, match='is a file; give the name of a directory'), lock:
    pass
