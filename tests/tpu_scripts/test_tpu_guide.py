"""The commands of tpu_scripts/README.md run as dry runs."""

import pathlib
import re
import shlex

import pytest

from tpu_scripts import source

TEXT = (pathlib.Path(source.ROOT) / 'tpu_scripts/README.md').read_text()
JOINED = TEXT.replace('\\\n', ' ')
COMMANDS = re.findall(r'(?:^|`)python3 tpu_scripts/tpu\.py (.*?)(?:`|$)', JOINED, re.M)


def test_guide_shows_these_verbs():
  shown = {command.split()[0] for command in COMMANDS}
  assert shown == {'create', 'setup', 'launch', 'status', 'logs', 'delete', 'babysit'}


@pytest.mark.parametrize('command', COMMANDS)
def test_commands_of_the_guide_run_as_dry_runs(command, cloud, capsys):
  words = shlex.split(command.replace('FILE', 'experiments/quickstart.py'))
  assert cloud.run(words[0], '--dry-run', *words[1:]) == 0
  printed = capsys.readouterr().out
  assert 'gcloud ' in printed and cloud.calls() == []
