"""Jobs on existing machines: setup, launch, status, stop, logs."""

import os
import re
import secrets
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from tpu_scripts import commands, machines
from tpu_scripts import source as sources
from tpu_scripts.errors import CLOUD, GAVE_UP, LOST, Stop
from tpu_scripts.gcloud import Gcloud, GcloudError
from tpu_scripts.settings import NAME, Settings
from tpu_scripts.states import Worker, summary

RUN_SCRIPT = '$HOME/lm/current/tpu_scripts/remote_run.sh'
LINE = re.compile(r'^LMRUN (\S+) (\S+) ([A-Z]+) (\S+)\s*$', re.MULTILINE)


def run_name(name: str) -> str:
  """Returns the name of a run, which names a directory on the workers and in the bucket.

  Raises:
    Stop: the name is invalid.
  """
  if not re.fullmatch(NAME, name):
    raise Stop(f'RUN={name!r} is no name of a run; it is at most 40 letters a-z, digits and dashes')
  return name


def setup(settings: Settings, gcloud: Gcloud, source: sources.Source) -> None:
  """Sends code to every worker and installs its environment; repeating it has no effect.

  Raises:
    Stop: a worker does not confirm its setup.
  """
  with tempfile.TemporaryDirectory() as folder:
    name = sources.archive_name(source)
    path = os.path.join(folder, name)
    if gcloud.dry:
      folder = tempfile.gettempdir()
      path = os.path.join(folder, name)
      print(shlex.join(['git', 'archive', '--format=tar', source.tree]))
    else:
      sources.archive(source, folder)
    gcloud.call(commands.scp(settings, [path, str(sources.SETUP)]), timeout=900)
  remote = shlex.join(['bash', 'remote_setup.sh', name, source.name, settings['PYTHON'], 'tpu'])
  out = gcloud.call(commands.ssh(settings, remote), timeout=2400, check=False)
  expected = sum(node.workers for node in machines.nodes(settings, gcloud))
  if not gcloud.dry:
    done = set(re.findall(rf'^LMSETUP (\S+) {re.escape(source.name)} ok', out, re.MULTILINE))
    if not expected or len(done) < expected:
      last = ' '.join(out.splitlines()[-3:])
      raise Stop(
        f'setup is done on {len(done)} of {expected} workers; run it again ({last})', CLOUD
      )


def start_command(
  settings: Settings, run: str, job: Sequence[str], environ: Sequence[str], token: str
) -> str:
  """Returns the command that starts a job on a worker, in the code and environment of its setup.

  A worker starts a job once per `token`, even if gcloud sends the command several times.
  """
  logs = f'{settings["GCS_ROOT"]}/{run}/logs'
  prefix = ['env', 'PYTHONUNBUFFERED=1', *environ]
  return (
    'cd -P "$HOME/lm/current" && PATH="$PWD/.venv/bin:$PATH" PYTHONPATH="$PWD" '
    f'bash tpu_scripts/remote_run.sh start "$HOME/runs/{run}" --token={token} '
    f'--logs={shlex.quote(logs)} -- {shlex.join([*prefix, *job])}'
  )


def job_of(settings: Settings, run: str, command: Sequence[str]) -> list[str]:
  """Returns the command of a job with its workdir, the directory of the run in the bucket.

  The workdir replaces `{workdir}` in the command. `lm.train` gets it as a flag.

  Raises:
    Stop: the command is empty, or names another workdir.
  """
  workdir = f'{settings["GCS_ROOT"]}/{run}'
  if not command:
    raise Stop(f'no command; as in: launch {run} -- python -m lm.train --config=FILE.py')
  words = [word.replace('{workdir}', workdir) for word in command]
  given = [word for word in words if word.startswith('--workdir')]
  if given and given != [f'--workdir={workdir}']:
    raise Stop(f'{given[0]}: the workdir of {run} is {workdir}; leave it out, or name another run')
  if 'lm.train' in words and not given:
    words.append(f'--workdir={workdir}')
  return words


def preflight(settings: Settings, command: Sequence[str], dry: bool) -> None:
  """Checks by `python -m lm.preflight` that the job fits on a slice.

  Raises:
    Stop: it does not fit.
  """
  config = [word for word in command if word.startswith('--config')]
  if not any(word.startswith('--config=') for word in config):
    print('no preflight: the command names no --config=FILE', file=sys.stderr)
    return
  topology = f'--topology={settings.slice.generation}:{settings.slice.topology}'
  argv = [sys.executable, '-m', 'lm.preflight', *config, topology]
  argv += [f'--slices={settings.slices}'] if settings.slices > 1 else []
  if dry:
    print(shlex.join(argv))
    return
  try:
    code = subprocess.run(argv, cwd=sources.ROOT, stdout=2, timeout=3600).returncode
  except subprocess.TimeoutExpired as e:
    raise Stop('the preflight takes more than an hour; --no-preflight starts without it') from e
  if code == 2:
    raise Stop('the preflight refuses the job (above); --no-preflight starts it anyway')
  if code:
    raise Stop(
      f'the preflight cannot be run (exit {code}): install lm with its extra tpu for '
      f'{sys.executable}, or give --no-preflight'
    )


def status(settings: Settings, gcloud: Gcloud, run: str) -> tuple[Worker, ...]:
  """Returns the state of the run on every worker that answers.

  Raises:
    GcloudError: no worker answers.
  """
  bare = f'echo "LMRUN $(hostname) {run} BARE -"'
  script = f'bash "{RUN_SCRIPT}" status "$HOME/runs/{run}"'
  remote = f'if [ -f "{RUN_SCRIPT}" ]; then {script}; else {bare}; fi'
  return _lines(gcloud.read(commands.ssh(settings, remote), timeout=300), run)


def launch(
  settings: Settings, gcloud: Gcloud, run: str, job: Sequence[str], environ: Sequence[str] = ()
) -> tuple[Worker, ...]:
  """Starts a job on every worker, and checks that all run it; repeating it has no effect.

  Raises:
    Stop: another run holds a worker, a worker has no setup, the job does not run on all workers,
      or it failed immediately (code 5). Afterwards no worker runs the job.
  """
  before = status(settings, gcloud, run)
  if not gcloud.dry:
    _refuse(before, run)
  token = 'TOKEN' if gcloud.dry else secrets.token_hex(8)
  command = start_command(settings, run, job, environ, token)
  gcloud.call(commands.ssh(settings, command), timeout=300, check=False)
  workers = status(settings, gcloud, run)
  expected = sum(node.workers for node in machines.nodes(settings, gcloud))
  if gcloud.dry:
    return workers
  begun = [w for w in workers if w.state in ('RUNNING', 'EXITED')]
  failed = [w for w in workers if w.state == 'EXITED' and w.code != '0']
  if len(begun) < max(expected, 1) or failed:
    if not any(w.state == 'RUNNING' for w in before):
      # A job on some workers waits for the others, and costs money.
      stop(settings, gcloud, run)
    _refuse(workers, run)
    if failed:
      raise Stop(f'{run} failed immediately: {summary(workers)}; see logs {run}', GAVE_UP)
    raise Stop(
      f'{run} runs on {len(begun)} of {expected} workers, so it was stopped: {summary(workers)}',
      CLOUD,
    )
  return workers


def stop(settings: Settings, gcloud: Gcloud, run: str, grace: int = 120) -> tuple[Worker, ...]:
  """Sends SIGTERM to the job on every worker, so that lm.train saves; after `grace` s, SIGKILL.

  Raises:
    Stop: a worker still runs it.
  """
  script = f'bash "{RUN_SCRIPT}" stop "$HOME/runs/{run}" {grace}'
  remote = f'if [ -f "{RUN_SCRIPT}" ]; then {script}; fi'
  gcloud.call(commands.ssh(settings, remote), timeout=grace + 180, check=False)
  workers = status(settings, gcloud, run)
  if any(worker.state == 'RUNNING' for worker in workers):
    raise Stop(f'{run} still runs: {summary(workers)}; stop it again', CLOUD)
  return workers


def logs(settings: Settings, gcloud: Gcloud, run: str, lines: int, follow: bool) -> None:
  """Prints the end of every worker's log, with the name of the worker before each line."""
  tail = f'tail -n {lines}{" -F" if follow else ""} "$HOME/runs/{run}/log"'
  argv = commands.ssh(settings, f'{tail} | sed -u "s/^/[$(hostname)] /"')
  if follow and not gcloud.dry:
    try:
      subprocess.run(argv, stdin=subprocess.DEVNULL, check=False)
    except KeyboardInterrupt:
      return
  else:
    print(gcloud.read(argv, timeout=120), end='')


def newest_step(settings: Settings, gcloud: Gcloud, run: str) -> int | None:
  """Returns the step of the newest checkpoint, None if there is none or it cannot be listed."""
  try:
    listed = gcloud.read(commands.checkpoints(settings, run))
  except GcloudError:
    return None
  steps = [int(step) for step in re.findall(r'/checkpoints/(\d+)/?\s*$', listed, re.MULTILINE)]
  return max(steps, default=None)


def _lines(out: str, run: str) -> tuple[Worker, ...]:
  # If gcloud sends a command twice, a worker answers twice, and the last answer counts.
  found = {
    host: Worker(host, state, code) for host, of, state, code in LINE.findall(out) if of == run
  }
  return tuple(found[host] for host in sorted(found))


def _refuse(workers: Sequence[Worker], run: str) -> None:
  for worker in workers:
    if worker.state == 'HELD':
      raise Stop(
        f'{worker.name} runs {worker.code}: stop that (stop {worker.code}), or wait until it ends'
      )
    if worker.state == 'BARE':
      raise Stop(f'{worker.name} has no code: run setup first')
  if not workers:
    raise Stop(f'no worker answers for {run}; see status', LOST)
