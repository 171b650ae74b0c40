"""Runs meshes.py and loading.py in a process with eight fake CPU devices."""

import os
import pathlib
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_meshes_and_loading_pass_on_eight_fake_devices():
  flags = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
  run = subprocess.run(
    [
      sys.executable,
      '-m',
      'pytest',
      '-q',
      '-p',
      'no:cacheprovider',
      'tests/multi_device/meshes.py',
      'tests/multi_device/loading.py',
    ],
    env=os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
    cwd=pathlib.Path(__file__).parents[2],
    capture_output=True,
    text=True,
  )
  assert run.returncode == 0, run.stdout + run.stderr
  assert ' passed' in run.stdout and 'skipped' not in run.stdout
