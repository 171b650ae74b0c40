"""The commands of lm/preflight/README.md run, and print reports with the lines that it shows."""

import pathlib
import re
import shlex
import subprocess
import sys

import in_process
import pytest

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / 'lm/preflight/README.md').read_text()
BLOCKS = re.findall(r'```(sh|text)\n(.*?)```', TEXT, re.DOTALL)
COMMANDS = [
  line for kind, block in BLOCKS if kind == 'sh' for line in block.splitlines() if 'python ' in line
]
REPORTS = [block for kind, block in BLOCKS if kind == 'text']


def labels(report):
  """Returns the names of the indented lines of a report."""
  return [line.split('  ')[1] for line in report.splitlines() if line.startswith('  ')]


def arguments_of(command):
  return shlex.split(command, comments=True)[3:]


def test_report_of_gpus_has_the_lines_of_the_guide():
  small = ('--config.mesh.fsdp=64', '--config.batch_size=64', '--config.eval.batch_size=64')
  _, *arguments = arguments_of(next(one for one in COMMANDS if 'h100:8' in one))
  config = f'--config={ROOT}/experiments/quickstart.py'
  found = in_process.run('preflight', config, *arguments, *small)
  assert found.returncode == 0, found.stderr
  assert labels(found.stdout) == labels(REPORTS[1])


@pytest.mark.slow  # compiles train steps and searches
@pytest.mark.parametrize('command', COMMANDS)
def test_command_runs(command):
  if 'topology=v5e' in command:
    pytest.importorskip('libtpu')
  argv = [sys.executable, *shlex.split(command, comments=True)[1:]]
  done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  if '--price' in command:
    assert labels(done.stdout) == labels(REPORTS[0])
