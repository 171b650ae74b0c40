"""A fake cloud, which is a program in a directory, and settings for it."""

import json
import os
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # as tpu.py does: the package is not installed

from tpu_scripts import cli, settings  # noqa: E402

# Seconds between status checks: the fake cloud changes its state with each call.
POLL = '--poll=0.001'
BASIC = {
  'PROJECT': 'my-project',
  'ZONE': 'us-central1-a',
  'NAME': 'my-slice',
  'ACCELERATOR_TYPE': 'v5litepod-16',
  'CAPACITY': 'spot',
  'GCS_ROOT': 'gs://my-bucket/runs',
  'PRICE_PER_CHIP_HOUR': '2',
  'MAX_HOURS': '3',
  'MAX_RECREATIONS': '2',
}


class Cloud:
  """A fake gcloud on PATH, with its plan (see fake_gcloud.py) and the calls that it received."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.env = folder / 'tpu.env'
    self.write({})

  def write(self, changes: dict[str, str]) -> None:
    """Writes the settings file: the basic settings with changes."""
    lines = [f'{key}={value}' for key, value in (BASIC | changes).items()]
    self.env.write_text('\n'.join(lines) + '\n')

  def plan(self, **plan) -> None:
    basic = {
      'label': settings.read(str(self.env)).label,
      'queue': ['ACTIVE'],
      'nodes': ['READY'],
      'workers': [['RUNNING'] * 2],
      'create': [''],
      'created': ['ACTIVE'],
      'steps': [{'error': 'ERROR: One or more URLs matched no objects.'}],
      'count': 2,
    }
    (self.folder / 'plan.json').write_text(json.dumps(basic | plan))
    (self.folder / 'calls.jsonl').write_text('')

  def calls(self) -> list[list[str]]:
    return [json.loads(line) for line in (self.folder / 'calls.jsonl').read_text().splitlines()]

  def verbs(self) -> list[str]:
    """Returns the verb of each call; after ssh also the verb of remote_run.sh."""
    verbs = []
    for call in self.calls():
      command = call[-1].partition('--command=')[2]
      words = [word for word in ('start', 'status', 'stop', 'setup.sh') if f'{word} ' in command]
      verbs.append(' '.join([call[4] if call[1] == 'compute' else call[1], *words[:1]]))
    return verbs

  def run(self, verb: str, *arguments: str) -> int:
    """Runs a verb of tpu.py in this process. Returns its exit code."""
    words = list(arguments)
    cut = words.index('--') if '--' in words else len(words)
    return cli.main([verb, *words[:cut], f'--env={self.env}', POLL, *words[cut:]])


@pytest.fixture
def cloud(tmp_path, monkeypatch):
  """A fake gcloud that is first on PATH."""
  binary = tmp_path / 'bin' / 'gcloud'
  binary.parent.mkdir()
  source = (pathlib.Path(__file__).parent / 'fake_gcloud.py').read_text()
  binary.write_text(f'#!{sys.executable} -IS\n{source}')
  binary.chmod(0o755)
  monkeypatch.setenv('FAKE', str(tmp_path))
  monkeypatch.setenv('PATH', f'{binary.parent}:{os.environ["PATH"]}')
  made = Cloud(tmp_path)
  made.plan()
  return made
