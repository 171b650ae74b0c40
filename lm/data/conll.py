"""Tagged words in columns, one word a line, sentences between blank lines."""

import string
from collections.abc import Callable, Sequence

from lm.data import splits
from lm.data.examples import Computed, Example
from lm.data.pieces import Pieces
from lm.errors import UserError, did_you_mean

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

  Every line has a word, so one that begins with '#' is no comment.

  Args:
    split: 'train' or, where a part is set aside, 'validation'; any that stands for '{split}'.
    files: names or glob patterns; ~, $VARIABLES and '{split}' are replaced. They may be gzipped.
    columns: what each column holds, 'words' and 'tags' once each and None for the others; those
      of CoNLL-2003 are ('words', None, None, 'tags').
    delimiter: what stands between columns.
    separator: what stands between words in running text: ' ', or '' as for Chinese characters.
    validation: the share set aside, the last sentences.

  Raises:
    UserError: files that are missing, damaged or empty; an unknown split. A line with other
      columns is told when it is read.
  """
  if sorted(filter(None, columns)) != ['tags', 'words']:
    raise UserError(f"data.source: columns={columns!r} need 'words' and 'tags' once each")
  word, tag = columns.index('words'), columns.index('tags')

  def read(line: str) -> tuple[str, str]:
    cells = _cells(line, delimiter, len(columns))
    return cells[word], cells[tag]

  return _sentences(split, files, validation, read, separator)


def conllu(
  split: str,
  files: str | Sequence[str],
  tags: str = 'upos',
  separator: str = ' ',
  validation: float = 0.0,
) -> Sequence[Example]:
  """Returns {'words', 'tags', 'separator'} for each sentence of a treebank in CoNLL-U.

  Words are the syntactic ones: lines of multiword tokens (1-2) and of words that were left out of
  the text (1.1) are passed over. https://universaldependencies.org/format.html

  Args:
    split: 'train' or, where a part is set aside, 'validation'; any that stands for '{split}'.
    files: names or glob patterns; ~, $VARIABLES and '{split}' are replaced. They may be gzipped.
    tags: the column of the tags, such as 'upos' or 'xpos'.
    separator: what stands between words in running text: ' ', or '' as for Chinese.
    validation: the share set aside, the last sentences.

  Raises:
    UserError: as `conll`; no such column.
  """
  if tags not in _CONLLU:
    known = ', '.join(map(repr, _CONLLU))
    raise UserError(f'data.source: tags={tags!r}{did_you_mean(tags, _CONLLU)}; there is {known}')
  tag = _CONLLU.index(tags)

  def read(line: str) -> tuple[str, str] | None:
    if line.startswith('#'):
      return None
    cells = _cells(line, '\t', len(_CONLLU))
    return (cells[1], cells[tag]) if cells[0].isdecimal() else None

  return _sentences(split, files, validation, read, separator)


def _sentences(
  split: str,
  files: str | Sequence[str],
  validation: float,
  read: Callable[[str], tuple[str, str] | None],
  separator: str,
) -> Sequence[Example]:
  """Returns sentences by position; `read` makes a word and its tag of a line, or passes it over."""
  found = splits.files(split, files, 'data.source: files')
  pieces = Pieces(found, ['paragraph'] * len(found))
  start, stop = splits.part(split, files, len(pieces), validation, 'sentences')

  def make(index: int) -> Example:
    words, tags = [], []
    # Not splitlines, which also cuts at line ends of Unicode that are words here and there.
    for nth, line in enumerate(pieces[start + index].split('\n')):
      try:
        word = read(line.removesuffix('\r'))
      except ValueError as e:
        raise UserError(f'{pieces.place(start + index, nth)}: {e}') from e
      if word:
        words.append(word[0])
        tags.append(word[1])
    if not words:
      raise UserError(f'{pieces.place(start + index)}: a sentence without words')
    return {'words': words, 'tags': tags, 'separator': separator}

  return Computed(stop - start, make, pieces.fingerprint, lambda index: pieces.place(start + index))


def _cells(line: str, delimiter: str, count: int) -> list[str]:
  """Returns the columns of a line; ValueError says what is wrong with them."""
  cells = line.split(delimiter)
  if len(cells) != count:
    raise ValueError(f'{len(cells)} columns, not {count}: {line!r:.80}')
  if not all(cell.strip(string.whitespace) for cell in cells):
    raise ValueError(f'an empty column: {line!r:.80}')
  return cells
