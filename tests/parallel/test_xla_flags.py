"""Flags that the installed compiler does not know are reported and ignored."""

import os
import pathlib
import subprocess
import sys

import pytest

from lm.parallel import host

LIBRARY = host._library('jaxlib')
FILES = pathlib.Path(__file__).parents[2] / 'tpu_scripts/xla_flags'


@pytest.fixture
def before_jax(monkeypatch):
  monkeypatch.delitem(sys.modules, 'jaxlib')


def test_flags_are_matched_as_full_names():
  known = ['xla_dump_to', 'xla_force_host_platform_device_count']
  # The beginning of a flag is no flag, and neither is its end.
  others = ['xla_gpu_enable_latency_hiding_schedule', 'la_dump_to_which', 'xla_cpu_no_such']
  assert host.unknown([*known, *others], LIBRARY) == others


def test_unknown_flag_is_removed_and_others_are_kept(before_jax):
  environ = {
    'XLA_FLAGS': ' --xla_dump_to="a b"  --xla_no_such=\'x y\' --xla_cpu_enable_fast_math=false'
  }
  (line,) = host.drop_unknown(environ)
  for part in ('XLA_FLAGS', '--xla_no_such', 'jaxlib'):
    assert part in line
  assert environ['XLA_FLAGS'] == '--xla_dump_to="a b" --xla_cpu_enable_fast_math=false'


def test_files_of_flags_and_missing_compilers_are_ignored(before_jax, monkeypatch):
  monkeypatch.setattr(host, 'COMPILERS', {'XLA_FLAGS': 'jaxlib', 'OTHER': 'no_such_compiler'})
  environ = {'XLA_FLAGS': 'flags.txt', 'OTHER': '--xla_no_such'}
  assert host.drop_unknown(environ) == []
  assert environ == {'XLA_FLAGS': 'flags.txt', 'OTHER': '--xla_no_such'}


def test_flags_of_the_project_are_known():
  for name, variable in (('gpu.env', 'XLA_FLAGS'), ('tpu.env', 'LIBTPU_INIT_ARGS')):
    values = [line.partition('=') for line in (FILES / name).read_text().splitlines()]
    (value,) = [value for key, _, value in values if key == variable]
    names = [match['name'] for match in host._FLAG.finditer(value)]
    library = host._library(host.COMPILERS[variable])
    assert names and (library is None or host.unknown(names, library) == [])


def test_program_runs_without_a_flag_that_would_abort_it(tmp_path):
  """The abort would happen in C++ at the first use of jax, hence the subprocess."""
  code = (
    'from lm import cli\n'
    'def main(argv):\n'
    '  from jaxlib import xla_client\n'
    '  xla_client.CompileOptions()\n'
    'cli.run(main, "")'
  )
  flags = '--xla_no_such=1 --xla_cpu_enable_fast_math=false'
  found = subprocess.run(
    [sys.executable, '-c', code],
    env=os.environ | {'XLA_FLAGS': flags},
    capture_output=True,
    text=True,
  )
  assert found.returncode == 0, found.stderr
  (line,) = found.stderr.splitlines()
  assert 'warning: XLA_FLAGS' in line and '--xla_no_such' in line
