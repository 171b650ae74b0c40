"""A fake gcloud: it answers from the lists in $FAKE/plan.json, and writes calls.jsonl.

Each call takes the next answer of a list; the last answer repeats. {'error': TEXT} is a failure.

  queue    states of the queued resource        nodes    states of all nodes
  workers  states of the workers, a list for each call; with 'local' the commands really run,
           `times` times in parallel for each worker, which has a HOME of its own
  created  new value of `queue` after a creation (also created_nodes, created_workers)
  started  new value of `workers` after the start of a job, a list for each start
  create   answers to a creation                steps    checkpoint steps in the bucket
"""

import fcntl
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

FAKE = pathlib.Path(os.environ['FAKE'])
ARGV = sys.argv[1:]


def next_of(plan, key):
  answers = plan[key]
  answer = answers[0]
  if len(answers) > 1:
    del answers[0]
  if isinstance(answer, dict) and 'error' in answer:
    return None, answer['error']
  return answer, ''


def describe_queue(plan):
  state, error = next_of(plan, 'queue')
  if state == 'NOT_FOUND':
    error = f"ERROR: NOT_FOUND: Resource 'queuedResources/{ARGV[4]}' was not found"
  node = {'labels': {'lm-settings': plan['label']}}
  return {'state': {'state': state}, 'tpu': {'nodeSpec': [{'node': node}]}}, error


def describe_node(plan):
  state, error = next_of(plan, 'nodes')
  if state == 'NOT_FOUND':
    error = f"ERROR: NOT_FOUND: Resource 'nodes/{ARGV[4]}' was not found"
  return {'state': state, 'networkEndpoints': [{}] * plan['count']}, error


def ssh(plan):
  """Returns the output of the workers, and an error."""
  command = next(word for word in ARGV if word.startswith('--command=')).removeprefix('--command=')
  if plan['workers'] == 'local':
    return None, command
  if 'remote_setup.sh' in command:
    hash = shlex.split(command)[3]
    return '\n'.join(f'LMSETUP w{i} {hash} ok' for i in range(plan['count'])), ''
  if ' start ' in command and 'started' in plan:
    plan['workers'], _ = next_of(plan, 'started')
  if ' status ' not in command:
    return '', ''
  states, error = next_of(plan, 'workers')
  run = re.search(r'/runs/([a-z0-9-]+)', command)[1]
  words = [state if ' ' in state else f'{state} -' for state in states or []]
  return '\n'.join(f'LMRUN w{i} {run} {word}' for i, word in enumerate(words)), error


def locally(command, plan):
  """Runs a command for every worker, `times` times in parallel, with the HOME of the worker."""
  started = []
  for i in range(plan['count']):
    home = FAKE / f'w{i}'
    environ = os.environ | {'HOME': str(home), 'PATH': f'{home}/bin:{os.environ["PATH"]}'}
    for _ in range(plan.get('times', 1)):
      # No pipe: a job would inherit it, and this call would wait for the job.
      started.append(subprocess.Popen(['bash', '-c', command], env=environ, cwd=home))
  return max(process.wait() for process in started)


def copy(plan):
  *files, _ = [word for word in ARGV[4:] if not word.startswith('-')]
  for i in range(plan['count'] if plan['workers'] == 'local' else 0):
    for file in files:
      (FAKE / f'w{i}' / os.path.basename(file)).write_bytes(pathlib.Path(file).read_bytes())


def answer(plan):
  """Returns stdout, and an error."""
  verb = ' '.join(ARGV[2:4])
  if verb == 'queued-resources describe':
    found, error = describe_queue(plan)
    return json.dumps(found), error
  if verb == 'tpu-vm describe':
    found, error = describe_node(plan)
    return json.dumps(found), error
  if verb == 'queued-resources create':
    _, error = next_of(plan, 'create')
    if not error:
      plan['queue'], plan['nodes'] = plan['created'], plan.get('created_nodes', ['READY'])
      plan['workers'] = plan.get('created_workers', plan['workers'])
    return '', error
  if verb == 'queued-resources delete':
    plan['queue'] = ['NOT_FOUND']
  if verb == 'queued-resources scp':
    copy(plan)
  if verb == 'queued-resources ssh':
    return ssh(plan)
  if ARGV[:2] == ['storage', 'ls']:
    step, error = next_of(plan, 'steps')
    return f'{ARGV[2]}{step}/\n{ARGV[2]}{step}.orbax-checkpoint-tmp/\n', error
  return '', ''


def main():
  with open(FAKE / 'lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    plan = json.loads((FAKE / 'plan.json').read_text())
    with open(FAKE / 'calls.jsonl', 'a') as calls:
      calls.write(json.dumps(['gcloud', *ARGV]) + '\n')
    out, error = answer(plan)
    (FAKE / 'plan.json').write_text(json.dumps(plan))
  if out is None:
    return locally(error, plan)
  if error:
    print(error, file=sys.stderr)
    return 1
  print(out)
  return 0


sys.exit(main())
