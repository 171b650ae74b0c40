"""Sources from the standard library of the running Python.

They are documents, functions and their lengths, questions and dialogues about functions, and tagged
lines of code. Source files are parsed with `ast` and never imported.
"""

import ast
import builtins
import functools
import hashlib
import io
import itertools
import keyword
import math
import pathlib
import platform
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from lm.data.sources.base import Example, LazyLoad, hash_split
from lm.errors import UserError

# Tests, installed packages, and code with few or duplicate docstrings.
_SKIPPED = {'__pycache__', 'dist-packages', 'encodings', 'idlelib', 'lib2to3', 'site-packages'}
_SKIPPED |= {'_bundled', 'test', 'tests', 'turtledemo'}
_TOPICS = pathlib.PurePath('pydoc_data', 'topics.py')
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_InSplit = Callable[[str], bool]  # whether a name belongs to the split
_LONGEST = 600  # characters of a description
_SENTENCE = re.compile(r'.+?(?=[.!?](?:\s|$))|.+')  # without the final period
_SIGNATURE = re.compile(r'[\w.]+\(')  # at the beginning of some docstrings
_LITERALS = {tokenize.NUMBER: 'NUMBER', tokenize.STRING: 'STRING', tokenize.COMMENT: 'COMMENT'}
_LAYOUT = {tokenize.INDENT, tokenize.DEDENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER}
_BUILTINS = frozenset(dir(builtins))


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
  """Returns {'text'}: documents of English prose about Python, about 2 MB in all.

  The documents are the topics of `help()`, and one document for each module of the standard
  library: its docstrings in order, each after the name of its definition. A hash of the document's
  name determines the split.

  Args:
    split: 'train' or 'validation'.
    validation: the fraction set aside.

  Raises:
    UserError: an unknown split; a Python without the sources of its library.
  """

  def make(in_split: _InSplit) -> list[Example]:
    return [{'text': text} for name, text in _documents().items() if in_split(name)]

  return _lazy_load(split, validation, make)


def python_functions(split: str, validation: float = 0.1) -> LazyLoad:
  """Returns {'text', 'value'} for the functions of the standard library with docstrings.

  The text is the signature and the docstring. The value is the binary logarithm of the number of
  lines of code after the docstring. The first of several functions with the same text is used. A
  hash of the module's name determines the split.

  Args:
    split: 'train' or 'validation'.
    validation: the fraction set aside.

  Raises:
    UserError: an unknown split; a Python without the sources of its library.
  """

  def make(in_split: _InSplit) -> list[Example]:
    return [{'text': text, 'value': v} for text, (name, v) in _measured().items() if in_split(name)]

  return _lazy_load(split, validation, make)


def _lazy_load(
  split: str, validation: float, make: Callable[[_InSplit], Iterable[Example]]
) -> LazyLoad:
  """Returns the examples of `make`, which is given a predicate: whether a name is in the split."""
  return LazyLoad(functools.partial(make, hash_split(split, validation)), fingerprint())


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
  contents = b''.join(f'{place} {len(data)}\n'.encode() + data for place, data in files().items())
  return f'{platform.python_version()} {hashlib.sha256(contents).hexdigest()}'


def module_name(place: pathlib.PurePath) -> str:
  """Returns the dotted name of the module in a file."""
  return '.'.join(place.with_suffix('').parts).removesuffix('.__init__')


def modules() -> Iterator[tuple[pathlib.PurePath, str, ast.Module]]:
  """Yields path, name and syntax tree of each module; skips templates, which are not Python."""
  for place, data in files().items():
    try:
      with warnings.catch_warnings(action='ignore'):  # a warning as error would skip the file
        tree = ast.parse(data)
    except SyntaxError:
      continue
    yield place, module_name(place), tree


def entries(node: ast.Module | ast.ClassDef | _Function, name: str) -> Iterator[Entry]:
  """Yields the documentation of a definition and, recursively, of the definitions in its body."""
  if doc := ast.get_docstring(node):
    yield Entry(name, ast.unparse(node.args) if isinstance(node, _Function) else None, doc)
  for inner in node.body:
    if isinstance(inner, ast.ClassDef | _Function):
      yield from entries(inner, f'{name}.{inner.name}')


@functools.cache
def _documents() -> dict[str, str]:
  """Returns the text of each document by its name."""
  documents: dict[str, str] = {}
  seen: set[str] = set()
  for place, name, tree in modules():
    if place == _TOPICS:
      for topic, text in sorted(_topics(tree).items()):
        if text not in seen:  # several keywords may share a page
          seen.add(text)
          documents[f'topic {topic}'] = text
    new = [entry for entry in entries(tree, name) if entry.doc not in seen]
    seen.update(entry.doc for entry in new)
    if new:
      documents[name] = '\n\n'.join(f'{_heading(entry)}\n\n{entry.doc}' for entry in new) + '\n'
  return documents


def _topics(tree: ast.Module) -> dict[str, str]:
  """Returns the pages of `help()`, which are one literal dictionary."""
  values = (statement.value for statement in tree.body if isinstance(statement, ast.Assign))
  return next((ast.literal_eval(value) for value in values if isinstance(value, ast.Dict)), {})


def _heading(entry: Entry) -> str:
  return entry.name if entry.arguments is None else f'{entry.name}({entry.arguments})'


@functools.cache
def _measured() -> dict[str, tuple[str, float]]:
  """Returns the module and the value of each text of both splits.

  A text of several modules belongs to the first, so that it is in one split only.
  """
  measured: dict[str, tuple[str, float]] = {}
  for _, name, tree in modules():
    for node in ast.walk(tree):
      # A function with a docstring and no code is an interface, implemented elsewhere.
      if isinstance(node, _Function) and len(node.body) > 1 and (doc := ast.get_docstring(node)):
        text = f'{node.name}({ast.unparse(node.args)})\n\n{doc}'
        lines = (node.body[-1].end_lineno or 0) - node.body[1].lineno + 1
        measured.setdefault(text, (name, math.log2(lines)))
  return measured


def python_questions(split: str, functions: int = 5, validation: float = 0.1) -> LazyLoad:
  """Returns {'id', 'context', 'question', 'answers'} about functions of the standard library.

  A context lists some functions of one module, each with its arguments and the first paragraph of
  its docstring. Questions ask for the purpose of a function, which is the first sentence, and for
  its arguments, if any. Another question is about a function of another context and is
  unanswerable. A hash of the module's name determines the split.

  Args:
    split: 'train' or 'validation'.
    functions: maximum per context.
    validation: the fraction of the modules set aside.

  Raises:
    UserError: an unknown split; a Python without the sources of its library.
  """

  def make(in_split: _InSplit) -> Iterator[Example]:
    groups = list(_groups(in_split, functions))
    ids = itertools.count()
    for nth, group in enumerate(groups):
      context = '\n'.join(map(_listed, group))
      questions = list(_answered(group))
      if len(groups) > 1:
        questions.append((_question(groups[(nth + 1) % len(groups)][0]), []))
      for question, answers in questions:
        name = f'{group[0].name} {next(ids)}'
        yield {'id': name, 'context': context, 'question': question, 'answers': answers}

  return _lazy_load(split, validation, make)


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

  def make(in_split: _InSplit) -> Iterator[Example]:
    for group in _groups(in_split, functions):
      questions = [_question(group[0]), *(f'And {function.name}?' for function in group[1:])]
      answers = [f'{_purpose(function.doc)}.' for function in group]
      turns = itertools.chain.from_iterable(zip(questions, answers, strict=True))
      yield {'turns': list(turns)}

  return _lazy_load(split, validation, make)


def _groups(in_split: _InSplit, size: int) -> Iterator[Sequence[Entry]]:
  """Yields groups of at most `size` functions of one module, for each module of the split."""
  for module, functions in _functions().items():
    if in_split(module):
      for start in range(0, len(functions), size):
        yield functions[start : start + size]


@functools.cache
def _functions() -> dict[str, list[Entry]]:
  """Returns the functions of each module, by module name.

  The `doc` of an entry is the first paragraph of the docstring on one line, unique among functions.
  It begins with a sentence of at least three words.
  """
  functions: dict[str, list[Entry]] = {}
  seen: set[str] = set()
  for _, module, tree in modules():
    for entry in entries(tree, module):
      doc = ' '.join(entry.doc.partition('\n\n')[0].split())
      usable = entry.arguments is not None and len(doc) <= _LONGEST and not _SIGNATURE.match(doc)
      if usable and _purpose(doc).count(' ') >= 2 and not {entry.name, doc} & seen:
        seen |= {entry.name, doc}
        functions.setdefault(module, []).append(entry._replace(doc=doc))
  return functions


def _purpose(doc: str) -> str:
  """Returns the first sentence, without its final period."""
  return _SENTENCE.findall(doc)[0]


def _question(function: Entry) -> str:
  return f'What does {function.name} do?'


def _listed(function: Entry) -> str:
  return f'{_heading(function)}: {function.doc}'


def _answered(group: Sequence[Entry]) -> Iterator[tuple[str, list[Example]]]:
  """Yields questions about the functions of a context, each with its one answer in a list."""
  start = 0
  for function in group:
    end = start + len(_listed(function))
    yield _question(function), [{'text': _purpose(function.doc), 'start': end - len(function.doc)}]
    if function.arguments:
      answer = {'text': function.arguments, 'start': start + len(function.name) + 1}
      yield f'What are the arguments of {function.name}?', [answer]
    start = end + 1


def python_tags(
  split: str, modules: int = 100, validation: float = 0.1, shortest: int = 4, longest: int = 64
) -> LazyLoad:
  """Returns {'words', 'tags', 'separator'} for logical lines of the standard library.

  The words are those of `tokenize`, without line ends and indentation. Tags depend only on the
  line. Names have the tags KEYWORD; FUNCTION or CLASS in a definition; CALL; ATTRIBUTE after a dot;
  BUILTIN, called or not; or NAME. Other words are NUMBER, STRING, COMMENT or OPERATOR.

  Lines are unique within a split. Lines with a word of several lines, such as a docstring, are
  skipped.

  A hash of the module's name determines the split. A line of two modules may be in both splits.

  Args:
    split: 'train' or 'validation'.
    modules: maximum count of modules, summed over both splits.
    validation: the fraction set aside.
    shortest: minimum length of a line in words.
    longest: maximum length of a line in words.

  Raises:
    UserError: an unknown split; a Python without the sources of its library.
  """
  count = max(1, round(modules * (validation if split == 'validation' else 1 - validation)))

  def make(in_split: _InSplit) -> list[Example]:
    places = [p for p in files() if in_split(module_name(p))]
    lines: dict[tuple[str, ...], list[str]] = {}
    for place in sorted(places, key=_order)[:count]:
      for words, tags in _lines(files()[place]):
        if shortest <= len(words) <= longest:
          lines.setdefault(tuple(words), tags)
    return [{'words': list(w), 'tags': tags, 'separator': ' '} for w, tags in lines.items()]

  return _lazy_load(split, validation, make)


def _lines(source: bytes) -> Iterator[tuple[list[str], list[str]]]:
  """Yields words and tags of each logical line of a module; skips lines with multi-line words."""
  line: list[tokenize.TokenInfo] = []
  try:
    for token in _joined_strings(tokenize.tokenize(io.BytesIO(source).readline)):
      if token.type == tokenize.NEWLINE:
        if not any('\n' in t.string for t in line):
          yield [t.string for t in line], _tags(line)
        line = []
      elif token.type == tokenize.NL and all(t.type == tokenize.COMMENT for t in line):
        line = []  # a comment on a line of its own
      elif token.type not in _LAYOUT:
        line.append(token)
  except (SyntaxError, tokenize.TokenError):  # a template, not Python
    return


def _joined_strings(tokens: Iterator[tokenize.TokenInfo]) -> Iterator[tokenize.TokenInfo]:
  """Yields tokens with each f-string as one token, as before Python 3.12."""
  starts: list[tokenize.TokenInfo] = []
  for token in tokens:
    kind = tokenize.tok_name[token.type]
    if kind in ('FSTRING_START', 'TSTRING_START'):
      starts.append(token)
    elif not starts:
      yield token
    elif kind in ('FSTRING_END', 'TSTRING_END'):
      first = starts.pop()
      if not starts:
        (row, begin), (last_row, end) = first.start, token.end
        text = first.line[begin:end] if row == last_row else '\n'
        yield token._replace(type=tokenize.STRING, string=text, start=first.start)


def _tags(line: list[tokenize.TokenInfo]) -> list[str]:
  """Returns the tag of each word of a logical line."""
  strings = ['', *(token.string for token in line), '']
  return [
    _LITERALS.get(token.type) or _tag(token, before, after)
    for before, token, after in zip(strings[:-2], line, strings[2:], strict=True)
  ]


def _tag(token: tokenize.TokenInfo, before: str, after: str) -> str:
  """Returns the tag of a name or an operator, given its neighbors."""
  conditions = {
    'OPERATOR': token.type != tokenize.NAME,
    'KEYWORD': keyword.iskeyword(token.string),
    'FUNCTION': before == 'def',
    'CLASS': before == 'class',
    'BUILTIN': before != '.' and after != '=' and token.string in _BUILTINS,
    'CALL': after == '(',
    'ATTRIBUTE': before == '.',
  }
  return next((tag for tag, holds in conditions.items() if holds), 'NAME')


def _order(place: pathlib.PurePath) -> bytes:
  """Returns a sort key that is unrelated to the names of modules."""
  return hashlib.sha256(str(place).encode()).digest()
