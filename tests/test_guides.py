"""README and the guides: their links lead somewhere, their tests exist, and their commands run.

`.ci/run` runs the first two blocks of README.md, tests/preflight/test_preflight_guide.py the guide
of preflight, tests/tpu_scripts/test_tpu_guide.py the guide of TPU jobs, and this file all others.
"""

import ast
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from lm.config import resolve
from lm.config.base import base

ROOT = pathlib.Path(__file__).parent.parent
GUIDES = [
  'README.md',
  'experiments/README.md',
  'lm/data/README.md',
  'lm/decode/README.md',
  'lm/evaluation/README.md',
  'lm/pretrained/README.md',
]
TEXTS = {name: (ROOT / name).read_text() for name in GUIDES}
LINKED = [*GUIDES, 'CONTRIBUTING.md', 'tpu_scripts/README.md', 'lm/preflight/README.md']


def blocks(name: str, kind: str) -> list[str]:
  found = re.findall(rf'^```{kind}\n(.*?)^```', TEXTS[name], re.DOTALL | re.M)
  return found[2:] if (name, kind) == ('README.md', 'sh') else found  # those of .ci/run


def commands(name: str) -> list[str]:
  """Returns the commands of a guide, one line each, with every experiment as its `:smoke`."""
  lines = '\n'.join(blocks(name, 'sh')).replace('\\\n', ' ').splitlines()
  smoke = [re.sub(r'(experiments/\w+\.py)(?!:)', r'\1:smoke', line) for line in lines]
  return [line for line in smoke if line]


@pytest.mark.parametrize('name', LINKED)
def test_links_lead_to_files(name):
  for link in re.findall(r'\]\(([^)\s]+)\)', (ROOT / name).read_text()):
    if not link.startswith('http'):
      path, _, section = link.partition('#')
      file = (ROOT / name).parent / path if path else ROOT / name
      assert file.exists(), link
      headings = re.findall(r'^#+ (.*)$', file.read_text(), re.M) if section else []
      assert not section or section in [h.lower().replace(' ', '-') for h in headings], link


def test_readme_has_two_screens_and_names_real_tests():
  assert len(TEXTS['README.md'].splitlines()) <= 100
  named = re.findall(r'`(tests/\S+\.py)::(\w+)`', TEXTS['README.md'])
  assert len(named) >= 8
  for file, test in named:
    tree = ast.parse((ROOT / file).read_text())
    assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_readme_lists_every_program():
  programs = {file.stem for file in (ROOT / 'lm').glob('*.py') if 'cli.run(' in file.read_text()}
  programs |= {file.parent.name for file in (ROOT / 'lm').glob('*/__main__.py')}
  assert programs == set(re.findall(r'^\| `lm\.(\w+)', TEXTS['README.md'], re.M))


PYTHON = [(name, block) for name in GUIDES for block in blocks(name, 'python')]


@pytest.mark.parametrize(('name', 'block'), [pair for pair in PYTHON if 'config.' in pair[1]])
def test_paths_in_configs_name_functions(name, block, monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT / 'experiments'))
  # Each line alone, for some show alternatives of one key.
  for statement in ast.parse(block).body:
    config = base()
    exec(ast.unparse(statement), {'config': config})
    target = ast.unparse(statement.targets[0]).removeprefix('config.')
    values = [x for x in ast.walk(statement.value) if isinstance(x, ast.Constant)]
    for path in (x.value for x in values if isinstance(x.value, str)):
      assert callable(resolve.resolve(path, target)), path


def test_python_of_the_data_guide_keeps_offsets():
  block = next(block for name, block in PYTHON if 'segment.tag_words' in block)
  names = {}
  exec(block, names)
  found = [names['raw'][token.start : token.end] for token in names['text'].tokens]
  assert '我' not in found and '北京' in found and 'CAFÉ' in found


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  """Returns a working directory like the root of a clone, with small files of word pairs."""
  folder = tmp_path_factory.mktemp('guides')
  for name in ('experiments', 'tpu_scripts'):
    shutil.copytree(ROOT / name, folder / name)
  shutil.copytree(ROOT / 'tests/pretrained/checkpoints/llama', folder / 'DIR')
  shutil.copy(ROOT / 'README.md', folder)
  (folder / 'wordsim353.tsv').write_text('the\tof\t5.0\nthe\tto\t6.0\n')
  (folder / 'questions-words.txt').write_text(': few\nthe of to a\n')
  return folder


@pytest.mark.slow  # trains, evaluates and decodes with every program
def test_commands_run_in_order(folder):
  search = f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}'
  env = os.environ | {'PATH': search, 'PYTHONPATH': str(ROOT)}
  for name in GUIDES:
    for command in commands(name):
      argv = ['bash', '-euo', 'pipefail', '-c', command]
      done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True)
      assert done.returncode == 0, (name, command, done.stderr[-2000:])
  notebook = next(block for _, block in PYTHON if 'lm.load' in block)
  code = notebook + '\nassert logits.shape[:2] == ids.shape'
  subprocess.run([sys.executable, '-c', code], cwd=folder, env=env, check=True)
