"""Embedded tagging: words of the Python standard library and their kinds."""

import builtins
import hashlib
import io
import keyword
import pathlib
import tokenize
from collections.abc import Iterator

from lm.data.sources.base import Example, LazyLoad, hash_split
from lm.data.sources.embedded import python_library

_LITERALS = {tokenize.NUMBER: 'NUMBER', tokenize.STRING: 'STRING', tokenize.COMMENT: 'COMMENT'}
_LAYOUT = {tokenize.INDENT, tokenize.DEDENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER}
_BUILTINS = frozenset(dir(builtins))


def python_tags(
  split: str, modules: int = 100, validation: float = 0.1, shortest: int = 4, longest: int = 64
) -> LazyLoad:
  """Returns {'words', 'tags', 'separator'} for logical lines of the standard library.

  The words are those of `tokenize`, without line ends and indentation. Tags follow from the line
  alone: KEYWORD; FUNCTION or CLASS for the name in a definition; CALL for the name of a call;
  ATTRIBUTE after a dot; BUILTIN for names of `builtins`, called or not; NAME for others; NUMBER,
  STRING, COMMENT and OPERATOR. Lines are unique within a split. Lines with a word of several lines,
  such as a docstring, are skipped.

  A hash of the module's name determines the split. Lines common to two modules may be in both.

  Args:
    split: 'train' or 'validation'.
    modules: maximum number of modules in both splits.
    validation: the fraction set aside.
    shortest: minimum number of words in a line.
    longest: maximum number of words in a line.

  Raises:
    UserError: an unknown split; a Python without the sources of its library.
  """
  in_split = hash_split(split, validation)
  fraction = validation if split == 'validation' else 1 - validation
  wanted = max(1, round(modules * fraction))

  def make() -> list[Example]:
    places = [p for p in python_library.files() if in_split(python_library.module_name(p))]
    lines: dict[tuple[str, ...], list[str]] = {}
    for place in sorted(places, key=_order)[:wanted]:
      for words, tags in _lines(python_library.files()[place]):
        if shortest <= len(words) <= longest:
          lines.setdefault(tuple(words), tags)
    return [{'words': list(w), 'tags': tags, 'separator': ' '} for w, tags in lines.items()]

  return LazyLoad(make, python_library.fingerprint())


def _lines(source: bytes) -> Iterator[tuple[list[str], list[str]]]:
  """Yields words and tags of the logical lines of a module without multi-line words."""
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
  if token.type != tokenize.NAME:
    return 'OPERATOR'
  if keyword.iskeyword(token.string):
    return 'KEYWORD'
  if before in ('def', 'class'):
    return 'FUNCTION' if before == 'def' else 'CLASS'
  if before != '.' and after != '=' and token.string in _BUILTINS:
    return 'BUILTIN'
  if after == '(':
    return 'CALL'
  return 'ATTRIBUTE' if before == '.' else 'NAME'


def _order(place: pathlib.PurePath) -> bytes:
  """Returns a sort key that is unrelated to the names of modules."""
  return hashlib.sha256(str(place).encode()).digest()
