"""Tagged words in columns: one word per line, sentences separated by blank lines."""

import string
from collections.abc import Callable, Sequence

from lm.data.sources.base import (
  ByteSpans,
  Example,
  LazySequence,
  check_choice,
  split_bounds,
  split_files,
)
from lm.errors import UserError

_CONLLU = ('id', 'form', 'lemma', 'upos', 'xpos', 'feats', 'head', 'deprel', 'deps', 'misc')


def conll(
  split: str,
  files: str | Sequence[str],
  columns: Sequence[str | None] = ('words', 'tags'),
  delimiter: str = '\t',
  separator: str = ' ',
  validation: float = 0.0,
) -> Sequence[Example]:
  """Returns {'words', 'tags', 'separator'} for each sentence.

  Every line of a sentence has a word, even if it begins with '#'; there are no comments.

  Args:
    split: 'train', or 'validation' if `validation` is above 0. Where file names contain '{split}',
      any name that yields existing files.
    files: names or glob patterns; ~, $VARIABLES and '{split}' are replaced. They may be gzipped.
    columns: the contents of each column: 'words' and 'tags' once each, None for others. CoNLL-2003
      has ('words', None, None, 'tags').
    delimiter: between columns.
    separator: between words in running text: ' ', or '' as for Chinese characters.
    validation: the fraction of the sentences set aside, taken from the end.

  Raises:
    UserError: files that are missing, damaged or empty; an unknown split. A line with another
      number of columns, or with an empty column, raises when it is read.
  """
  if sorted(filter(None, columns)) != ['tags', 'words']:
    raise UserError(f"data.source: columns={columns!r} must have 'words' and 'tags' once each")
  word, tag = columns.index('words'), columns.index('tags')

  def read(line: str) -> list[tuple[str, str]]:
    cells = _cells(line, delimiter, len(columns))
    return [(cells[word], cells[tag])]

  return _sentences(split, files, validation, read, separator)


def conllu(
  split: str,
  files: str | Sequence[str],
  tags: str = 'upos',
  separator: str = ' ',
  validation: float = 0.0,
) -> Sequence[Example]:
  """Returns {'words', 'tags', 'separator'} for each sentence of a treebank in CoNLL-U.

  Words are syntactic words: lines of multiword tokens (1-2) and of empty nodes (1.1) are skipped.
  https://universaldependencies.org/format.html

  Args:
    split: 'train', or 'validation' if `validation` is above 0. Where file names contain '{split}',
      any name that yields existing files.
    files: names or glob patterns; ~, $VARIABLES and '{split}' are replaced. They may be gzipped.
    tags: the column of the tags, such as 'upos' or 'xpos'.
    separator: between words in running text: ' ', or '' as for Chinese.
    validation: the fraction of the sentences set aside, taken from the end.

  Raises:
    UserError: as `conll`; no such column.
  """
  check_choice('tags', tags, _CONLLU)
  tag = _CONLLU.index(tags)

  def read(line: str) -> list[tuple[str, str]]:
    if line.startswith('#'):
      return []
    cells = _cells(line, '\t', len(_CONLLU))
    return [(cells[1], cells[tag])] if cells[0].isdecimal() else []

  return _sentences(split, files, validation, read, separator)


def _sentences(
  split: str,
  files: str | Sequence[str],
  validation: float,
  read: Callable[[str], list[tuple[str, str]]],
  separator: str,
) -> Sequence[Example]:
  """Returns sentences; `read` returns the words of a line with their tags."""
  paths = split_files(split, files)
  spans = ByteSpans(paths, ['paragraph'] * len(paths))
  spans = spans.select(slice(*split_bounds(split, files, len(spans), validation, 'sentences')))

  def make(index: int) -> Example:
    tagged: list[tuple[str, str]] = []
    # Not splitlines, which splits at Unicode line ends too; some corpora have them as words.
    for nth, line in enumerate(spans[index].split('\n')):
      try:
        tagged += read(line.removesuffix('\r'))
      except ValueError as e:
        raise UserError(f'{spans.place(index, nth)}: {e}') from e
    if not tagged:
      raise UserError(f'{spans.place(index)}: a sentence without words')
    words, tags = map(list, zip(*tagged, strict=True))
    return {'words': words, 'tags': tags, 'separator': separator}

  return LazySequence(len(spans), make, spans.fingerprint, spans.place)


def _cells(line: str, delimiter: str, count: int) -> list[str]:
  """Returns the columns of a line; raises ValueError if there are not `count` or one is blank."""
  cells = line.split(delimiter)
  if len(cells) != count:
    raise ValueError(f'{len(cells)} columns, not {count}: {line!r:.80}')
  if not all(cell.strip(string.whitespace) for cell in cells):
    raise ValueError(f'an empty column: {line!r:.80}')
  return cells
