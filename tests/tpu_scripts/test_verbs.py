"""The verbs: their calls, compared with the flags of the real gcloud; idempotence; refusals."""

import json
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

import pytest

from tpu_scripts import source

HERE = pathlib.Path(__file__).parent
LAUNCH = ['first', '--', 'python', '-m', 'lm.train', '--config=experiments/quickstart.py']
VERBS = {
  'create': ['--yes'],
  'wait': [],
  'setup': [],
  'launch': LAUNCH,
  'status': ['first'],
  'logs': ['first'],
  'stop': ['first'],
  'delete': ['--yes'],
  'babysit': ['--yes', *LAUNCH],
  'list': [],
}
SETTINGS = {
  'one': {},
  'two': {
    'ACCELERATOR_TYPE': 'v4-32',
    'TOPOLOGY': '2x2x4',
    'NUM_SLICES': '2',
    'CAPACITY': 'reserved',
    'INTERNAL_IP': 'yes',
    'NETWORK': 'net',
    'SUBNETWORK': 'sub',
    'SERVICE_ACCOUNT': 'me@my-project.iam.gserviceaccount.com',
  },
  'tunnel': {'TUNNEL': 'yes', 'CAPACITY': 'on-demand'},
}


def _dry(cloud, capsys, verb) -> list[str]:
  """Returns the lines that a dry run prints."""
  capsys.readouterr()
  assert cloud.run(verb, '--dry-run', *VERBS[verb]) == 0
  return capsys.readouterr().out.splitlines()


def _without_paths(line: str) -> str:
  clean = source.find(False)
  for text, name in (
    (clean.commit, 'COMMIT'),
    (clean.name, 'NAME'),
    (sys.executable, 'PYTHON'),
    (str(source.ROOT), 'ROOT'),
    (tempfile.gettempdir(), 'TMP'),
  ):
    line = line.replace(text, name)
  return line


@pytest.mark.parametrize('name', SETTINGS)
def test_dry_runs_print_the_golden_calls(cloud, capsys, name):
  cloud.write(SETTINGS[name])
  printed = []
  for verb in VERBS:
    printed += [f'# {verb}', *map(_without_paths, _dry(cloud, capsys, verb))]
  golden = HERE / 'golden' / f'{name}.txt'
  assert printed == golden.read_text().splitlines()
  assert cloud.calls() == []


@pytest.mark.parametrize('name', SETTINGS)
def test_flags_are_in_the_help_of_the_real_gcloud(name):
  checked = 0
  for line in (HERE / 'golden' / f'{name}.txt').read_text().splitlines():
    words = shlex.split(line, comments=True)
    if words[:1] == ['gcloud']:
      group = '_'.join(words[1 : 3 if words[1] == 'storage' else 5])
      known = (HERE / 'flags' / f'{group}.txt').read_text().split()
      flags = [word.partition('=')[0] for word in words if word.startswith('--')]
      assert set(flags) <= set(known), line
      checked += len(flags)
  assert checked > 100


@pytest.mark.parametrize('verb', ['create', 'wait', 'setup', 'status', 'stop', 'delete', 'launch'])
def test_verbs_make_the_calls_of_their_dry_run(cloud, capsys, verb):
  cloud.plan(workers=[['ABSENT'] * 2, ['RUNNING'] * 2])
  if verb == 'create':
    cloud.plan(queue=['NOT_FOUND'])
  if verb == 'stop':
    cloud.plan(workers=[['EXITED 75'] * 2])
  quick = ['--no-preflight'] if verb == 'launch' else []
  expected = [line for line in _dry(cloud, capsys, verb) if line.startswith('gcloud')]
  assert cloud.run(verb, *quick, *VERBS[verb]) == 0
  ran = [shlex.join(call) for call in cloud.calls()]
  changing = r'(?<= )/\S*/(?=lm-\S+\.tar\.gz)|(?<=--token=)\w+'
  assert [re.sub(changing, '', line) for line in ran] == [
    re.sub(changing, '', line) for line in expected
  ]


@pytest.mark.parametrize(
  ('plan', 'arguments', 'code', 'calls'),
  [
    ({}, [], 0, 'describe ' * 3),
    ({'queue': ['PROVISIONING', 'CREATING', 'ACTIVE']}, [], 0, 'describe ' * 4),
    ({'queue': ['SUSPENDED']}, ['--yes'], 4, 'describe'),
    ({'queue': ['FAILED']}, ['--yes'], 4, 'describe'),
    (
      {'queue': ['FAILED']},
      ['--yes', '--recreate'],
      0,
      'describe delete create describe describe',
    ),
    ({'queue': ['NOT_FOUND']}, [], 2, 'describe'),  # without agreement to the costs
    ({'queue': ['NOT_FOUND'], 'created': ['ACCEPTED', 'FAILED']}, ['--yes'], 4, None),
    ({'queue': ['NOT_FOUND'], 'created_nodes': ['PREEMPTED']}, ['--yes'], 4, None),
    ({'label': 'other'}, ['--yes'], 2, 'describe'),
    ({'label': 'other', 'queue': ['FAILED']}, ['--yes', '--recreate'], 2, 'describe'),
    ({'queue': ['NOT_FOUND']}, ['--yes', '--no-wait'], 0, 'describe create'),
  ],
)
def test_create_requests_machines_once(cloud, plan, arguments, code, calls):
  cloud.plan(**plan)
  assert cloud.run('create', *arguments) == code
  assert calls is None or cloud.verbs() == calls.split()


def test_delete_needs_agreement_and_our_label(cloud, capsys):
  assert cloud.run('delete') == 2
  cloud.plan(queue=['NOT_FOUND'])
  assert cloud.run('delete', '--yes') == 0
  assert 'nothing to delete' in capsys.readouterr().out
  cloud.plan(label='other')
  assert cloud.run('delete', '--yes') == 2
  assert cloud.verbs() == ['describe']


@pytest.mark.parametrize(
  ('workers', 'code'),
  [
    (['RUNNING', 'RUNNING'], 0),
    (['EXITED 0', 'EXITED 0'], 0),
    (['EXITED 75', 'EXITED 75'], 75),
    (['EXITED 1', 'EXITED 134'], 5),
    (['LOST', 'RUNNING'], 5),
  ],
)
def test_exit_code_of_status_follows_the_workers(cloud, workers, code):
  cloud.plan(workers=[workers])
  assert cloud.run('status', 'first') == code


@pytest.mark.parametrize('plan', [{'queue': ['SUSPENDED']}, {'nodes': ['PREEMPTED']}])
def test_exit_code_of_status_is_4_without_machines(cloud, plan):
  cloud.plan(**plan)
  assert cloud.run('status', 'first') == 4


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (['First', '--', 'true'], "RUN='First' is no name of a run"),
    (['first'], 'no command'),
    (['first', '--', 'python', '-m', 'lm.train', '--workdir=/x'], 'the workdir of first is gs://'),
    (['first', '--set=a', '--', 'true'], 'is not KEY=VALUE'),
    (['first', '--set-file=nowhere', '--', 'true'], 'nowhere cannot be read'),
    (['--', 'true'], 'RUN'),
    (['first', '--wrong', '--', 'true'], 'unrecognized arguments: --wrong'),
  ],
)
def test_wrong_launches_make_no_call(cloud, capsys, arguments, words):
  assert cloud.run('launch', *arguments) == 2
  err = capsys.readouterr().err
  assert words in err and err.count('\n') == 1
  assert cloud.calls() == []


@pytest.mark.parametrize(
  ('states', 'code', 'words'),
  [
    (['EXITED 1', 'RUNNING'], 5, 'first failed immediately: 1 EXITED 1, 1 RUNNING; see logs first'),
    (['RUNNING'], 3, 'runs on 1 of 2 workers, so it was stopped'),
    (['RUNNING', 'LOST'], 3, 'runs on 1 of 2 workers'),
    (['RUNNING', 'HELD other'], 2, 'w1 runs other: stop that (stop other)'),
  ],
)
def test_job_that_some_workers_do_not_run_is_stopped(cloud, capsys, states, code, words):
  stopped = ['EXITED 143'] * 2
  cloud.plan(workers=[['ABSENT'] * 2], started=[[states, stopped]])
  assert cloud.run('launch', 'first', '--no-preflight', '--', 'true') == code
  assert words in capsys.readouterr().err
  assert 'ssh stop' in cloud.verbs()


@pytest.mark.parametrize(('exits', 'code', 'words'), [(0, 0, ''), (2, 2, 'refuses'), (1, 2, 'run')])
def test_launch_runs_the_preflight_first(cloud, monkeypatch, capsys, tmp_path, exits, code, words):
  script = tmp_path / 'python'
  script.write_text(f'#!/bin/bash\necho "$@" >> "{tmp_path}/arguments"\nexit {exits}\n')
  script.chmod(0o755)
  monkeypatch.setattr(sys, 'executable', str(script))
  cloud.write({'NUM_SLICES': '2'})
  cloud.plan(workers=[['ABSENT'] * 4, ['RUNNING'] * 4])
  assert cloud.run('launch', *LAUNCH, '--config.steps=7') == code
  arguments = (tmp_path / 'arguments').read_text()
  config = '--config=experiments/quickstart.py --config.steps=7'
  assert arguments == f'-m lm.preflight {config} --topology=v5e:4x4 --slices=2\n'
  assert words in capsys.readouterr().err
  assert ('ssh start' in cloud.verbs()) == (exits == 0)


def test_program_needs_only_python(cloud):
  script = source.ROOT / 'tpu_scripts' / 'tpu.py'
  argv = [sys.executable, '-IS', str(script), 'create', f'--env={cloud.env}', '--dry-run']
  done = subprocess.run(argv, capture_output=True, text=True)
  assert done.returncode == 0 and done.stdout.count('gcloud compute tpus') == 4, done.stderr
  argv[3] = 'creat'
  done = subprocess.run(argv, capture_output=True, text=True)
  assert done.returncode == 2 and done.stderr.count('\n') == 1


def test_fake_gcloud_logs_its_arguments(cloud):
  cloud.run('list')
  assert json.dumps(cloud.calls()[0]).startswith('["gcloud", "compute", "tpus"')


@pytest.mark.slow
@pytest.mark.parametrize(
  ('words', 'code'),
  [
    (('llama_160m.py:smoke', '--config.mesh.fsdp=16', '--config.batch_size=32'), 0),
    (('llama_70b.py', '--config.mesh.fsdp=16'), 2),
    (('llama_160m.py:smoke', '--config.mesh.fsdp=3'), 2),
  ],
)
def test_job_starts_only_if_the_real_preflight_succeeds(cloud, capfd, words, code):
  pytest.importorskip('libtpu')
  cloud.plan(workers=[['ABSENT'] * 2, ['RUNNING'] * 2])
  config, *others = words
  train = ['python', '-m', 'lm.train', f'--config=experiments/{config}', *others]
  size = '--config.data.tokenizer.vocab_size=2048'
  assert cloud.run('launch', 'first', '--', *train, size, '--config.eval.batch_size=16') == code
  stderr = capfd.readouterr().err
  assert ('tokens/s' in stderr) == (code == 0), stderr
  assert ('the preflight refuses the job' in stderr) == (code == 2), stderr
  assert ('ssh start' in cloud.verbs()) == (code == 0)


@pytest.mark.parametrize('value', ['"--a=1 --b=2"', "'x'", '"open', "shut'"])
def test_quotation_marks_around_a_value_are_refused(cloud, capsys, tmp_path, value):
  (tmp_path / 'set.env').write_text(f'LIBTPU_INIT_ARGS={value}\n')
  for given in (f'--set-file={tmp_path / "set.env"}', f'--set=LIBTPU_INIT_ARGS={value}'):
    assert cloud.run('launch', 'first', '--no-preflight', given, '--', 'true') == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and f'LIBTPU_INIT_ARGS={value!r}' in err and 'quotation' in err
  assert cloud.calls() == []


def test_quotation_marks_inside_a_value_are_kept(cloud, capsys):
  given = '--set=OPTIONS={"a": "b"}'
  arguments = ['first', '--no-preflight', '--dry-run', given, '--', 'true']
  assert cloud.run('launch', *arguments) == 0
  assert '{"a": "b"}' in capsys.readouterr().out
