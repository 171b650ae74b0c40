"""The modules of an experiment on Python's import path, and their copies in a workdir.

A config names functions of its own file and of its neighbors, the modules in the same folder. A
workdir has copies of both in source/. Programs that read the workdir import these copies.
"""

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import os
import pathlib
import platform
import sys
from collections.abc import Iterator
from types import ModuleType

# Packages whose versions a run records and compares between its processes.
PACKAGES = ('flax', 'grain', 'jax', 'jaxlib', 'numpy', 'optax', 'orbax-checkpoint', 'tokenizers')

# Folders that this module added to sys.path, each with its string in sys.path. `_drop` compares
# strings by identity, because Python's own entry for the current directory may be an equal string.
_folders: dict[pathlib.Path, str] = {}


def add_to_sys_path(folder: pathlib.Path) -> None:
  """Makes the modules of a folder importable; installed modules have priority.

  Folders added earlier are removed with their modules, so that an import path in a config never
  resolves to the file of another run.
  """
  folder = folder.resolve()
  if list(_folders) == [folder]:
    return
  for other in list(_folders):
    _drop(other)
  _put(folder, len(sys.path))


@contextlib.contextmanager
def workdir_modules(folder: pathlib.Path) -> Iterator[None]:
  """Makes the modules of a workdir's source/ importable within a block, with the highest priority.

  The end of the block restores sys.path and sys.modules.
  """
  folder = folder.resolve()
  others = [other for other in _folders if other != folder]
  own = {path.stem for path in folder.glob('*') if path.suffix == '.py' or path.is_dir()}
  hidden = {
    name: module
    for name, module in sys.modules.items()
    if name.partition('.')[0] in own or any(path_in(f, module) for f in others)
  }
  path, folders = list(sys.path), dict(_folders)
  for name in hidden:
    del sys.modules[name]
  for other in folders:
    _drop(other)
  _put(folder, 0)
  try:
    yield
  finally:
    _forget_modules(folder)
    sys.modules.update(hidden)
    sys.path[:] = path
    _folders.clear()
    _folders.update(folders)
    importlib.invalidate_caches()


@contextlib.contextmanager
def import_source(folder: pathlib.Path) -> Iterator[list[str]]:
  """Makes the modules of a workdir's source/ importable in a block and, if possible, after it.

  Yields:
    The files of source/ whose module names already refer to other code in this process. After the
    block, these names refer to the other code again.
  """
  folder = folder.resolve()
  clashes = _clashes(folder)
  if clashes:
    with workdir_modules(folder):
      yield clashes
  else:
    if folder in _folders:
      _drop(folder)  # its files may have changed
    _put(folder, 0)
    yield []


def modules_folder(config_file: pathlib.Path) -> pathlib.Path:
  """Returns the folder of the modules of a config file, or of a config.json; links are followed."""
  folder = config_file.resolve().parent
  return (folder / 'source').resolve() if config_file.suffix == '.json' else folder


def neighbors(config_file: pathlib.Path) -> dict[str, bytes]:
  """Returns the content of the experiment's file and its imported neighbors, by relative path."""
  if config_file.suffix not in ('.py', '.json'):
    return {}
  folder = modules_folder(config_file)
  names = {path_in(folder, module) for module in list(sys.modules.values())} - {''}
  names |= {config_file.resolve().name} if config_file.suffix == '.py' else set()
  return {name: (folder / name).read_bytes() for name in sorted(names)}


def digests(config_file: pathlib.Path) -> dict[str, str]:
  """Returns digests of the code of a run by file, and versions by package."""
  package = hashlib.sha256()
  root = pathlib.Path(__file__).parents[1]
  for file in sorted(root.rglob('*.py')):
    header = f'{file.relative_to(root).as_posix()} {file.stat().st_size} '
    package.update(header.encode() + file.read_bytes())
  own = {
    name: hashlib.sha256(content).hexdigest() for name, content in neighbors(config_file).items()
  }
  return {'lm': package.hexdigest(), 'Python': platform.python_version()} | versions() | own


def versions() -> dict[str, str]:
  """Returns the version of each of `PACKAGES`."""
  return {name: importlib.metadata.version(name) for name in PACKAGES}


def _clashes(folder: pathlib.Path) -> list[str]:
  """Returns the files of a folder whose module names refer to other code in this process."""
  found = []
  for file in sorted(folder.rglob('*.py')):
    name = file.relative_to(folder).as_posix()
    rivals = [other / name for other in _folders if other != folder and (other / name).is_file()]
    module = sys.modules.get(name.removesuffix('.py').removesuffix('/__init__').replace('/', '.'))
    if module is not None and not path_in(folder, module):
      rivals.append(pathlib.Path(getattr(module, '__file__', None) or ''))
    content = file.read_bytes()
    if any(not rival.is_file() or rival.read_bytes() != content for rival in rivals):
      found.append(name)
  return found


def _put(folder: pathlib.Path, index: int) -> None:
  """Inserts a folder into the import path."""
  _folders[folder] = str(folder)
  sys.path.insert(index, _folders[folder])
  importlib.invalidate_caches()


def _drop(folder: pathlib.Path) -> None:
  """Removes a folder from the import path, with its modules."""
  _forget_modules(folder)
  entry = _folders.pop(folder)
  sys.path[:] = [path for path in sys.path if path is not entry]


def _forget_modules(folder: pathlib.Path) -> None:
  """Removes the modules of a folder from `sys.modules`."""
  for name in [name for name, module in sys.modules.items() if path_in(folder, module)]:
    del sys.modules[name]


def path_in(folder: pathlib.Path, module: ModuleType | None) -> str:
  """Returns the path of a module's file relative to a folder; '' if it was imported from elsewhere.

  Modules of lm have the path '' too. Symbolic links to the folder, and links in it, are followed.

  Args:
    folder: without symbolic links in its path.
    module: an entry of `sys.modules`.
  """
  # The __file__ of some modules is not a path, such as '_ops.py' of torch.ops.
  file, name = getattr(module, '__file__', None), getattr(module, '__name__', None)
  if not isinstance(file, str) or not isinstance(name, str) or name.partition('.')[0] == 'lm':
    return ''
  stem = name.replace('.', '/')
  for relative in (f'{stem}.py', f'{stem}/__init__.py'):
    root = file.removesuffix(f'/{relative}')
    if root != file and os.path.isabs(root) and _resolved(root) == folder:
      return relative
  return ''


@functools.cache  # `path_in` runs for all modules of the process, several times
def _resolved(folder: str) -> pathlib.Path:
  return pathlib.Path(folder).resolve()
