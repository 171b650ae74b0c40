"""Embedded regression: how long the functions of Python's own library are."""

import ast
import functools
import math

from lm.data import python_library, splits
from lm.data.examples import Deferred, Example

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def python_functions(split: str, validation: float = 0.1) -> Deferred:
  """Returns {'text', 'value'} for the functions of the standard library that say what they do.

  The text is what a caller reads, the name with the arguments and below them the docstring; the
  value is the logarithm to base 2 of how many lines the code below that takes up, from the first
  statement to the last. Of functions with the same text the first one counts.

  A module is in 'validation' by a hash of its name.

  Args:
    split: 'train' or 'validation'.
    validation: the share set aside.

  Raises:
    UserError: an unknown split; a Python without the sources of its library.
  """
  is_ours = splits.by_name(split, validation)

  def make() -> list[Example]:
    return [{'text': text, 'value': v} for text, (name, v) in _functions().items() if is_ours(name)]

  return Deferred(make, python_library.fingerprint())


@functools.cache
def _functions() -> dict[str, tuple[str, float]]:
  """Returns the module and the value of each text, of both splits: no text is in the two."""
  found: dict[str, tuple[str, float]] = {}
  for place, data in python_library.files().items():
    name, tree = python_library.module_name(place), python_library.parse(data)
    for node in ast.walk(tree) if tree is not None else ():
      doc = ast.get_docstring(node) if isinstance(node, _Function) else None
      # A docstring alone is an interface, whose code is elsewhere.
      if isinstance(node, _Function) and doc and len(node.body) > 1:
        text = f'{node.name}({ast.unparse(node.args)})\n\n{doc}'
        found.setdefault(text, (name, math.log2(_lines(node.body[1:]))))
  return found


def _lines(body: list[ast.stmt]) -> int:
  last = body[-1].end_lineno
  assert last is not None
  return last - body[0].lineno + 1
