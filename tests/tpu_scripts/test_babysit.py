"""Each row of the policy, in scenes of a scripted cloud that the entire program runs through."""

import re

import pytest

from tpu_scripts import policy

AUTH = {'error': 'ERROR: (gcloud) Reauthentication failed. cannot prompt'}
NETWORK = {'error': 'ERROR: gcloud crashed (ConnectionError): Connection reset by peer'}
FORBIDDEN = {'error': 'ERROR: PERMISSION_DENIED: The caller does not have permission'}
STOCKOUT = {'error': 'ERROR: There is no more capacity in the zone'}
NEVER_FOUND = {'error': 'ERROR: HTTPError 404: the proxy was not found'}
RUN, DONE, FAIL = ['RUNNING'] * 2, ['EXITED 0'] * 2, ['EXITED 1', 'EXITED 134']
SAVED, IDLE, BARE = ['EXITED 75'] * 2, ['ABSENT'] * 2, ['BARE'] * 2

# (row, plan of the cloud, changes of the settings, printed rows in order, exit code, verbs that are
# called, verbs that are not called).
SCENES = [
  ('running', {'workers': [RUN, RUN, DONE]}, {}, 'running done', 0, '', 'delete create ssh stop'),
  ('done', {'workers': [DONE]}, {}, 'done', 0, '', 'delete create'),
  ('idle', {'workers': [IDLE], 'started': [[RUN, DONE]]}, {}, 'idle done', 0, 'ssh start', 'scp'),
  (
    'idle',
    {'workers': [BARE, IDLE], 'started': [[RUN, DONE]]},
    {},
    'idle done',
    0,
    'scp,ssh setup.sh,ssh start',
    'delete',
  ),
  (
    'saved',
    {'workers': [SAVED, SAVED], 'started': [[RUN, RUN, SAVED, SAVED], [RUN, DONE]]},
    {'MAX_FAILURES': '1'},
    'saved running saved done',
    0,
    'ssh start',
    'delete',
  ),
  (
    'saved',
    {'workers': [['EXITED 75', 'RUNNING'], SAVED, SAVED], 'started': [[RUN, DONE]]},
    {},
    'saved done',
    0,
    'ssh stop,ssh start',
    'delete',
  ),
  (
    'failed',
    {'workers': [FAIL, FAIL], 'started': [[RUN, DONE]]},
    {},
    'failed done',
    0,
    'ssh start',
    'delete',
  ),
  (
    'failed',
    {'workers': [['LOST', 'RUNNING'], IDLE, IDLE], 'started': [[RUN, DONE]]},
    {},
    'failed done',
    0,
    'ssh stop,ssh start',
    'delete',
  ),
  (
    'failures',
    {'workers': [FAIL], 'started': [[RUN, FAIL]]},
    {'MAX_FAILURES': '2'},
    'failed failures',
    5,
    'ssh start',
    'delete',
  ),
  (
    'failures',
    {'workers': [IDLE], 'started': [[FAIL]]},  # it fails before `launch` looks at it
    {'MAX_FAILURES': '2'},
    'idle failed failures',
    5,
    'ssh start,ssh start',
    'delete',
  ),
  (
    'lost',
    {
      'nodes': ['READY', 'PREEMPTED'],
      'workers': [RUN],
      'created': ['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE'],
      'created_workers': [BARE, IDLE],
      'started': [[RUN, RUN, DONE]],
    },
    {},
    'running lost pending pending idle running done',
    0,
    'delete,create,scp,ssh setup.sh,ssh start',
    '',
  ),
  ('lost', {'nodes': ['TERMINATED'], 'created_workers': [DONE]}, {}, 'lost done', 0, 'delete', ''),
  ('lost', {'nodes': ['NOT_FOUND'], 'created_workers': [DONE]}, {}, 'lost done', 0, 'delete', ''),
  ('lost', {'queue': ['SUSPENDED'], 'created_workers': [DONE]}, {}, 'lost done', 0, 'delete', ''),
  (
    'lost',
    {'queue': ['ACTIVE', 'FAILED'], 'workers': [RUN], 'created_workers': [DONE]},
    {},
    'running lost done',
    0,
    'delete,create',
    '',
  ),
  (
    'lost',
    {'queue': ['NOT_FOUND'], 'created_workers': [DONE]},
    {},
    'lost done',
    0,
    'create',
    'delete',
  ),
  (
    'recreations',
    {'nodes': ['PREEMPTED'], 'created_nodes': ['PREEMPTED']},
    {'MAX_RECREATIONS': '1'},
    'lost recreations',
    5,
    'delete',
    '',
  ),
  ('expired', {'queue': ['ACCEPTED', 'FAILED']}, {}, 'pending expired', 4, '', 'delete create'),
  (
    'pending',
    {'nodes': ['REPAIRING', 'RESTARTING', 'CREATING', 'READY'], 'workers': [DONE]},
    {},
    'pending pending pending done',
    0,
    '',
    'delete create ssh start',
  ),
  (
    'pending',
    {'queue': ['SUSPENDING', 'SUSPENDED'], 'created_workers': [DONE]},
    {},
    'pending lost done',
    0,
    'delete',
    '',
  ),
  ('stuck', {'nodes': ['REPAIRING']}, {'WAIT_MINUTES': '0'}, 'pending stuck', 4, '', 'delete'),
  ('held', {'workers': [['RUNNING', 'HELD other']]}, {}, 'held', 2, '', 'delete ssh stop'),
  (
    'mixed',
    {'workers': [['RUNNING', 'EXITED 0'], DONE]},
    {},
    'mixed done',
    0,
    '',
    'ssh stop ssh start delete',
  ),
  (
    'disagreed',
    {'workers': [['RUNNING', 'EXITED 0']] * 2 + [IDLE], 'started': [[RUN, DONE]]},
    {'MIXED_MINUTES': '0'},
    'mixed disagreed done',
    0,
    'ssh stop,ssh start',
    'delete',
  ),
  ('error', {'queue': [AUTH, 'ACTIVE'], 'workers': [DONE]}, {}, 'error done', 0, '', 'delete'),
  ('error', {'queue': [FORBIDDEN, 'ACTIVE'], 'workers': [DONE]}, {}, 'error done', 0, '', 'delete'),
  ('error', {'queue': [NETWORK] * 3 + ['ACTIVE'], 'workers': [DONE]}, {}, 'error done', 0, '', ''),
  ('error', {'nodes': [AUTH, 'READY'], 'workers': [DONE]}, {}, 'error done', 0, '', 'delete'),
  ('error', {'workers': [NETWORK] * 3 + [DONE]}, {}, 'error done', 0, '', 'delete create'),
  ('error', {'queue': [NEVER_FOUND, 'ACTIVE'], 'workers': [DONE]}, {}, 'error done', 0, '', ''),
  ('unreachable', {'workers': [['RUNNING'], DONE]}, {}, 'unreachable done', 0, '', 'delete'),
  ('errors', {'queue': [AUTH]}, {'MAX_ERRORS': '3'}, 'error errors', 3, '', 'delete create'),
  (
    'errors',
    {'queue': ['NOT_FOUND'], 'create': [STOCKOUT]},
    {'MAX_ERRORS': '3'},
    'lost error errors',
    4,
    'create',
    'delete',
  ),
  ('wall', {}, {'MAX_HOURS': '0'}, 'wall', 5, '', 'delete ssh stop'),
]


def _rows() -> set[str]:
  """Returns the rows of the table in the docstring of the policy."""
  return set(re.findall(r'^\| `(\w+)`', str(policy.__doc__), re.MULTILINE))


def _printed(err: str) -> list[str]:
  """Returns the printed rows without repetitions, except those of `pending`."""
  rows = re.findall(r'^\d\d:\d\d:\d\d \w+ \[(\w+)\]', err, re.MULTILINE)
  return [row for i, row in enumerate(rows) if i == 0 or row != rows[i - 1] or row == 'pending']


# By default the first scene of each row runs; the others reach the same rows by other states.
FIRST = {scene[0]: i for i, scene in reversed(list(enumerate(SCENES)))}


@pytest.mark.parametrize(
  ('row', 'plan', 'changes', 'printed', 'code', 'among', 'never'),
  [
    pytest.param(
      *scene,
      id=f'{i}-{scene[0]}',
      marks=[] if FIRST[scene[0]] == i else [pytest.mark.slow],
    )
    for i, scene in enumerate(SCENES)
  ],
)
def test_babysit_acts_by_the_row_of_the_table(
  cloud, capsys, row, plan, changes, printed, code, among, never
):
  cloud.write(changes)
  cloud.plan(**plan)
  assert cloud.run('babysit', 'first', '--yes', '--no-preflight', '--', 'true') == code
  err = capsys.readouterr().err
  rows, verbs = _printed(err), cloud.verbs()
  if 'errors' in rows:
    assert err.count('[error]') + err.count('[errors]') >= 1
    rows = list(dict.fromkeys(rows))
  assert row in rows and rows == printed.split()
  calls = iter(verbs)
  assert all(verb in calls for verb in among.split(',') if verb), verbs  # in this order
  for verb in re.findall(r'ssh \w+|\w+', never):
    assert verb not in verbs
  assert 'NOT DELETED AND IS BILLED' in err


def test_every_row_of_the_table_has_a_scene():
  assert len(_rows()) == 18
  assert {scene[0] for scene in SCENES} == _rows()


@pytest.mark.parametrize(
  ('where', 'error'),
  [('queue', AUTH), ('nodes', NETWORK), ('workers', FORBIDDEN), ('queue', NEVER_FOUND)]
  + [
    pytest.param(where, error, marks=pytest.mark.slow)
    for where, errors in {
      'queue': (NETWORK, FORBIDDEN),
      'nodes': (AUTH, FORBIDDEN, NEVER_FOUND),
      'workers': (AUTH, NETWORK, NEVER_FOUND),
    }.items()
    for error in errors
  ],
)
def test_gcloud_errors_never_delete_machines(cloud, error, where):
  cloud.write({'MAX_ERRORS': '3'})
  cloud.plan(**{where: [error]})
  arguments = ['first', '--yes', '--no-preflight', '--delete-on-exit', '--', 'true']
  assert cloud.run('babysit', *arguments) == 3
  assert not {'delete', 'create', 'ssh start', 'ssh stop'} & set(cloud.verbs())


@pytest.mark.parametrize(('workers', 'code'), [(DONE, 0), (FAIL, 5)])
def test_delete_on_exit_deletes_machines(cloud, workers, code):
  cloud.write({'MAX_FAILURES': '1'})
  cloud.plan(workers=[workers])
  arguments = ['first', '--yes', '--no-preflight', '--delete-on-exit', '--', 'true']
  assert cloud.run('babysit', *arguments) == code
  assert cloud.verbs()[-1] == 'delete'


def test_failures_with_newer_checkpoints_do_not_count(cloud):
  cloud.write({'MAX_FAILURES': '2'})
  cloud.plan(workers=[FAIL], started=[[RUN, FAIL]], steps=[10, 20, 30, 30])
  assert cloud.run('babysit', 'first', '--yes', '--no-preflight', '--', 'true') == 5
  assert cloud.verbs().count('ssh start') == 3  # after steps 10, 20 and 30, and not after 30 again


def test_babysit_refuses_machines_with_another_label(cloud, capsys):
  cloud.plan(label='another', nodes=['PREEMPTED'])
  assert cloud.run('babysit', 'first', '--yes', '--no-preflight', '--', 'true') == 2
  assert 'is taken' in capsys.readouterr().err
  assert cloud.verbs() == ['describe']
