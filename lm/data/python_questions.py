"""Embedded questions and dialogues about the functions of Python, out of their docstrings."""

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from lm.data import python_library, splits
from lm.data.examples import Deferred, Example

_LONGEST = 600  # characters of a description
_SENTENCE = re.compile(r'.+?(?=[.!?](?:\s|$))|.+')  # without the point at its end
_SIGNATURE = re.compile(r'[\w.]+\(')  # with which a docstring begins that says how to call


class _Function(NamedTuple):
  name: str
  arguments: str
  description: str  # the first paragraph of its docstring, on one line
  purpose: str  # the first sentence of it


def python_questions(split: str, functions: int = 5, validation: float = 0.1) -> Deferred:
  """Returns {'id', 'context', 'question', 'answers'} about functions of the standard library.

  A context lists some functions of one module, each with its arguments and the first paragraph of
  its docstring. Of each it is asked what it does, answered by the first sentence, and, if it takes
  any, what its arguments are. One more question is about a function of another context, and has no
  answer. A module, with all its functions, is in 'validation' by a hash of its name.

  Args:
    split: 'train' or 'validation'.
    functions: how many a context lists, at most.
    validation: the share of the modules set aside.

  Raises:
    UserError: an unknown split; a Python without the sources of its library.
  """
  is_ours = splits.by_name(split, validation)

  def make() -> list[Example]:
    groups = list(_groups(is_ours, functions))
    examples: list[Example] = []
    for nth, group in enumerate(groups):
      context = '\n'.join(map(_listed, group))
      asked = list(_answered(group))
      if len(groups) > 1:
        stranger = groups[(nth + 1) % len(groups)][0]
        asked.append((_what(stranger), []))
      for question, answers in asked:
        example = {'id': f'{group[0].name} {len(examples)}', 'context': context}
        examples.append(example | {'question': question, 'answers': answers})
    return examples

  return Deferred(make, python_library.fingerprint())


def python_dialogues(split: str, functions: int = 4, validation: float = 0.1) -> Deferred:
  """Returns {'turns'}: somebody asks what functions of one module do, and is told.

  Every other turn is a question; after the first it is short, 'And ...?', and is understood from
  the turns before it.

  Args:
    split: 'train' or 'validation'.
    functions: how many a dialogue is about, at most.
    validation: the share of the modules set aside, by a hash of their names.

  Raises:
    UserError: an unknown split; a Python without the sources of its library.
  """
  is_ours = splits.by_name(split, validation)

  def make() -> list[Example]:
    dialogues = []
    for group in _groups(is_ours, functions):
      questions = [_what(group[0]), *(f'And {function.name}?' for function in group[1:])]
      answers = [f'{function.purpose}.' for function in group]
      turns = itertools.chain.from_iterable(zip(questions, answers, strict=True))
      dialogues.append({'turns': list(turns)})
    return dialogues

  return Deferred(make, python_library.fingerprint())


def _groups(is_ours: Callable[[str], bool], size: int) -> Iterator[Sequence[_Function]]:
  """Yields the functions of our modules, some of one module at a time."""
  for module, functions in _functions().items():
    if is_ours(module):
      for start in range(0, len(functions), size):
        yield functions[start : start + size]


@functools.cache
def _functions() -> dict[str, list[_Function]]:
  """Returns the functions of each module that have a docstring of their own, by its name."""
  found: dict[str, list[_Function]] = {}
  seen: set[str] = set()
  for place, data in python_library.files().items():
    tree = python_library.parse(data)
    if tree is None:
      continue
    module = python_library.module_name(place)
    for entry in python_library.entries(tree, module):
      function = _function(entry)
      if function and not {function.name, function.description} & seen:
        seen |= {function.name, function.description}
        found.setdefault(module, []).append(function)
  return found


def _function(entry: python_library.Entry) -> _Function | None:
  """Returns a function, or None if its docstring does not begin with a sentence of three words."""
  description = ' '.join(entry.doc.partition('\n\n')[0].split())
  sentence = _SENTENCE.match(description)
  if entry.arguments is None or sentence is None or len(description) > _LONGEST:
    return None
  if _SIGNATURE.match(description) or sentence[0].count(' ') < 2:
    return None
  return _Function(entry.name, entry.arguments, description, sentence[0])


def _what(function: _Function) -> str:
  return f'What does {function.name} do?'


def _listed(function: _Function) -> str:
  return f'{function.name}({function.arguments}): {function.description}'


def _answered(group: Sequence[_Function]) -> Iterator[tuple[str, list[Example]]]:
  """Yields the questions about functions, each with its answer in the list of them."""
  start = 0
  for function in group:
    opening = start + len(function.name) + 1
    before = len(_listed(function)) - len(function.description)
    yield _what(function), [{'text': function.purpose, 'start': start + before}]
    if function.arguments:
      answer = {'text': function.arguments, 'start': opening}
      yield f'What are the arguments of {function.name}?', [answer]
    start += len(_listed(function)) + 1
