"""The code for the workers: an archive of a commit or of the working tree, and its hash."""

import dataclasses
import hashlib
import os
import pathlib
import shlex
import subprocess
import sys
import tarfile
import tempfile

from tpu_scripts.errors import Stop

ROOT = pathlib.Path(__file__).resolve().parent.parent
SETUP = ROOT / 'tpu_scripts' / 'remote_setup.sh'


@dataclasses.dataclass(frozen=True)
class Source:
  """Code to send: a commit, the hash of the diff to it (or ''), and the tree object of git."""

  commit: str
  diff: str
  tree: str

  @property
  def name(self) -> str:
    """The beginning of the commit's hash, and the hash of the diff."""
    return self.commit[:12] + (f'-{self.diff}' if self.diff else '')


def find(include_dirty: bool, root: pathlib.Path = ROOT) -> Source:
  """Returns the code of the clone.

  Args:
    include_dirty: Send the working tree without ignored files, instead of the commit.

  Raises:
    Stop: the directory is not a clone.
  """
  commit = _git(root, 'rev-parse', 'HEAD')
  if not _git(root, 'status', '--porcelain'):
    return Source(commit, '', commit)
  if not include_dirty:
    print(
      'uncommitted changes are not sent; give --include-dirty to send them too', file=sys.stderr
    )
    return Source(commit, '', commit)
  with tempfile.TemporaryDirectory() as folder:
    # A separate index, so that the index of the user does not change.
    index = {'GIT_INDEX_FILE': os.path.join(folder, 'index')}
    _git(root, 'read-tree', 'HEAD', env=index)
    _git(root, 'add', '--all', env=index)
    tree = _git(root, 'write-tree', env=index)
  diff = _git(root, 'diff', '--binary', commit, tree)
  return Source(commit, hashlib.sha256(diff.encode()).hexdigest()[:8], tree)


def archive_name(source: Source) -> str:
  return f'lm-{source.name}.tar.gz'


def archive(source: Source, folder: str, root: pathlib.Path = ROOT) -> str:
  """Writes the archive into a directory, with a file .source that has commit and diff."""
  path = os.path.join(folder, archive_name(source))
  plain = os.path.join(folder, 'tree.tar')
  _git(root, 'archive', '--format=tar', f'--output={plain}', source.tree)
  note = os.path.join(folder, '.source')
  pathlib.Path(note).write_text(f'== commit {source.commit} diff {source.diff or "none"}\n')
  with tarfile.open(plain) as tree, tarfile.open(path, 'w:gz', compresslevel=5) as packed:
    for member in tree.getmembers():
      packed.addfile(member, tree.extractfile(member) if member.isfile() else None)
    packed.add(note, '.source')
  return path


def _git(root: pathlib.Path, *words: str, env: dict[str, str] | None = None) -> str:
  try:
    return subprocess.run(
      ['git', '-C', str(root), *words],
      check=True,
      capture_output=True,
      text=True,
      errors='replace',
      timeout=120,
      env=os.environ | (env or {}),
    ).stdout.strip()
  except FileNotFoundError as e:
    raise Stop('git is not installed; setup sends the files that git lists') from e
  except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as e:
    message = (getattr(e, 'stderr', '') or str(e)).strip()
    raise Stop(f'{shlex.join(["git", *words])}: {message[:200]}') from e
