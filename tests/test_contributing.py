"""The four walks through CONTRIBUTING.md run as they stand."""

import pathlib
import re

import pytest

from lm.parallel.host import Never
from lm.training import trainer
from lm.workdir import experiment

TEXT = (pathlib.Path(__file__).parent.parent / 'CONTRIBUTING.md').read_text()
BLOCKS = re.findall(r'```python\n(# experiments/(\w+)\.py\n.*?)```', TEXT, re.DOTALL)


def test_there_are_four_walks_of_under_twenty_lines():
  assert len(BLOCKS) == 4
  for code, _ in BLOCKS:
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 20


@pytest.mark.parametrize(('code', 'name'), BLOCKS, ids=[name for _, name in BLOCKS])
def test_walk_trains(code, name, tmp_path, small_library):
  file = tmp_path / f'{name}.py'
  file.write_text(code)
  config = experiment.load(f'{file}:smoke')
  trainer.train(config, f'{file}:smoke', tmp_path / 'run', Never(), until_step=2)
  assert (tmp_path / 'run/checkpoints/2').is_dir()
