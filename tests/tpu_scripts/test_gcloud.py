"""Calls of gcloud: classified errors, timeouts and repeated reads."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tpu_scripts.errors import Stop
from tpu_scripts.gcloud import Gcloud, GcloudError

# Messages of gcloud and of its API.
ERRORS = [
  ('credentials', 3, 'ERROR: (gcloud) You do not currently have an active account selected.'),
  ('credentials', 3, 'ERROR: There was a problem refreshing your current auth tokens: x'),
  ('quota', 3, "ERROR: RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerProject' exceeded."),
  ('capacity', 4, 'ERROR: { "code": 8, "message": "There is no more capacity in the zone" }'),
  ('permission', 3, 'ERROR: PERMISSION_DENIED: The caller does not have permission'),
  ('zone', 2, "ERROR: PERMISSION_DENIED: Permission denied on 'locations/us-x' (or it may not"),
  ('zone', 2, 'ERROR: Location us-x is not found or access is unauthorized.'),
  ('project', 2, 'ERROR: User [a] does not have permission to access projects instance [p] (or'),
  ('project', 2, 'ERROR: Cloud TPU API has not been used in project 7 before or it is disabled'),
  ('exists', 2, "ERROR: ALREADY_EXISTS: Resource 'projects/p/queuedResources/q' already exists"),
  ('network', 3, 'ERROR: gcloud crashed (TransportError): Max retries exceeded with url'),
  ('network', 3, 'ERROR: Could not resolve host: the name was not found'),
  ('key', 3, 'ERROR: The SSH key is not present in the SSH agent; run ssh-add'),
  ('not found', 3, "ERROR: NOT_FOUND: Resource 'projects/p/nodes/n' was not found"),
  ('other', 3, 'ERROR: something new'),
]


@pytest.mark.parametrize(('kind', 'code', 'text'), ERRORS)
def test_errors_are_one_line_with_their_kind(cloud, capsys, kind, code, text):
  cloud.plan(queue=['NOT_FOUND'], create=[{'error': f'WARNING: be careful\n{text}\nand a trace'}])
  assert cloud.run('create', '--yes') == code
  cost, line = capsys.readouterr().err.splitlines()
  assert 'billed until deleted' in cost
  assert f'[{kind}]' in line and text[:40] in line
  assert cloud.verbs() == ['describe', 'create']  # no second try, and no deletion


def test_reads_have_three_tries_when_the_network_fails(cloud):
  error = {'error': 'ERROR: Connection reset by peer'}
  cloud.plan(queue=[error, error, 'ACTIVE'])
  assert cloud.run('wait') == 0
  cloud.plan(queue=[error])
  assert cloud.run('wait') == 3
  assert cloud.verbs() == ['describe'] * 3


def test_timeout_kills_a_call_and_its_children(tmp_path):
  pid = tmp_path / 'pid'
  child = f'import subprocess as s; p = s.Popen(["sleep", "100"]); open({str(pid)!r}, "w").write'
  began = time.monotonic()
  with pytest.raises(GcloudError, match=r'took longer than 1\.5 s') as error:
    Gcloud().call([sys.executable, '-ISc', f'{child}(str(p.pid)); p.wait()'], timeout=1.5)
  assert error.value.kind == 'network' and time.monotonic() - began < 90
  for _ in range(100):
    try:
      os.kill(int(pid.read_text()), 0)
    except ProcessLookupError:
      return
    time.sleep(0.02)
  state = subprocess.run(['ps', '-o', 'stat=', pid.read_text()], capture_output=True, text=True)
  assert state.stdout.strip() in ('', 'Z'), signal.SIGKILL


def test_missing_gcloud_is_reported(cloud, monkeypatch, capsys):
  monkeypatch.setenv('PATH', '/nonexistent')
  assert cloud.run('list') == 3
  assert 'gcloud is not installed' in capsys.readouterr().err
  with pytest.raises(Stop, match='is not installed'):
    Gcloud().read(['/nonexistent/gcloud'])


def test_exit_codes_of_errors_are_not_255():
  assert all(GcloudError('', kind).code in (2, 3, 4) for kind, _, _ in ERRORS)
