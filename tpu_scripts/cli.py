"""The command line: the verbs and their arguments."""

import argparse
import os
import sys
from collections.abc import Sequence

from tpu_scripts import babysit, commands, jobs, machines, source
from tpu_scripts.errors import AGAIN, GAVE_UP, LOST, Stop
from tpu_scripts.gcloud import Gcloud
from tpu_scripts.settings import Settings, read
from tpu_scripts.states import GONE, NOT_FOUND, summary

_QUOTES = ('"', "'")

VERBS = {
  'create': 'creates the machines, unless they exist, and waits for them',
  'wait': 'waits until the machines are ready',
  'setup': 'sends the code to every worker and installs its environment',
  'launch': 'starts or resumes RUN on every worker: launch RUN -- COMMAND',
  'status': 'prints the state of the machines and, with RUN, of its workers',
  'logs': "prints the end of every worker's log of RUN",
  'stop': 'saves and ends RUN; the machines stay up',
  'delete': 'deletes the machines',
  'babysit': 'restarts RUN until it is done: babysit RUN -- COMMAND',
  'list': 'lists the queued resources of the zone',
}
EPILOG = (
  'Exit codes: 0 done, 2 usage, 3 gcloud or permission, 4 machines lost or no capacity, '
  '5 failed or gave up, 75 start it again.'
)


class Parser(argparse.ArgumentParser):
  """A parser whose errors are one line."""

  def error(self, message: str):
    raise Stop(f'{message}; see {self.prog} --help')


def parser() -> Parser:
  """Returns the parser of all verbs."""
  top = Parser(prog='tpu.py', description='Jobs on Cloud TPU slices.', epilog=EPILOG)
  verbs = top.add_subparsers(dest='verb', required=True, metavar='VERB')
  for name, words in VERBS.items():
    verb = verbs.add_parser(name, help=words, description=words, epilog=EPILOG)
    add = verb.add_argument
    add('--env', default='tpu.env', metavar='FILE', help='settings (tpu.env)')
    add('--dry-run', action='store_true', help='print the commands without running them')
    add('--poll', type=float, default=30, help='seconds between two status checks (30)')
    if name in ('launch', 'logs', 'stop', 'babysit'):
      add('run', metavar='RUN', help="the run's name, the same at every start")
    if name == 'status':
      add('run', metavar='RUN', nargs='?', help="the run's name")
    if name in ('launch', 'babysit'):
      add('--set', action='append', default=[], metavar='K=V', help='a variable of the job')
      add('--set-file', action='append', default=[], metavar='FILE', help='file of such lines')
      add('--no-preflight', action='store_true', help='skip the check that the job fits')
    if name in ('setup', 'babysit'):
      add('--include-dirty', action='store_true', help='send uncommitted changes too')
    if name in ('create', 'babysit', 'delete'):
      add('--yes', action='store_true', help='agree to the costs without a prompt')
    if name == 'create':
      add('--recreate', action='store_true', help='delete a SUSPENDED or FAILED request first')
      add('--no-wait', action='store_true', help='return after the request')
    if name == 'babysit':
      add('--delete-on-exit', action='store_true', help='delete the machines at the end')
    if name == 'logs':
      add('--lines', type=int, default=50, help='lines of each worker (50)')
      add('--follow', action='store_true', help='continue until interrupted')
  return top


def main(argv: Sequence[str]) -> int:
  """Runs a verb and returns the exit code. An error is one line on stderr."""
  words, command = list(argv), []
  if '--' in words:
    cut = words.index('--')
    words, command = words[:cut], words[cut + 1 :]
  try:
    arguments = parser().parse_args(words)
    if command and arguments.verb not in ('launch', 'babysit'):
      raise Stop(f'{arguments.verb} takes no command after --')
    gcloud = Gcloud(arguments.dry_run, pause=arguments.poll / 10)
    return _run(arguments, command, read(arguments.env), gcloud)
  except Stop as e:
    print(f'tpu.py: {e}', file=sys.stderr)
    return e.code
  except KeyboardInterrupt:
    print('tpu.py: interrupted; jobs and machines continue to run', file=sys.stderr)
    return AGAIN


def _run(args: argparse.Namespace, command: list[str], settings: Settings, gcloud: Gcloud) -> int:
  if getattr(args, 'run', None):
    jobs.run_name(args.run)
  if args.verb == 'create':
    machines.create(settings, gcloud, args.yes, args.recreate, None if args.no_wait else args.poll)
  elif args.verb == 'wait':
    machines.wait(settings, gcloud, args.poll)
  elif args.verb == 'setup':
    jobs.setup(settings, gcloud, source.find(args.include_dirty))
  elif args.verb in ('launch', 'babysit'):
    return _start(args, command, settings, gcloud)
  elif args.verb == 'status':
    return _status(args.run, settings, gcloud)
  elif args.verb == 'logs':
    jobs.logs(settings, gcloud, args.run, args.lines, args.follow)
  elif args.verb == 'stop':
    _say(summary(jobs.stop(settings, gcloud, args.run)), gcloud)
  elif args.verb == 'delete':
    _delete(settings, gcloud, args.yes)
  else:
    print(gcloud.read(commands.list_all(settings)), end='')
  return 0


def _start(args: argparse.Namespace, command: list[str], settings: Settings, gcloud: Gcloud) -> int:
  job = jobs.job_of(settings, args.run, command)
  environ = args.set + [line for file in args.set_file for line in _lines(file)]
  for pair in environ:
    if not pair.partition('=')[0].isidentifier() or '=' not in pair:
      raise Stop(f'--set={pair} is not KEY=VALUE')
    key, _, value = pair.partition('=')
    if value.strip().startswith(_QUOTES) or value.strip().endswith(_QUOTES):
      raise Stop(
        f'{key}={value!r} of --set or --set-file: remove the quotation marks, since no shell '
        'interprets them'
      )
  if not args.no_preflight:
    jobs.preflight(settings, job, gcloud.dry)
  if args.verb == 'launch':
    _say(summary(jobs.launch(settings, gcloud, args.run, job, environ)), gcloud)
    return 0
  sent = babysit.Job(args.run, job, environ, source.find(args.include_dirty))
  machines.agree(settings, args.yes or gcloud.dry)
  if gcloud.dry:
    # The longest path: no machines, then one without setup.
    machines.create(settings, gcloud, True, False, args.poll)
    jobs.setup(settings, gcloud, sent.source)
    jobs.launch(settings, gcloud, args.run, job, environ)
    return 0
  return babysit.babysit(settings, gcloud, sent, args.poll, args.delete_on_exit)


def _lines(file: str) -> list[str]:
  try:
    with open(os.path.expanduser(file), encoding='utf-8') as f:
      lines = [line.strip() for line in f]
  except OSError as e:
    raise Stop(f'--set-file={file} cannot be read ({e})') from e
  return [line for line in lines if line and not line.startswith('#')]


def _say(line: str, gcloud: Gcloud) -> None:
  # A dry run prints only commands.
  if not gcloud.dry:
    print(line)


def _status(run: str | None, settings: Settings, gcloud: Gcloud) -> int:
  """Prints the states. Returns 0 healthy, 4 no machines, 5 the job failed, 75 start it again."""
  resource = machines.queued(settings, gcloud)
  _say(f'{settings["NAME"]} {resource.state} {resource.why}'.rstrip(), gcloud)
  nodes = machines.nodes(settings, gcloud) if resource.state == 'ACTIVE' else ()
  for node in nodes:
    _say(f'{node.name} {node.state}, {node.workers} workers', gcloud)
  if resource.state in (NOT_FOUND, 'FAILED', 'SUSPENDED') or {n.state for n in nodes} & set(GONE):
    return LOST
  if run is None or not nodes:
    return 0
  workers = jobs.status(settings, gcloud, run)
  for worker in workers:
    _say(f'{worker.name} {worker.state} {worker.code}'.removesuffix(' -'), gcloud)
  codes = {worker.code for worker in workers if worker.state == 'EXITED'}
  if codes - {'0', '75'} or any(worker.state in ('LOST', 'HELD') for worker in workers):
    return GAVE_UP
  return AGAIN if '75' in codes else 0


def _delete(settings: Settings, gcloud: Gcloud, agreed: bool) -> None:
  resource = machines.queued(settings, gcloud)
  if resource.state == NOT_FOUND:
    print(f'{settings["NAME"]} does not exist: nothing to delete')
    return
  machines.refuse_others(settings, resource)
  machines.confirm(settings, agreed or gcloud.dry, f'to delete it ({resource.state})')
  machines.delete(settings, gcloud)
