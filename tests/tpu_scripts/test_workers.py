"""Setup, launch and stop on workers that are local directories, where the commands really run.

gcloud sends a command again when the link drops. Each worker therefore also runs it twice in
parallel.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tpu_scripts import source

TPU = [sys.executable, '-IS', str(source.ROOT / 'tpu_scripts' / 'tpu.py')]
TRAINER = ['bash', '-c', 'trap "exit 75" TERM; echo $$ >> began; while sleep 0.05; do :; done']
# Replaces python3.11 and the Python of an environment; its pip installs nothing.
PYTHON = """#!/bin/bash
case "$1 $2" in
'-m venv') mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
'-m pip') echo "$@" >> "$HOME/pip.log"; [ "$3" = uninstall ] || [ ! -e "$HOME/broken" ] ;;
*) echo "$PYTHONPATH" > "$HOME/ran"; exec "$@" ;;
esac
"""


@pytest.fixture
def workers(cloud, request, monkeypatch):
  """A cloud of three workers that run each command twice, or as many times as the test says."""
  for i in range(3):
    home = cloud.folder / f'w{i}'
    (home / 'bin').mkdir(parents=True)
    for name, text in (('hostname', f'#!/bin/bash\necho t1v-n-x-w-{i}\n'), ('python3.11', PYTHON)):
      (home / 'bin' / name).write_text(text)
      (home / 'bin' / name).chmod(0o755)
  monkeypatch.setenv('LM_PAUSE', '0')
  cloud.write({'PYTHON': '3.11'})
  cloud.plan(workers='local', count=3, times=getattr(request, 'param', 2))
  cloud.homes = [cloud.folder / f'w{i}' for i in range(3)]
  yield cloud
  for home in cloud.homes:
    for run in (home / 'runs').glob('[!.]*'):
      script = [str(source.ROOT / 'tpu_scripts' / 'remote_run.sh'), 'stop', str(run), '0']
      subprocess.run(['bash', *script], capture_output=True, timeout=30)


def _began(home: pathlib.Path) -> list[int]:
  code = home / 'lm' / 'current' / 'began'
  for _ in range(300):
    if code.exists() and code.read_text():
      return [int(pid) for pid in code.read_text().split()]
    time.sleep(0.02)
  raise AssertionError('nothing began')


def _launch(cloud, run='first', command=TRAINER) -> int:
  return cloud.run('launch', run, '--no-preflight', '--', *command)


@pytest.mark.parametrize(
  'workers', [1, pytest.param(2, marks=pytest.mark.slow)], ids=['once', 'twice'], indirect=True
)
def test_bare_workers_are_set_up_and_run_a_job_until_stop(workers, capfd):
  assert _launch(workers) == 2
  assert 'run setup first' in capfd.readouterr().err
  assert workers.run('setup') == 0
  assert _launch(workers) == 0
  assert '3 RUNNING' in capfd.readouterr().out
  jobs = [_began(home) for home in workers.homes]
  assert [len(pids) for pids in jobs] == [1, 1, 1]
  assert _launch(workers) == 0  # the running job continues
  assert _launch(workers, 'second') == 2
  assert 't1v-n-x-w-0 runs first: stop that' in capfd.readouterr().err
  assert [_began(home) for home in workers.homes] == jobs
  assert workers.run('status', 'first') == 0
  assert workers.run('stop', 'first') == 0
  assert '3 EXITED 75' in capfd.readouterr().out
  assert workers.run('status', 'first') == 75
  assert workers.run('logs', 'first') == 0
  out = capfd.readouterr().out
  assert '[t1v-n-x-w-2] == commit' in out and 'exits 75' in out
  assert _launch(workers, 'second') == 0  # the workers are free again
  assert _launch(workers, 'second', ['true']) == 0


def test_incomplete_setup_can_be_repeated(workers, capfd):
  broken = workers.homes[1] / 'broken'
  broken.touch()
  assert workers.run('setup') == 3
  assert 'setup is done on 2 of 3 workers; run it again' in capfd.readouterr().err
  name = source.find(False).name
  assert not (workers.homes[1] / 'lm' / 'current').exists()
  broken.unlink()
  assert workers.run('setup') == 0
  for home in workers.homes:
    code = home / 'lm' / name
    assert (code / '.stamp').read_text().strip() == name
    assert (code / 'lm' / 'train.py').exists() and (code / '.venv' / 'bin' / 'python').exists()
    assert (home / 'lm' / 'current').resolve() == code
  installs = (workers.homes[0] / 'pip.log').read_text().splitlines()
  assert (
    len(installs) == 2
  )  # pip installs, and uninstalls lm, once: then the environment has its stamp
  assert 'constraints.txt' in installs[0] and installs[0].endswith(f'/lm/{name}[tpu]')


def test_simultaneous_launches_start_one_run_on_all_workers(workers):
  assert workers.run('setup') == 0
  common = [f'--env={workers.env}', '--poll=0.01', '--no-preflight', '--', *TRAINER]

  def launch(run):
    return subprocess.run([*TPU, 'launch', run, *common], capture_output=True, text=True).returncode

  with concurrent.futures.ThreadPoolExecutor() as pool:
    codes = list(pool.map(launch, ['one', 'two']))
  assert set(codes) <= {0, 2}
  plan = json.loads((workers.folder / 'plan.json').read_text())
  (workers.folder / 'plan.json').write_text(json.dumps(plan | {'times': 1}))
  for run, code in zip(['one', 'two'], codes, strict=True):
    status = [*TPU, 'status', run, f'--env={workers.env}']
    out = subprocess.run(status, capture_output=True, text=True).stdout
    assert out.count('RUNNING') == (3 if code == 0 else 0), out
  with concurrent.futures.ThreadPoolExecutor() as pool:
    winner = 'two' if codes == [2, 0] else 'one'
    assert list(pool.map(launch, [winner, winner])) == [0, 0]


def test_job_survives_the_program_that_launched_it(workers):
  assert workers.run('setup') == 0
  argv = [*TPU, 'launch', 'first', f'--env={workers.env}', '--no-preflight', '--', *TRAINER]
  launcher = subprocess.Popen(argv, start_new_session=True, stdout=subprocess.DEVNULL)
  jobs = [_began(home)[0] for home in workers.homes]
  with contextlib.suppress(ProcessLookupError):
    os.killpg(launcher.pid, signal.SIGKILL)
  launcher.wait(timeout=30)
  assert workers.run('status', 'first') == 0
  for job in jobs:
    os.kill(job, 0)


def test_babysit_restarts_a_saved_job_on_real_workers(workers, capfd):
  script = 'echo $$ >> began; [ $(wc -l < began) = 2 ] || exit 75'  # saved once, then done
  arguments = ['first', '--yes', '--no-preflight', '--', 'bash', '-c', script]
  assert workers.run('babysit', *arguments) == 0
  err = capfd.readouterr().err
  assert err.index('[idle]') < err.index('[saved]') < err.index('[done]')
