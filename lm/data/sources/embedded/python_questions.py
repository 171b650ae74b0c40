"""Embedded questions and dialogues about the functions of Python, from their docstrings."""

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from lm.data.sources.base import Example, LazyLoad, hash_split
from lm.data.sources.embedded import python_library

_LONGEST = 600  # characters of a description
_SENTENCE = re.compile(r'.+?(?=[.!?](?:\s|$))|.+')  # without the final period
_SIGNATURE = re.compile(r'[\w.]+\(')  # at the beginning of some docstrings


class _Function(NamedTuple):
  name: str
  arguments: str
  description: str  # the first paragraph of its docstring, on one line
  purpose: str  # the first sentence of it


def python_questions(split: str, functions: int = 5, validation: float = 0.1) -> LazyLoad:
  """Returns {'id', 'context', 'question', 'answers'} about functions of the standard library.

  A context lists some functions of one module, each with its arguments and the first paragraph of
  its docstring. Questions ask what a function does, answered by the first sentence, and what its
  arguments are, if any. One more question is about a function of another context and is
  unanswerable. A hash of the module's name determines the split.

  Args:
    split: 'train' or 'validation'.
    functions: maximum per context.
    validation: the fraction of the modules set aside.

  Raises:
    UserError: an unknown split; a Python without the sources of its library.
  """
  in_split = hash_split(split, validation)

  def make() -> list[Example]:
    groups = list(_groups(in_split, functions))
    examples: list[Example] = []
    for nth, group in enumerate(groups):
      context = '\n'.join(map(_listed, group))
      questions = list(_answered(group))
      if len(groups) > 1:
        questions.append((_question(groups[(nth + 1) % len(groups)][0]), []))
      for question, answers in questions:
        example = {'id': f'{group[0].name} {len(examples)}', 'context': context}
        examples.append(example | {'question': question, 'answers': answers})
    return examples

  return LazyLoad(make, python_library.fingerprint())


def python_dialogues(split: str, functions: int = 4, validation: float = 0.1) -> LazyLoad:
  """Returns {'turns'}: questions about the functions of one module, and their answers.

  Questions and answers alternate. Later questions are short, 'And ...?', and refer to the turns
  before them.

  Args:
    split: 'train' or 'validation'.
    functions: maximum per dialogue.
    validation: the fraction of the modules set aside, by a hash of their names.

  Raises:
    UserError: an unknown split; a Python without the sources of its library.
  """
  in_split = hash_split(split, validation)

  def make() -> list[Example]:
    dialogues = []
    for group in _groups(in_split, functions):
      questions = [_question(group[0]), *(f'And {function.name}?' for function in group[1:])]
      answers = [f'{function.purpose}.' for function in group]
      turns = itertools.chain.from_iterable(zip(questions, answers, strict=True))
      dialogues.append({'turns': list(turns)})
    return dialogues

  return LazyLoad(make, python_library.fingerprint())


def _groups(in_split: Callable[[str], bool], size: int) -> Iterator[Sequence[_Function]]:
  """Yields the functions of the split's modules, some of one module at a time."""
  for module, functions in _functions().items():
    if in_split(module):
      for start in range(0, len(functions), size):
        yield functions[start : start + size]


@functools.cache
def _functions() -> dict[str, list[_Function]]:
  """Returns the functions of each module with a unique docstring, by module name."""
  found: dict[str, list[_Function]] = {}
  seen: set[str] = set()
  for _, module, tree in python_library.modules():
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


def _question(function: _Function) -> str:
  return f'What does {function.name} do?'


def _listed(function: _Function) -> str:
  return f'{function.name}({function.arguments}): {function.description}'


def _answered(group: Sequence[_Function]) -> Iterator[tuple[str, list[Example]]]:
  """Yields the questions about functions, each with a list of its answer."""
  start = 0
  for function in group:
    opening = start + len(function.name) + 1
    before = len(_listed(function)) - len(function.description)
    yield _question(function), [{'text': function.purpose, 'start': start + before}]
    if function.arguments:
      answer = {'text': function.arguments, 'start': opening}
      yield f'What are the arguments of {function.name}?', [answer]
    start += len(_listed(function)) + 1
