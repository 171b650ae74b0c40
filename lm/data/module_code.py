"""Digests of the code and files that functions of a config depend on, for the preparation cache.

A function depends on its module and on all modules of the project that this one imports, directly
or through others. The project is whatever is neither the standard library nor installed: the
experiment's folder, and this package. Comments, formatting, docstrings and `get_config` do not
count: they change nothing that is prepared.

A function also depends on files: those that its arguments name, and those whose names are string
literals in modules of the project other than this package. A file with a name that is put together
at run time is not seen: pass its name as an argument.
"""

import ast
import functools
import hashlib
import importlib.util
import os
import pathlib
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from typing import Any

from lm.config import resolve
from lm.errors import UserError

_PACKAGE = 'lm'
_IMPORT_PATH = re.compile(r'[A-Za-z_][\w.]*:[A-Za-z_][\w.]*(\(.*\))?', re.DOTALL)
_INSTALLED = {'site-packages', 'dist-packages'}
_LARGE = 2**26  # bytes; of a larger file size and time count, because its content takes seconds
_LONGEST = 1000  # characters of a file name


def of_paths(paths: Iterable[str]) -> dict[str, str]:
  """Returns digests of the modules, and files they name, that import paths lead to, by name.

  Args:
    paths: of functions that have been resolved; their arguments are passed over.
  """
  digests: dict[str, str] = {}
  waiting = [name for path in paths for name in _modules(path)]
  while waiting:
    name = waiting.pop()
    file = None if name in digests else _file(name)
    if file is None:
      continue
    digests[name], imported, strings = _read(file, file.stat().st_mtime_ns)
    package = name if file.name == '__init__.py' else name.rpartition('.')[0]
    waiting += _absolute(imported, package)
    if name.partition('.')[0] != _PACKAGE:
      digests |= _files(strings, (pathlib.Path(), file.parent))
  return dict(sorted(digests.items()))


def of_values(value: Any) -> dict[str, str]:
  """Returns digests of what the strings in a value name: import paths and files.

  Of an import path also its arguments count, and so on.

  Args:
    value: a string, or a list, tuple or dict of values.
  """
  digests: dict[str, str] = {}
  for string in _strings(value):
    digests |= _files([string], (pathlib.Path(),))
    if _IMPORT_PATH.fullmatch(string) and _is_project(string.partition(':')[0]):
      try:
        resolve.resolve(string, 'data')
        arguments = resolve.parse(string, 'data')[2]
      except UserError:  # it only looks like one
        continue
      digests |= of_paths([string]) | of_values(arguments)
  return dict(sorted(digests.items()))


def files_beside(module: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the files in a module's folder that its string literals name, by relative path.

  Large ones are left out.
  """
  _, _, strings = _read(module, module.stat().st_mtime_ns)
  found = {}
  for name in strings:
    relative = pathlib.PurePath(name)
    if not name.isprintable() or len(name) > _LONGEST or {'..', '/'} & set(relative.parts):
      continue
    file = module.parent / relative
    if os.path.isfile(file) and file.stat().st_size <= _LARGE:
      found[name] = file
  return found


def _strings(value: Any) -> Iterator[str]:
  if isinstance(value, str):
    yield value
  elif isinstance(value, dict):
    yield from _strings(list(value.values()))
  elif isinstance(value, list | tuple):
    for element in value:
      yield from _strings(element)


def _modules(path: str) -> set[str]:
  """Returns the modules of an import path: the one named, and the one that defines the function.

  Of this package, whose modules gather functions of others under one name, the latter alone.
  """
  named = resolve.parse(path, 'data')[0]
  fn: Any = resolve.resolve(path, 'data')
  while isinstance(fn, functools.partial):
    fn = fn.func
  defined = getattr(fn, '__module__', None) or named
  return {defined} if named.partition('.')[0] == _PACKAGE else {named, defined}


@functools.lru_cache(maxsize=1024)
def _read(file: pathlib.Path, modified: int) -> tuple[str, tuple[tuple[str, int], ...], list[str]]:
  """Returns a digest of the code of a file, the modules it imports, and its string literals.

  An import is a name and the number of dots before it.
  """
  del modified  # the file is read again when it has changed
  source = file.read_bytes()
  try:
    tree = ast.parse(source)
  except SyntaxError:  # such a module is imported by nobody yet
    return hashlib.sha256(source).hexdigest(), (), []
  _Bare().visit(tree)
  imported: list[tuple[str, int]] = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      imported += [(alias.name, 0) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      # What is imported from a package may be a module of it.
      names = ['', *(f'.{alias.name}' for alias in node.names if alias.name != '*')]
      imported += [(f'{node.module or ""}{name}'.lstrip('.'), node.level) for name in names]
  constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
  strings = [value for value in constants if isinstance(value, str)]
  return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(imported), strings


class _Bare(ast.NodeTransformer):
  """Takes out of a module what does not shape anything: docstrings, `get_config`, type checking."""

  def visit_Module(self, node: ast.Module) -> ast.AST:
    node.body = [
      n for n in node.body if not (isinstance(n, ast.FunctionDef) and n.name == 'get_config')
    ]
    return self._without_docstring(node)

  def visit_If(self, node: ast.If) -> Any:
    if 'TYPE_CHECKING' in ast.unparse(node.test):
      return [self.visit(n) for n in node.orelse]
    return self.generic_visit(node)

  def _without_docstring(self, node: Any) -> ast.AST:
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
      node.body = node.body[1:]
    return self.generic_visit(node)

  visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _without_docstring


def _absolute(imported: Iterable[tuple[str, int]], package: str) -> set[str]:
  """Returns the names of imported modules, and of the packages that hold them."""
  found = set()
  for name, level in imported:
    if level:
      base = package.rsplit('.', level - 1)[0] if level > 1 else package
      name = f'{base}.{name}'.strip('.')
    parts = name.split('.')
    found |= {'.'.join(parts[: n + 1]) for n in range(len(parts))}
  return found - {''}


def _file(name: str) -> pathlib.Path | None:
  """Returns the source file of a module of the project; None for others and for no module."""
  # The top of this package holds nothing that prepares, and imports all of it when it is called.
  if name == _PACKAGE or not _is_project(name):
    return None
  file = getattr(sys.modules.get(name), '__file__', None) or _origin(name)
  path = pathlib.Path(file) if file else None
  return path if path is not None and path.suffix == '.py' and path.is_file() else None


def _is_project(name: str) -> bool:
  top = name.partition('.')[0]
  if top == _PACKAGE:
    return True
  file = getattr(sys.modules.get(top), '__file__', None) or _origin(top)
  if top in sys.stdlib_module_names or file is None or not file.endswith('.py'):
    return False
  path = pathlib.Path(file).resolve()
  library = pathlib.Path(sysconfig.get_path('stdlib')).resolve()
  return not (_INSTALLED & set(path.parts) or path.is_relative_to(library))


def _origin(name: str) -> str | None:
  try:
    found = importlib.util.find_spec(name)
  except (ImportError, ValueError, AttributeError):  # no module, or none that can be found
    return None
  return None if found is None else found.origin


def _files(names: Iterable[str], folders: Iterable[pathlib.Path]) -> dict[str, str]:
  """Returns digests of those names that are files, by name; relative ones lie in `folders`."""
  digests = {}
  for name in names:
    if not 0 < len(name) <= _LONGEST or not name.isprintable():
      continue
    path = pathlib.Path(os.path.expandvars(name)).expanduser()
    for folder in folders:
      if os.path.isfile(folder / path):
        digests[f'file {name}'] = _content(folder / path)
        break
  return digests


def _content(file: pathlib.Path) -> str:
  stat = file.stat()
  if stat.st_size > _LARGE:
    return f'{stat.st_size} {stat.st_mtime_ns}'
  return hashlib.sha256(file.read_bytes()).hexdigest()
