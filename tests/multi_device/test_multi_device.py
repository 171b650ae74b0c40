"""Runs meshes.py and loading.py on eight fake CPU devices, which jax is asked for at its start."""

import os
import pathlib
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_eight_fake_devices():
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
