"""The standard library of the running Python as source text, read and never imported."""

import ast
import functools
import hashlib
import pathlib
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from lm.errors import UserError

# Tests, other people's packages, and code whose docstrings say little or say it twice.
_SKIPPED = {'__pycache__', 'dist-packages', 'encodings', 'idlelib', 'lib2to3', 'site-packages'}
_SKIPPED |= {'_bundled', 'test', 'tests', 'turtledemo'}
_Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Entry(NamedTuple):
  """The documentation of a module, class or function.

  Attributes:
    name: dotted, the module's first.
    arguments: what stands between the parentheses of a function; None for others.
    doc: the docstring without its indentation.
  """

  name: str
  arguments: str | None
  doc: str


@functools.cache
def files() -> dict[pathlib.PurePath, bytes]:
  """Returns the source files of the standard library by their place in it, in a fixed order.

  Raises:
    UserError: this Python comes without them.
  """
  root = pathlib.Path(sysconfig.get_path('stdlib'))
  paths = {p.relative_to(root): p for p in root.rglob('*.py')}
  kept = sorted(p for p in paths if _SKIPPED.isdisjoint(p.parts))
  if not kept:
    raise UserError(f'data.source: this Python has no library sources in {root}')
  return {place: paths[place].read_bytes() for place in kept}


def fingerprint() -> str:
  """Returns the version of Python and a digest of its library."""
  digest = hashlib.sha256()
  for place, data in files().items():
    digest.update(f'{place} {len(data)}\n'.encode() + data)
  return f'{".".join(map(str, sys.version_info[:3]))} {digest.hexdigest()}'


def module_name(place: pathlib.PurePath) -> str:
  """Returns the dotted name of the module in a file."""
  return '.'.join(place.with_suffix('').parts).removesuffix('.__init__')


def parse(data: bytes) -> ast.Module | None:
  """Returns the syntax of a source file; None for templates, which are no Python."""
  try:
    with warnings.catch_warnings(action='ignore'):  # made errors, they would lose us the file
      return ast.parse(data)
  except SyntaxError:
    return None


def entries(node: _Definition, name: str) -> Iterator[Entry]:
  """Yields the documentation of a definition and of those directly inside it."""
  doc = ast.get_docstring(node)
  if doc:
    arguments = None
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      arguments = ast.unparse(node.args)
    yield Entry(name, arguments, doc)
  for inner in node.body:
    if isinstance(inner, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
      yield from entries(inner, f'{name}.{inner.name}')
