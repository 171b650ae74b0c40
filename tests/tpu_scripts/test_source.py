"""The code that is sent to the workers."""

import subprocess
import tarfile

import pytest

from tpu_scripts import source
from tpu_scripts.errors import Stop


@pytest.fixture
def clone(tmp_path):
  """A clone with one commit of file a; git ignores file b."""
  for name, text in (('a', 'one\n'), ('b', 'ignored\n'), ('.gitignore', 'b\n')):
    (tmp_path / name).write_text(text)
  who = ['-c', 'user.name=x', '-c', 'user.email=x@x']
  for words in (['init', '-q'], ['add', '.'], [*who, 'commit', '-qm', 'first']):
    subprocess.run(['git', '-C', str(tmp_path), *words], check=True)
  return tmp_path


def _files(path: str) -> dict[str, str]:
  with tarfile.open(path) as packed:
    files = [member for member in packed.getmembers() if member.isfile()]
    return {member.name: packed.extractfile(member).read().decode() for member in files}


def test_commit_is_sent_without_uncommitted_changes(clone, tmp_path_factory, capsys):
  (clone / 'a').write_text('two\n')
  found = source.find(False, clone)
  assert 'uncommitted changes are not sent' in capsys.readouterr().err
  files = _files(source.archive(found, str(tmp_path_factory.mktemp('out')), clone))
  assert files['a'] == 'one\n' and set(files) == {'a', '.gitignore', '.source'}
  assert files['.source'] == f'== commit {found.commit} diff none\n'
  assert found.name == found.commit[:12]


def test_include_dirty_sends_the_working_tree(clone, tmp_path_factory):
  clean = source.find(True, clone)
  (clone / 'a').write_text('two\n')
  (clone / 'new').write_text('new\n')
  staged = subprocess.run(['git', '-C', str(clone), 'diff', '--cached'], capture_output=True).stdout
  found = source.find(True, clone)
  files = _files(source.archive(found, str(tmp_path_factory.mktemp('out')), clone))
  assert files['a'] == 'two\n' and files['new'] == 'new\n' and 'b' not in files
  assert found.commit == clean.commit and not clean.diff and len(found.diff) == 8
  assert source.find(True, clone).name == found.name
  (clone / 'a').write_text('three\n')
  assert source.find(True, clone).name != found.name
  now = subprocess.run(['git', '-C', str(clone), 'diff', '--cached'], capture_output=True).stdout
  assert now == staged  # the index of the user does not change


def test_directory_that_is_no_clone_is_refused(tmp_path, monkeypatch):
  monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))
  with pytest.raises(Stop, match='git rev-parse HEAD: fatal: not a git repository'):
    source.find(False, tmp_path)
