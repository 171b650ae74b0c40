"""The embedded corpus: the English documentation that comes inside every Python."""

import ast
import functools
import gc
import pathlib

from lm.data import python_library, splits
from lm.data.examples import Deferred, Example

_TOPICS = pathlib.PurePath('pydoc_data', 'topics.py')


def python_docs(split: str, validation: float = 0.05) -> Deferred:
  """Returns documents of English prose about Python, about 2 MB, from the running Python.

  They are the topics of `help()` and, for each module of the standard library, its docstrings in
  order of appearance under the names they belong to. Source files are read with `ast` and never
  imported. A document is in 'validation' by a hash of its name, and so never changes sides.

  Raises:
    UserError: an unknown split; a Python without the sources of its library.
  """
  is_ours = splits.by_name(split, validation)

  def make() -> list[Example]:
    return [{'text': text} for name, text in _documents().items() if is_ours(name)]

  return Deferred(make, python_library.fingerprint())


@functools.cache
def _documents() -> dict[str, str]:
  """Returns the text of each document by its name."""
  found: dict[str, str] = {}
  seen: set[str] = set()
  # Trees of syntax hold no cycles, and the collector would go through millions of nodes.
  collecting = gc.isenabled()
  gc.disable()
  try:
    for place, data in python_library.files().items():
      tree = python_library.parse(data)
      if tree is None:
        continue
      if place == _TOPICS:
        for topic, text in sorted(_topics(tree).items()):
          if text not in seen:  # several keywords may share a page
            seen.add(text)
            found[f'topic {topic}'] = text
      name = python_library.module_name(place)
      entries = [e for e in python_library.entries(tree, name) if e.doc not in seen]
      seen.update(entry.doc for entry in entries)
      if entries:
        found[name] = '\n\n'.join(f'{_heading(e)}\n\n{e.doc}' for e in entries) + '\n'
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


def _heading(entry: python_library.Entry) -> str:
  return entry.name if entry.arguments is None else f'{entry.name}({entry.arguments})'
