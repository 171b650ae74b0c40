"""Names in a config mean the code of the workdir or of the experiment, and no other code."""

import sys
import types

import pytest

from lm.config import resolve
from lm.data import fingerprints
from lm.workdir import experiment, sources

CONFIG = 'from lm.config.base import base\n\ndef get_config(arg=""):\n  return base()\n'


def value():
  """Returns the result of the function that `mine_of_sources:value` names now."""
  return resolve.resolve('mine_of_sources:value', 'key')()


@pytest.fixture
def folder_of(tmp_path):
  """Makes folders with a module whose function returns a value; removes the modules afterwards."""

  def make(name, number, module='mine_of_sources'):
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    (folder / f'{module}.py').write_text(f'def value():\n  return {number}\n')
    return folder

  empty = tmp_path / 'empty'
  empty.mkdir()
  sources.add_to_sys_path(empty)
  before, path = set(sys.modules), list(sys.path)
  yield make
  sources.add_to_sys_path(empty)
  for name in set(sys.modules) - before:
    if name.startswith('mine_of'):
      del sys.modules[name]
  sys.path[:] = path


def test_the_code_of_a_workdir_has_priority_over_the_current_folder(folder_of, monkeypatch):
  # `python -m` puts the current folder first; its module has changed since the run.
  monkeypatch.syspath_prepend(str(folder_of('here', 2)))
  with sources.import_source(folder_of('source', 1)) as clashes:
    assert value() == 1 and clashes == []
  assert value() == 1


def test_opening_a_workdir_does_not_change_an_imported_experiment(folder_of):
  sources.add_to_sys_path(folder_of('experiment', 1))
  assert value() == 1
  module = sys.modules['mine_of_sources']
  with sources.import_source(folder_of('source', 2)) as clashes:
    assert value() == 2 and clashes == ['mine_of_sources.py']
  assert sys.modules['mine_of_sources'] is module and value() == 1


def test_a_second_workdir_does_not_break_the_first(folder_of):
  first, second = folder_of('first', 1), folder_of('second', 2)
  folder_of('second', 3, 'mine_of_second_only')
  with sources.import_source(first):
    assert value() == 1
  with sources.import_source(second):
    assert value() == 2
  assert value() == 1
  with sources.workdir_modules(second):
    assert value() == 2 and resolve.resolve('mine_of_second_only:value', 'key')() == 3
  assert value() == 1


def test_a_workdir_with_the_same_code_shares_the_imported_modules(folder_of):
  for name in ('experiment', 'source'):
    folder_of(name, 1)
  folder_of('source', 5, 'mine_of_neighbor')
  sources.add_to_sys_path(folder_of('experiment', 1))
  assert value() == 1
  module = sys.modules['mine_of_sources']
  with sources.import_source(folder_of('source', 1)) as clashes:
    assert clashes == []
  assert resolve.resolve('mine_of_neighbor:value', 'key')() == 5  # importable also after the block
  assert sys.modules['mine_of_sources'] is module


def test_a_changed_workdir_is_imported_again(folder_of):
  with sources.import_source(folder_of('source', 1)):
    assert value() == 1
  with sources.import_source(folder_of('source', 20)):
    assert value() == 20


def test_modules_of_other_folders_are_no_neighbors(folder_of, monkeypatch):
  folder = folder_of('experiment', 1)
  (folder / 'config_of_sources.py').write_text(CONFIG)
  monkeypatch.chdir(folder)
  # Like torch.ops, whose file '_ops.py' is no path; and a module with a file of another name.
  odd = types.ModuleType('odd_of_sources.ops')
  odd.__file__ = '_ops.py'
  monkeypatch.setitem(sys.modules, 'odd_of_sources.ops', odd)
  other = types.ModuleType('other_of_sources')
  other.__file__ = str(folder / 'mine_of_sources.py')
  monkeypatch.setitem(sys.modules, 'other_of_sources', other)
  experiment.load('config_of_sources.py')
  found = sources.neighbors(folder / 'config_of_sources.py')
  assert found == {'config_of_sources.py': CONFIG.encode()}
  sources.add_to_sys_path(folder.parent)
  assert sys.modules['odd_of_sources.ops'] is odd and sys.modules['other_of_sources'] is other


def test_imported_neighbors_are_copied(folder_of):
  folder = folder_of('experiment', 1)
  folder_of('experiment', 2, 'mine_of_nobody')  # never imported
  (folder / 'mine_of_package').mkdir()
  (folder / 'mine_of_package/__init__.py').write_text('')
  (folder / 'mine_of_package/part.py').write_text('NUMBER = 3\n')
  names = 'import mine_of_sources\nimport mine_of_package.part\n'
  (folder / 'config_of_package.py').write_text(names + CONFIG)
  experiment.load(str(folder / 'config_of_package.py'))
  found = sources.neighbors(folder / 'config_of_package.py')
  assert sorted(found) == [
    'config_of_package.py',
    'mine_of_package/__init__.py',
    'mine_of_package/part.py',
    'mine_of_sources.py',
  ]


def test_the_digest_of_a_changed_file_differs(folder_of):
  folder = folder_of('experiment', 1)
  config = folder / 'config_of_digests.py'
  config.write_text('import mine_of_sources\n' + CONFIG)
  experiment.load(str(config))
  before = sources.digests(config)
  assert before == sources.digests(config) and {'lm', 'jax', 'Python'} <= before.keys()
  folder_of('experiment', 2)
  after = sources.digests(config)
  differing = {name for name in before if before[name] != after[name]}
  assert before.keys() == after.keys() and differing == {'mine_of_sources.py'}


def test_fingerprints_need_no_imported_module(folder_of):
  folder_of('source', 1)
  with sources.import_source(folder_of('source', 1)):
    found = fingerprints.of_paths(['mine_of_sources:value'])
  assert len(found['mine_of_sources']) == 64
