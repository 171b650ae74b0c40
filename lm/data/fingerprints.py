"""Fingerprints for the preparation cache: digests of data, of code, and of files named in code.

A function depends on its module and on all modules of the project that its module imports, directly
or indirectly. The project is everything outside the standard library and the installed packages:
the experiment's folder, and this package. Comments, formatting, docstrings and `get_config` do not
count, as they do not change prepared data.

A function also depends on the files named by its arguments, or by string literals in modules of the
project outside this package. A file name composed at run time is not detected: pass it as an
argument.
"""

import ast
import contextlib
import functools
import hashlib
import importlib.util
import os
import pathlib
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import tokenizers

from lm.config import resolve
from lm.errors import UserError
from lm.task import as_example

FORMAT = 11  # increased whenever a change of the code prepares the same inputs differently
_PACKAGE = 'lm'
_IMPORT_PATH = re.compile(r'[A-Za-z_][\w.]*:[A-Za-z_][\w.]*(\(.*\))?', re.DOTALL)
_INSTALLED = {'site-packages', 'dist-packages'}
_LARGE = 2**26  # bytes; larger files are identified by size and time, as hashing takes seconds
_LONGEST = 1000  # characters of a file name
# Libraries whose versions may change what the steps of data.prepare return.
_LIBRARIES = ('opencc-python-reimplemented', 'regex', 'rjieba', 'stopwordsiso')


def of_split(
  data: Mapping[str, Any], source_path: str, split: str, source: Sequence[dict]
) -> dict[str, Any]:
  """Returns all inputs that determine the text of a split, as JSON values.

  Args:
    data: the config's data section.
    source_path: import path of the source.
    split: name of the split.
    source: the opened split.
  """
  steps = list(data['prepare'])
  for i, step in enumerate(steps):
    resolve.resolve(step, f'data.prepare[{i}]')
  libraries = _LIBRARIES if steps else ()
  return {
    'format': FORMAT,
    'tokenizers': tokenizers.__version__,
    'libraries': {n: d.version for n in libraries for d in metadata.distributions(name=n)},
    'source': source_path,
    'split': split,
    'fingerprint': getattr(source, 'fingerprint', None) or _digest_of_examples(source),
    'prepare': steps,
    'code': of_paths([source_path]) | of_values(steps),
  }


def of_paths(paths: Iterable[str]) -> dict[str, str]:
  """Returns digests of the modules that import paths reach, and of the files named in them.

  Args:
    paths: import paths of functions that have been resolved; their arguments are ignored.
  """
  digests: dict[str, str] = {}
  waiting = [name for path in paths for name in _modules(path)]
  while waiting:
    name = waiting.pop()
    file = _module_file(name) if name not in digests and _is_project(name) else None
    ours = name.partition('.')[0] == _PACKAGE
    # An __init__.py of lm only re-exports names, some from modules that this preparation does not
    # use.
    if file is None or (ours and file.name == '__init__.py'):
      continue
    digests[name], imported, literals = _parse(file, file.stat().st_mtime_ns)
    package = name if file.name == '__init__.py' else name.rpartition('.')[0]
    waiting += _absolute(imported, package)
    if not ours:
      digests |= _files(literals, (pathlib.Path(), file.parent))
  return dict(sorted(digests.items()))


def of_values(value: Any) -> dict[str, str]:
  """Returns digests of the import paths and files named by the strings in a value.

  The arguments of import paths are included, recursively.

  Args:
    value: a string, or a list, tuple or dict of values.
  """
  digests: dict[str, str] = {}
  for string in strings(value):
    digests |= _files([string], (pathlib.Path(),))
    if _IMPORT_PATH.fullmatch(string) and _is_project(string.partition(':')[0]):
      try:
        resolve.resolve(string, 'data')
        arguments = resolve.parse(string, 'data')[2]
      except UserError:  # a string that only looks like an import path
        continue
      digests |= of_paths([string]) | of_values(arguments)
  return dict(sorted(digests.items()))


def strings(value: Any) -> Iterator[str]:
  """Yields the strings in a value of dicts, lists and tuples, except for keys."""
  left = [value]
  while left:
    value = left.pop()
    if isinstance(value, str):
      yield value
    elif isinstance(value, list | tuple | dict):
      left += value.values() if isinstance(value, dict) else value


def files_beside(module: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the files in a module's folder that its string literals name, by relative path.

  Large files are omitted.
  """
  names = filter(_may_be_file, _parse(module, module.stat().st_mtime_ns)[2])
  inside = (name for name in names if not {'..', '/'} & set(pathlib.PurePath(name).parts))
  files = ((name, module.parent / name) for name in inside)
  return {n: file for n, file in files if os.path.isfile(file) and file.stat().st_size <= _LARGE}


def _digest_of_examples(source: Sequence[dict]) -> str:
  """Returns a digest of all examples, for a source without a fingerprint."""
  digest = hashlib.sha256()
  for i in range(len(source)):
    for key, value in sorted(as_example(source[i], 'data.source').items()):
      # `repr` abbreviates long arrays.
      data = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
      digest.update(f'{i} {key} {len(data)} '.encode() + data)
  return digest.hexdigest()


def _modules(path: str) -> set[str]:
  """Returns the module named by an import path, and the module that defines the function.

  For paths in this package only the latter is returned, as a module of lm may re-export functions
  of other modules.
  """
  named = resolve.parse(path, 'data')[0]
  fn: Any = resolve.resolve(path, 'data')
  while isinstance(fn, functools.partial):
    fn = fn.func
  defined = getattr(fn, '__module__', None) or named
  return {defined} if named.partition('.')[0] == _PACKAGE else {named, defined}


@functools.lru_cache(maxsize=1024)
def _parse(file: pathlib.Path, modified: int) -> tuple[str, tuple[tuple[str, int], ...], list[str]]:
  """Returns a digest of the code of a file, the modules it imports, and its string literals.

  An import is a name and the count of its leading dots.
  """
  del modified  # part of the cache key
  source = file.read_bytes()
  try:
    tree = ast.parse(source)
  except SyntaxError:  # no function was imported from such a module
    return hashlib.sha256(source).hexdigest(), (), []
  tree.body = [n for n in tree.body if getattr(n, 'name', None) != 'get_config']
  _Strip().visit(tree)
  nodes = list(ast.walk(tree))
  imported = [(alias.name, 0) for n in nodes if isinstance(n, ast.Import) for alias in n.names]
  for node in nodes:
    if isinstance(node, ast.ImportFrom):
      # A name imported from a package may be a module of it.
      names = ['', *(f'.{alias.name}' for alias in node.names if alias.name != '*')]
      imported += [(f'{node.module or ""}{name}'.lstrip('.'), node.level) for name in names]
  constants = (n.value for n in nodes if isinstance(n, ast.Constant))
  literals = [value for value in constants if isinstance(value, str)]
  return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(imported), literals


class _Strip(ast.NodeTransformer):
  """Removes docstrings and imports for type checking from a module."""

  def visit_If(self, node: ast.If) -> Any:
    if 'TYPE_CHECKING' in ast.unparse(node.test):
      return [self.visit(n) for n in node.orelse]
    return self.generic_visit(node)

  def _without_docstring(self, node: Any) -> ast.AST:
    if ast.get_docstring(node, clean=False) is not None:
      node.body = node.body[1:]
    return self.generic_visit(node)

  visit_Module = visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _without_docstring


def _absolute(imported: Iterable[tuple[str, int]], package: str) -> set[str]:
  """Returns the absolute names of imported modules and of their parent packages."""
  names = set()
  for name, level in imported:
    if level:
      name = f'{package.rsplit(".", level - 1)[0]}.{name}'.strip('.')
    parts = name.split('.')
    names |= {'.'.join(parts[: n + 1]) for n in range(len(parts))}
  return names - {''}


def _is_project(name: str) -> bool:
  top = name.partition('.')[0]
  file = None if top in sys.stdlib_module_names else _module_file(top)
  if top == _PACKAGE or file is None:
    return top == _PACKAGE
  library = pathlib.Path(sysconfig.get_path('stdlib')).resolve()
  return not (_INSTALLED & set(file.resolve().parts) or file.resolve().is_relative_to(library))


def _module_file(name: str) -> pathlib.Path | None:
  """Returns the source file of a module, imported or not; None if it has none."""
  file = getattr(sys.modules.get(name), '__file__', None)
  if not file:
    with contextlib.suppress(ImportError, ValueError, AttributeError):  # no such module
      file = getattr(importlib.util.find_spec(name), 'origin', None)
  path = pathlib.Path(file or '')
  return path if path.suffix == '.py' and path.is_file() else None


def _may_be_file(name: str) -> bool:
  return 0 < len(name) <= _LONGEST and name.isprintable()


def _files(names: Iterable[str], folders: Sequence[pathlib.Path]) -> dict[str, str]:
  """Returns digests of the files among `names`; relative names are looked up in `folders`."""
  digests = {}
  for name in filter(_may_be_file, names):
    path = pathlib.Path(os.path.expandvars(name)).expanduser()
    for file in [folder / path for folder in folders if os.path.isfile(folder / path)][:1]:
      stat = file.stat()
      digests[f'file {name}'] = (
        f'{stat.st_size} {stat.st_mtime_ns}'
        if stat.st_size > _LARGE
        else hashlib.sha256(file.read_bytes()).hexdigest()
      )
  return digests
