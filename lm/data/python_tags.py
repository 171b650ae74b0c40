"""Embedded tagging: the words of Python's own library and what each of them is."""

import builtins
import hashlib
import io
import keyword
import pathlib
import tokenize
from collections.abc import Iterator

from lm.data import python_library, splits
from lm.data.examples import Deferred, Example

_LITERALS = {tokenize.NUMBER: 'NUMBER', tokenize.STRING: 'STRING', tokenize.COMMENT: 'COMMENT'}
_LAYOUT = {tokenize.INDENT, tokenize.DEDENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER}
_BUILTINS = frozenset(dir(builtins))


def python_tags(
  split: str, modules: int = 100, validation: float = 0.1, shortest: int = 4, longest: int = 64
) -> Deferred:
  """Returns {'words', 'tags', 'separator'} for logical lines of the standard library.

  The words are those of `tokenize`, without line ends and indentation. A keyword is KEYWORD; the
  name that a definition gives is FUNCTION or CLASS; what is called is CALL; what follows a dot is
  ATTRIBUTE; a name of `builtins` is BUILTIN, called or not; any other is NAME; and there are
  NUMBER, STRING, COMMENT and OPERATOR. All follow from the line alone. No line is there twice in a
  split, and lines with a word that goes over several lines, such as a docstring, are left out.

  A module is in 'validation' by a hash of its name. Lines that two modules have in common may be in
  both splits.

  Args:
    split: 'train' or 'validation'.
    modules: how many modules to read for both splits, at most.
    validation: the share set aside.
    shortest: words of a line, at least.
    longest: words of a line, at most.

  Raises:
    UserError: an unknown split; a Python without the sources of its library.
  """
  is_ours = splits.by_name(split, validation)
  share = validation if split == 'validation' else 1 - validation
  wanted = max(1, round(modules * share))

  def make() -> list[Example]:
    places = [p for p in python_library.files() if is_ours(python_library.module_name(p))]
    lines: dict[tuple[str, ...], list[str]] = {}
    for place in sorted(places, key=_order)[:wanted]:
      for words, tags in _lines(python_library.files()[place]):
        if shortest <= len(words) <= longest:
          lines.setdefault(tuple(words), tags)
    return [{'words': list(w), 'tags': tags, 'separator': ' '} for w, tags in lines.items()]

  return Deferred(make, python_library.fingerprint())


def _lines(source: bytes) -> Iterator[tuple[list[str], list[str]]]:
  """Yields words and tags of the logical lines of a module whose words all lie in one line."""
  line: list[tokenize.TokenInfo] = []
  try:
    for token in _whole_strings(tokenize.tokenize(io.BytesIO(source).readline)):
      if token.type == tokenize.NEWLINE:
        if not any('\n' in t.string for t in line):
          yield [t.string for t in line], _tags(line)
        line = []
      elif token.type == tokenize.NL and all(t.type == tokenize.COMMENT for t in line):
        line = []  # a comment that stands by itself
      elif token.type not in _LAYOUT:
        line.append(token)
  except (SyntaxError, tokenize.TokenError):  # a template, which is no Python
    return


def _whole_strings(tokens: Iterator[tokenize.TokenInfo]) -> Iterator[tokenize.TokenInfo]:
  """Yields tokens with each f-string as one of them, as it was before Python 3.12."""
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
  """Returns what each word of a logical line is."""
  strings = ['', *(token.string for token in line), '']
  return [
    _LITERALS.get(token.type) or _tag(token, before, after)
    for before, token, after in zip(strings[:-2], line, strings[2:], strict=True)
  ]


def _tag(token: tokenize.TokenInfo, before: str, after: str) -> str:
  """Returns what a name or an operator is, by the words on both sides of it."""
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
  """Returns what sorts modules in an order that has nothing to do with their names."""
  return hashlib.sha256(str(place).encode()).digest()
