"""Processes of one run must have the same code: an error names the files that differ."""

import pytest

from lm.errors import UserError
from lm.parallel import multihost
from lm.workdir import experiment, sources

EXPERIMENT = """
import layers_of_hosts
from lm.config.base import base

def get_config(arg=''):
  return base()
"""


@pytest.fixture
def hosts(tmp_path):
  """Returns a function: the digests of an experiment on two hosts, with edits on the second."""

  def make(**edits):
    found = []
    for host, changed in (('one', {}), ('other', edits)):
      folder = tmp_path / host
      folder.mkdir()
      files = {'of_hosts': EXPERIMENT, 'layers_of_hosts': 'WIDTH = 8\n'} | changed
      for name, text in files.items():
        (folder / f'{name}.py').write_text(text)
      experiment.load(str(folder / 'of_hosts.py'))  # the modules that it imports count
      found.append(sources.digests(folder / 'of_hosts.py'))
    return found

  return make


def check(first, other, monkeypatch):
  for own in (first, other):  # both processes raise the same error
    monkeypatch.setattr(multihost, 'gather', lambda value, own=own: [first, other])
    multihost.check_same(own)


@pytest.mark.parametrize(
  ('edits', 'names'),
  [
    ({'layers_of_hosts': 'WIDTH = 9\n'}, r'layers_of_hosts\.py'),
    (
      {'of_hosts': EXPERIMENT + '# here', 'layers_of_hosts': ''},
      r'layers_of_hosts\.py, of_hosts\.py',
    ),
  ],
)
def test_error_names_files_that_differ_between_processes(edits, names, hosts, monkeypatch):
  message = rf'process 1 differs from process 0 in {names};'
  with pytest.raises(UserError, match=message):
    check(*hosts(**edits), monkeypatch)


def test_equal_code_in_different_directories_is_accepted(hosts, monkeypatch):
  check(*hosts(), monkeypatch)


@pytest.mark.parametrize('change', [{'jax': '0.1'}, {'lm': 'f00d'}, {'more.py': 'f00d'}])
def test_error_names_libraries_and_missing_files(change, hosts, monkeypatch):
  first, other = hosts()
  (name,) = change
  for pair in ((first, other | change), (first | change, other)):
    with pytest.raises(UserError, match=f'in {name}; all processes must have the same code'):
      check(*pair, monkeypatch)
