import getpass
import json
import os
import pathlib
import platform
import socket
import subprocess
import sys

import jax

from lm.workdir.experiment import checkout, command_line, environment


def test_the_environment_is_json_and_names_neither_user_nor_host(monkeypatch, tmp_path):
  monkeypatch.setattr(sys, 'orig_argv', ['/opt/python', '-m', 'lm.train', f'--workdir={tmp_path}'])
  found = environment(pathlib.Path(__file__))
  text = json.dumps(found)
  assert found['python'] == platform.python_version()
  assert found['packages']['jax'] == jax.__version__
  assert found['devices']['count'] == jax.device_count()
  assert found['devices']['kind'] == jax.devices()[0].device_kind
  assert found['host']['memory_bytes'] > 2**28
  assert found['command'].startswith('python -m lm.train')
  assert socket.gethostname() not in text
  if getpass.getuser() not in ('root', 'runner') and getpass.getuser() not in str(tmp_path):
    assert getpass.getuser() not in text


def test_a_checkout_is_dirty_once_a_tracked_file_changes(tmp_path):
  git = ['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=a@b']
  assert checkout(tmp_path) is None
  subprocess.run([*git, 'init', '-q'], check=True)
  (tmp_path / 'a.py').write_text('1')
  subprocess.run([*git, 'add', 'a.py'], check=True)
  subprocess.run([*git, 'commit', '-qm', 'a'], check=True)
  head = subprocess.run([*git, 'rev-parse', 'HEAD'], check=True, capture_output=True, text=True)
  assert checkout(tmp_path) == {'commit': head.stdout.strip(), 'dirty': False}
  (tmp_path / 'a.py').write_text('2')
  assert checkout(tmp_path) == {'commit': head.stdout.strip(), 'dirty': True}


def test_the_command_can_be_pasted_and_hides_the_home_directory():
  home = os.path.expanduser('~')
  line = command_line([f'{home}/venv/bin/python', '-m', 'lm.train', f'--workdir={home}/a b'])
  assert line == "python -m lm.train '--workdir=~/a b'"
