"""remote_run.sh alone: a worker runs one job at a time, even after the death of a process."""

import contextlib
import os
import pathlib
import signal
import subprocess
import time

import pytest

from tpu_scripts import source

SCRIPT = source.ROOT / 'tpu_scripts' / 'remote_run.sh'
# A trainer, which writes a line at its start, and exits with 75 after SIGTERM.
TRAINER = ['bash', '-c', 'trap "exit 75" TERM; echo $$ >> began; while sleep 0.05; do :; done']


class Machine:
  """A worker: a directory in which the script runs."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder

  def popen(self, *words: str, **options) -> subprocess.Popen:
    argv = ['bash', str(SCRIPT), *words]
    return subprocess.Popen(argv, cwd=self.folder, stdout=subprocess.PIPE, text=True, **options)

  def run(self, *words: str) -> str:
    """Returns the state and the code that the script prints."""
    out, _ = self.popen(*words).communicate(timeout=30)
    return out.split(maxsplit=3)[3].strip()

  def start(self, run: str, *command: str) -> str:
    return self.run('start', f'runs/{run}', '--', *command)

  def status(self, run: str) -> str:
    return self.run('status', f'runs/{run}')

  def stop(self, run: str, grace: str = '20') -> str:
    return self.run('stop', f'runs/{run}', grace)

  def began(self) -> list[int]:
    return [int(pid) for pid in self.wait_for('began').split()]

  def wait_for(self, name: str) -> str:
    for _ in range(500):
      if (self.folder / name).exists() and (self.folder / name).read_text():
        return (self.folder / name).read_text()
      time.sleep(0.02)
    raise AssertionError(f'no {name}')

  def until(self, run: str, states: tuple[str, ...]) -> str:
    for _ in range(300):
      if (state := self.status(run)) in states:
        return state
      time.sleep(0.02)
    raise AssertionError(state)


@pytest.fixture
def machine(tmp_path):
  made = Machine(tmp_path)
  yield made
  for run in (tmp_path / 'runs').glob('[!.]*'):
    made.stop(run.name, '0')


def test_ten_simultaneous_starts_run_one_job(machine):
  starts = [machine.popen('start', 'runs/a', '--', *TRAINER) for _ in range(10)]
  answers = [process.communicate(timeout=60)[0].split()[3] for process in starts]
  assert answers == ['RUNNING'] * 10
  assert len(machine.began()) == 1
  assert machine.status('a') == 'RUNNING -'
  assert machine.start('b', 'true') == 'HELD a'
  assert machine.stop('b') == 'HELD a'  # another run is not stopped
  assert machine.stop('a') == 'EXITED 75'
  assert machine.stop('a') == 'EXITED 75'
  assert machine.status('b') == 'ABSENT -'


def test_job_survives_the_session_that_started_it(machine):
  session = machine.popen('start', 'runs/a', '--', *TRAINER, start_new_session=True)
  assert 'RUNNING' in session.stdout.readline()
  with contextlib.suppress(ProcessLookupError):
    os.killpg(session.pid, signal.SIGKILL)
  session.communicate(timeout=30)
  os.kill(machine.began()[0], 0)
  assert machine.status('a') == 'RUNNING -'
  assert machine.stop('a') == 'EXITED 75'


def test_job_starts_once_after_killed_sessions(machine):
  for _ in range(5):
    session = machine.popen('start', 'runs/a', '--', *TRAINER, start_new_session=True)
    time.sleep(0.01)
    os.killpg(session.pid, signal.SIGKILL)
    session.communicate(timeout=30)
  assert machine.start('a', *TRAINER) == 'RUNNING -'
  assert machine.stop('a') == 'EXITED 75'


def test_finished_run_can_start_again(machine):
  machine.start('a', 'bash', '-c', 'exit 7')
  assert machine.until('a', ('EXITED 7',))
  assert machine.start('a', *TRAINER) == 'RUNNING -'
  assert machine.stop('a') == 'EXITED 75'
  log = (machine.folder / 'runs' / 'a' / 'log').read_text()
  assert log.count(' starts ') == 2 and 'exits 7' in log and 'exits 75' in log
  machine.start('b', 'true')
  assert machine.until('b', ('EXITED 0',))


def test_token_starts_a_run_once(machine):
  start = ['start', 'runs/a', '--token=1', '--', 'bash', '-c', 'echo 1 >> began; exit 3']
  machine.run(*start)
  assert machine.until('a', ('EXITED 3',))
  assert machine.run(*start) == 'EXITED 3'
  assert machine.began() == [1]
  start[2] = '--token=2'
  machine.run(*start)
  assert machine.until('a', ('EXITED 3',)) and machine.began() == [1, 1]


def test_job_without_supervisor_holds_the_lock(machine):
  machine.start('a', *TRAINER)
  job = machine.began()[0]
  status = pathlib.Path(f'/proc/{job}/status').read_text()
  supervisor = int(status.partition('PPid:')[2].split()[0])
  os.kill(supervisor, signal.SIGKILL)
  assert machine.status('a') == 'RUNNING -'
  assert machine.start('a', *TRAINER) == 'RUNNING -' and len(machine.began()) == 1
  assert machine.stop('a') == 'LOST -'  # no supervisor recorded its code
  assert machine.start('a', 'true')
  assert machine.until('a', ('EXITED 0',))


def test_killed_job_and_supervisor_are_lost(machine):
  machine.start('a', *TRAINER)
  job = machine.began()[0]
  os.killpg(os.getpgid(job), signal.SIGKILL)
  assert machine.until('a', ('LOST -',))


def test_job_that_ignores_sigterm_is_killed(machine):
  machine.start('a', 'bash', '-c', 'trap "" TERM; echo 1 > began; while sleep 0.05; do :; done')
  machine.began()
  assert machine.stop('a', '1') == 'EXITED 137'


def test_sigterm_reaches_the_trainer_but_not_its_workers(machine):
  script = (
    '(trap "echo stopped > worker" TERM; echo 1 > up; while sleep 0.05; do :; done) & child=$!; '
    'trap "sleep 0.3; kill -KILL $child; exit 75" TERM; echo 1 > began; '
    'while sleep 0.05; do :; done'
  )
  machine.start('a', 'bash', '-c', script)
  machine.began()
  machine.wait_for('up')
  assert machine.stop('a') == 'EXITED 75'
  assert not (machine.folder / 'worker').exists()


def test_log_is_copied_at_the_end(machine, monkeypatch):
  binary = machine.folder / 'bin' / 'gcloud'
  binary.parent.mkdir()
  binary.write_text(f'#!/bin/bash\necho "$@" > {machine.folder}/copied\n')
  binary.chmod(0o755)
  monkeypatch.setenv('PATH', f'{binary.parent}:{os.environ["PATH"]}')
  machine.run('start', 'runs/a', '--logs=gs://b/logs', '--', 'true')
  words = machine.wait_for('copied').split()
  assert words[:2] == ['storage', 'cp'] and words[-1].startswith('gs://b/logs/')


@pytest.mark.parametrize('words', [['start', 'runs/a', 'true'], ['jump', 'runs/a']])
def test_wrong_usage_exits_with_2(machine, words):
  process = machine.popen(*words, stderr=subprocess.DEVNULL)
  process.communicate(timeout=30)
  assert process.returncode == 2
