"""The embedded corpus: the English documentation that comes inside every Python."""

import ast
import functools
import gc
import hashlib
import pathlib
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence

from lm.data import splits
from lm.errors import UserError

# Tests, other people's packages, and code whose docstrings say little or say it twice.
_SKIPPED = {'__pycache__', 'dist-packages', 'encodings', 'idlelib', 'lib2to3', 'site-packages'}
_SKIPPED |= {'_bundled', 'test', 'tests', 'turtledemo'}
_TOPICS = pathlib.PurePath('pydoc_data', 'topics.py')
_Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def python_docs(split: str, validation: float = 0.05) -> 'PythonDocs':
  """Returns documents of English prose about Python, about 2 MB, from the running Python.

  They are the topics of `help()` and, for each module of the standard library, its docstrings in
  order of appearance under the names they belong to. Source files are read with `ast` and never
  imported. A document is in 'validation' by a hash of its name, and so never changes sides.

  Raises:
    UserError: an unknown split; a Python without the sources of its library.
  """
  if not 0 < validation < 1:
    raise UserError(f'data.source: validation={validation} is not a share, 0 < validation < 1')
  splits.check(split, ['train', 'validation'])
  return PythonDocs(split, validation)


class PythonDocs(Sequence):
  """One split of the documentation; the sources are parsed when the first document is read.

  Attributes:
    fingerprint: the version of Python and a digest of its library.
  """

  def __init__(self, split: str, validation: float):
    self._split = split
    self._validation = validation
    version = '.'.join(map(str, sys.version_info[:3]))
    self.fingerprint = f'{version} {_digest()}'

  def __len__(self) -> int:
    return len(self._texts)

  def __getitem__(self, index):
    return {'text': self._texts[index]}

  @functools.cached_property
  def _texts(self) -> list[str]:
    aside = self._split == 'validation'
    return [
      text for name, text in _documents().items() if (_place(name) < self._validation) == aside
    ]


def _place(name: str) -> float:
  """Returns a number in [0, 1) that depends on the name alone."""
  return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], 'big') / 2**32


@functools.cache
def _files() -> dict[pathlib.PurePath, bytes]:
  """Returns the source files of the standard library by their place in it, in a fixed order."""
  root = pathlib.Path(sysconfig.get_path('stdlib'))
  paths = {p.relative_to(root): p for p in root.rglob('*.py')}
  kept = sorted(p for p in paths if _SKIPPED.isdisjoint(p.parts))
  if not kept:
    raise UserError(f'data.source: this Python has no library sources in {root}')
  return {place: paths[place].read_bytes() for place in kept}


def _digest() -> str:
  digest = hashlib.sha256()
  for place, data in _files().items():
    digest.update(f'{place} {len(data)}\n'.encode() + data)
  return digest.hexdigest()


@functools.cache
def _documents() -> dict[str, str]:
  """Returns the text of each document by its name."""
  found: dict[str, str] = {}
  seen: set[str] = set()
  # Trees of syntax hold no cycles, and the collector would go through millions of nodes.
  collecting = gc.isenabled()
  gc.disable()
  try:
    for place, data in _files().items():
      tree = _parse(data)
      if tree is None:
        continue
      if place == _TOPICS:
        for topic, text in sorted(_topics(tree).items()):
          if text not in seen:  # several keywords may share a page
            seen.add(text)
            found[f'topic {topic}'] = text
      name = '.'.join(place.with_suffix('').parts).removesuffix('.__init__')
      entries = [e for e in _entries(tree, name) if e[1] not in seen]
      seen.update(doc for _, doc in entries)
      if entries:
        found[name] = '\n\n'.join(f'{title}\n\n{doc}' for title, doc in entries) + '\n'
  finally:
    if collecting:
      gc.enable()
  return found


def _parse(data: bytes) -> ast.Module | None:
  try:
    with warnings.catch_warnings(action='ignore'):  # made errors, they would lose us the file
      return ast.parse(data)
  except SyntaxError:  # the library has templates that are no Python
    return None


def _topics(tree: ast.Module) -> dict[str, str]:
  """Returns the pages of `help()`, which are one literal dictionary."""
  for statement in tree.body:
    if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
      return ast.literal_eval(statement.value)
  return {}


def _entries(node: _Definition, name: str) -> Iterator[tuple[str, str]]:
  """Yields the heading and the docstring of a definition and of those directly inside it."""
  doc = ast.get_docstring(node)
  if doc:
    heading = name
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      heading += f'({ast.unparse(node.args)})'
    yield heading, doc
  for inner in node.body:
    if isinstance(inner, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
      yield from _entries(inner, f'{name}.{inner.name}')
