"""Paths from users: ~ is expanded, and a workdir whose checkpoints could not be read is refused."""

import os
import pathlib
import re

import pytest
from in_process import mistake

from lm import cli
from lm.errors import UserError
from lm.evaluation import ensembles, trained_model
from lm.workdir import files, sources

FILE = "def get_config(arg=''):\n  from lm.config.base import base\n  return base()\n"


@pytest.fixture
def home(tmp_path, monkeypatch):
  """The home directory of the user; the current directory is another one."""
  for name in ('home', 'here'):
    (tmp_path / name).mkdir()
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  monkeypatch.chdir(tmp_path / 'here')
  return tmp_path / 'home'


def test_home_and_variables_of_a_workdir_are_expanded(home, monkeypatch):
  monkeypatch.setenv('RUNS', '/disk/runs')
  assert files.workdir('~/x') == home / 'x'
  assert files.workdir('$RUNS/x') == pathlib.Path('/disk/runs/x')
  assert files.workdir('runs/x') == pathlib.Path('runs/x')
  assert [folder for folder, _ in ensembles.parse_members('~/x,~/y', None)] == [
    home / 'x',
    home / 'y',
  ]
  (home / 'a,b').mkdir()
  assert [folder for folder, _ in ensembles.parse_members('~/a,b', None)] == [home / 'a,b']
  with pytest.raises(UserError, match=r'--workdir=.\$NO_SUCH/x.*NO_SUCH is not set'):
    files.workdir('$NO_SUCH/x')


def test_the_home_of_a_config_is_expanded(home):
  (home / 'named_by_tilde.py').write_text(FILE)
  config, path = cli.config(['lm', '--config=~/named_by_tilde.py:', '--config.steps=3'])
  assert (config.steps, path) == (3, f'{home}/named_by_tilde.py:')
  sources.add_to_sys_path(home.parent)


def test_the_home_of_files_is_expanded(home):
  (home / 'folder').mkdir()
  for program, *arguments in (
    ('evaluate', '--workdir=x', '--predictions=~/folder'),
    ('vectors', 'export', '--workdir=x', '--out=~/folder'),
  ):
    line = mistake(program, *arguments)
    assert 'folder is a directory; give the name of a file' in line
  assert f'--workdir={home}/x: no run there' in mistake('evaluate', '--workdir=~/x')
  # The workdir of a tagger is expanded too.
  with pytest.raises(UserError, match=re.escape(f'{home}/pos: no run there')):
    trained_model.tag(['a'], workdir='~/pos')


@pytest.mark.parametrize('name', ['lr[3e-4]', 'a*b', 'what?', 'back\\slash', 'x]'])
@pytest.mark.parametrize('key', ['--workdir', 'warm_start.workdir'])
def test_paths_without_readable_checkpoints_are_refused(tmp_path, name, key):
  for path in (tmp_path / name, tmp_path / name / 'run'):
    with pytest.raises(UserError, match=re.escape(f'{key}={path}')) as e:
      files.workdir(path, key)
    assert '\n' not in str(e.value)
  with pytest.raises(UserError, match='prevents the restore of a checkpoint'):
    files.workdir(f'gs://bucket/{name}')


def test_characters_of_a_parent_folder_are_refused_too(tmp_path, monkeypatch):
  (tmp_path / 'a[1]').mkdir()
  monkeypatch.chdir(tmp_path / 'a[1]')
  with pytest.raises(UserError, match=r"--workdir=run: '\[' in its path"):
    files.workdir('run')


@pytest.mark.parametrize('name', ['a b', 'é中', "it's", 'a=b,c', '{x}', 'a#b%20', '~x', 'a:b'])
def test_other_characters_are_accepted(tmp_path, name):
  assert files.workdir(tmp_path / name) == tmp_path / name


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    (b'--prompt=caf\xe9', 'lm.x: --prompt is not UTF-8'),
    (b'--prefix=\xff', 'lm.x: --prefix is not UTF-8'),
    (b'w\xffrd', 'lm.x: an argument is not UTF-8'),
  ],
)
def test_bytes_in_arguments_are_reported_before_anything_is_read(argument, message, capsys):
  argv = ['x.py', '--workdir=/nowhere', os.fsdecode(argument)]
  assert cli._exit_code(lambda argv: pytest.fail('it ran'), '', argv) == cli.USAGE
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(message) and repr(argument)[2:-1] in line


def test_other_characters_in_arguments_are_text():
  seen = []
  assert cli._exit_code(lambda argv: seen.append(argv[1]), '', ['x.py', '--prompt=é中🎉']) == 0
  assert seen == ['--prompt=é中🎉']
