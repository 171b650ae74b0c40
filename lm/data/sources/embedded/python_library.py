"""Sources from the standard library of the running Python: documentation and functions.

Source files are parsed with `ast` and never imported.
"""

import ast
import functools
import gc
import hashlib
import math
import pathlib
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from lm.data.sources.base import Example, LazyLoad, hash_split
from lm.errors import UserError

# Tests, installed packages, and code with few or duplicate docstrings.
_SKIPPED = {'__pycache__', 'dist-packages', 'encodings', 'idlelib', 'lib2to3', 'site-packages'}
_SKIPPED |= {'_bundled', 'test', 'tests', 'turtledemo'}
_TOPICS = pathlib.PurePath('pydoc_data', 'topics.py')
_Function = ast.FunctionDef | ast.AsyncFunctionDef


class Entry(NamedTuple):
  """The documentation of a module, class or function.

  Attributes:
    name: dotted, starting with the module.
    arguments: text between the parentheses of a function; None for others.
    doc: the docstring without its indentation.
  """

  name: str
  arguments: str | None
  doc: str


def python_docs(split: str, validation: float = 0.05) -> LazyLoad:
  """Returns documents of English prose about Python, about 2 MB.

  They are the topics of `help()` and, for each module of the standard library, its docstrings in
  order of appearance, each after its name. A hash of a document's name determines its split.

  Raises:
    UserError: an unknown split; a Python without the sources of its library.
  """
  in_split = hash_split(split, validation)

  def make() -> list[Example]:
    return [{'text': text} for name, text in _documents().items() if in_split(name)]

  return LazyLoad(make, fingerprint())


def python_functions(split: str, validation: float = 0.1) -> LazyLoad:
  """Returns {'text', 'value'} for the functions of the standard library with docstrings.

  The text is the signature and the docstring. The value is the binary logarithm of the number of
  lines of code after the docstring. Of functions with the same text the first one counts. A hash of
  the module's name determines the split.

  Args:
    split: 'train' or 'validation'.
    validation: the fraction set aside.

  Raises:
    UserError: an unknown split; a Python without the sources of its library.
  """
  in_split = hash_split(split, validation)

  def make() -> list[Example]:
    return [{'text': text, 'value': v} for text, (name, v) in _measured().items() if in_split(name)]

  return LazyLoad(make, fingerprint())


@functools.cache
def files() -> dict[pathlib.PurePath, bytes]:
  """Returns the source files of the standard library by relative path, in a fixed order.

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


def modules() -> Iterator[tuple[pathlib.PurePath, str, ast.Module]]:
  """Yields path, name and syntax tree of each module; skips templates, which are not Python."""
  for place, data in files().items():
    try:
      with warnings.catch_warnings(action='ignore'):  # as errors they would lose the file
        tree = ast.parse(data)
    except SyntaxError:
      continue
    yield place, module_name(place), tree


def entries(node: ast.Module | ast.ClassDef | _Function, name: str) -> Iterator[Entry]:
  """Yields the documentation of a definition and of those directly inside it."""
  doc = ast.get_docstring(node)
  if doc:
    arguments = ast.unparse(node.args) if isinstance(node, _Function) else None
    yield Entry(name, arguments, doc)
  for inner in node.body:
    if isinstance(inner, ast.ClassDef | _Function):
      yield from entries(inner, f'{name}.{inner.name}')


@functools.cache
def _documents() -> dict[str, str]:
  """Returns the text of each document by its name."""
  found: dict[str, str] = {}
  seen: set[str] = set()
  # Syntax trees have no cycles, and the collector would visit millions of nodes.
  collecting = gc.isenabled()
  gc.disable()
  try:
    for place, name, tree in modules():
      if place == _TOPICS:
        for topic, text in sorted(_topics(tree).items()):
          if text not in seen:  # several keywords may share a page
            seen.add(text)
            found[f'topic {topic}'] = text
      new = [entry for entry in entries(tree, name) if entry.doc not in seen]
      seen.update(entry.doc for entry in new)
      if new:
        found[name] = '\n\n'.join(f'{_heading(entry)}\n\n{entry.doc}' for entry in new) + '\n'
  finally:
    if collecting:
      gc.enable()
  return found


def _topics(tree: ast.Module) -> dict[str, str]:
  """Returns the pages of `help()`, which are one literal dictionary."""
  for statement in tree.body:
    if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
      return ast.literal_eval(statement.value)
  return {}


def _heading(entry: Entry) -> str:
  return entry.name if entry.arguments is None else f'{entry.name}({entry.arguments})'


@functools.cache
def _measured() -> dict[str, tuple[str, float]]:
  """Returns module and value of each text, of both splits: no text is in both."""
  found: dict[str, tuple[str, float]] = {}
  for _, name, tree in modules():
    for node in ast.walk(tree):
      doc = ast.get_docstring(node) if isinstance(node, _Function) else None
      # A docstring alone is an interface, whose code is elsewhere.
      if isinstance(node, _Function) and doc and len(node.body) > 1:
        text = f'{node.name}({ast.unparse(node.args)})\n\n{doc}'
        last = node.body[-1].end_lineno
        assert last is not None
        found.setdefault(text, (name, math.log2(last - node.body[1].lineno + 1)))
  return found
