"""Runs gcloud: every call has a timeout, reads are repeated, and an error is one clear line."""

import contextlib
import dataclasses
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

from tpu_scripts.errors import CLOUD, LOST, USAGE, Stop

# The kind of an error, the words in stderr that identify it, and the remedy. The first match
# counts: a wrong zone also writes 'permission denied', and a wrong project 'not found'.
KINDS: tuple[tuple[str, tuple[str, ...], str], ...] = (
  (
    'credentials',
    (
      'active account',
      'reauthentication',
      'refresh access token',
      'current auth tokens',
      'invalid_grant',
      'default credentials',
      'unauthenticated',
      'invalid authentication credentials',
    ),
    'no valid credentials: run `gcloud auth login`',
  ),
  (
    'key',
    ('ssh-add', 'not present in the ssh agent'),
    'no ssh agent has the key: run `eval $(ssh-agent) && ssh-add ~/.ssh/google_compute_engine`',
  ),
  (
    'project',
    (
      'project_not_found',
      'project not found',
      'failed to find project',
      'consumer_invalid',
      'has not been used in project',
      'service_disabled',
      'project was not found',
      'not have permission to access projects instance',
    ),
    'PROJECT is wrong, not yours, or without the Cloud TPU API: `gcloud services enable '
    'tpu.googleapis.com`',
  ),
  (
    'zone',
    (
      "permission denied on 'locations/",
      'unknown zone',
      'invalid zone',
      'unknown location',
      'is not found or access is unauthorized',
    ),
    'ZONE is unknown, or the project has no access to it: `gcloud compute tpus locations list`',
  ),
  ('quota', ('quota',), 'out of quota: ask for more in the console, or take fewer chips'),
  (
    'capacity',
    ('no more capacity', 'stockout', 'insufficient capacity', 'resource_exhausted'),
    'no capacity in this zone now: choose another zone or CAPACITY, or try later',
  ),
  ('exists', ('already_exists', 'already exists'), 'the name is taken: choose another NAME'),
  (
    'permission',
    ('permission_denied', 'permission denied', 'does not have permission', 'forbidden'),
    'the account may not do this: it needs the role TPU Admin (roles/tpu.admin)',
  ),
  (
    'network',
    (
      'network is unreachable',
      'could not resolve',
      'name resolution',
      'unable to find the server',
      'connection',
      'max retries exceeded',
      'timed out',
      'unavailable',
      'deadline',
      'ssl',
      'broken pipe',
    ),
    'the network or the service fails; try again',
  ),
  ('not found', ('not_found', 'was not found'), 'nothing has that name'),
)
EXIT = {'capacity': LOST, 'zone': USAGE, 'project': USAGE, 'exists': USAGE}


class GcloudError(Stop):
  """A failed call: its `kind` as in KINDS, or 'other', and the stderr of gcloud."""

  def __init__(self, line: str, kind: str, stderr: str = ''):
    super().__init__(line, EXIT.get(kind, CLOUD))
    self.kind = kind
    self.stderr = stderr


def classify(stderr: str) -> tuple[str, str]:
  """Returns the kind of an error and its remedy, by the stderr of gcloud."""
  text = stderr.lower()
  for kind, signs, remedy in KINDS:
    if any(sign in text for sign in signs):
      return kind, remedy
  return 'other', 'see the message'


@dataclasses.dataclass(frozen=True)
class Gcloud:
  """Makes calls of gcloud, or with `dry` only prints them; `pause` is in seconds, between tries."""

  dry: bool = False
  pause: float = 3.0
  sleep: Callable[[float], None] = time.sleep

  def read(self, argv: Sequence[str], timeout: float = 90) -> str:
    """Returns the stdout of a call that changes nothing, with three tries if the network fails.

    Raises:
      GcloudError: the call failed.
    """
    for attempt in (1, 2, 3):
      try:
        return self.call(argv, timeout)
      except GcloudError as e:
        if e.kind != 'network' or attempt == 3:
          raise
        self.sleep(self.pause * attempt)
    raise AssertionError('unreachable')

  def call(self, argv: Sequence[str], timeout: float, check: bool = True) -> str:
    """Returns the stdout of a call; without `check` also that of a failed call.

    Raises:
      GcloudError: the call failed, or took longer than `timeout` seconds.
    """
    if self.dry:
      print(shlex.join(argv))
      return ''
    code, out, err = _run(argv, timeout)
    if code is None:
      raise GcloudError(f'{_name(argv)} took longer than {timeout:g} s', 'network')
    if code and check:
      kind, remedy = classify(err)
      raise GcloudError(f'{_name(argv)}: {remedy} [{kind}]: {_main_line(err)}', kind, err)
    return out


def _run(argv: Sequence[str], timeout: float) -> tuple[int | None, str, str]:
  """Returns the exit code, stdout and stderr; the code is None after a timeout."""
  try:
    process = subprocess.Popen(
      argv,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      errors='replace',
      start_new_session=True,  # a timeout also kills its ssh children, which keep the pipes open
    )
  except FileNotFoundError as e:
    raise Stop(
      f'{argv[0]} is not installed: https://cloud.google.com/sdk/docs/install', CLOUD
    ) from e
  try:
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err
  except subprocess.TimeoutExpired:
    return None, '', ''
  finally:
    if process.poll() is None:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()
    for pipe in (process.stdout, process.stderr):
      if pipe is not None:
        pipe.close()


def _name(argv: Sequence[str]) -> str:
  """Returns the words of a command before its arguments."""
  words = [word for word in argv if not word.startswith('-')]
  return ' '.join(words[:5])


def _main_line(stderr: str) -> str:
  """Returns up to 300 characters of the most informative line of stderr."""
  lines = [line.strip() for line in stderr.splitlines() if line.strip()]
  errors = [line for line in lines if 'ERROR' in line or line.lower().startswith('error')]
  return (errors or lines or ['no message'])[0 if errors else -1][:300]
