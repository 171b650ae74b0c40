import getpass
import json
import os
import platform
import socket
import subprocess
import sys

import jax
import pytest

from lm.parallel import hardware
from lm.workdir.environment import checkout, command_line, environment


def test_the_environment_is_json_and_names_neither_user_nor_host(monkeypatch, tmp_path):
  monkeypatch.setattr(sys, 'orig_argv', ['/opt/python', '-m', 'lm.train', f'--workdir={tmp_path}'])
  found = environment()
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


@pytest.mark.parametrize(
  ('kind', 'peak'),
  [
    ('TPU v5 lite', 197e12),
    ('TPU v5', 459e12),
    ('TPU v5p', 459e12),
    ('TPU7x', 1153.5e12),
    ('NVIDIA A100-SXM4-40GB', 312e12),
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('NVIDIA H100 PCIe', 756e12),
    ('NVIDIA A100-SXM4-40GB MIG 1g.5gb', None),
    ('NVIDIA GeForce RTX 4090 Laptop GPU', None),
    ('NVIDIA A10G', None),
    ('TPU v4 lite', None),
    ('cpu', None),
    ('', None),
  ],
)
def test_peaks_are_those_of_the_device_itself(kind, peak):
  assert hardware.peak_flops(kind) == peak


def test_utilisation_is_a_share_of_the_peak():
  assert hardware.mfu(98.5e12, 'TPU v5 lite') == pytest.approx(0.5)
  assert hardware.mfu(1e12, 'cpu') is None
