"""Local text: .txt, .jsonl and either of them gzipped, read by position and not held in memory."""

import pathlib
from collections.abc import Sequence

from lm.data import splits
from lm.data.pieces import Pieces, suffix
from lm.errors import UserError, did_you_mean

_UNITS = ('file', 'line', 'paragraph')


def text(
  split: str, files: str | tuple[str, ...], validation: float = 0.0, documents: str = 'file'
) -> Sequence[dict[str, str]]:
  """Returns the documents of local text files.

  Args:
    split: 'train' or, where a part is set aside, 'validation'; any that stands for '{split}'.
    files: names or glob patterns; ~, $VARIABLES and '{split}' are replaced. Lines of .jsonl files
      are objects with a string 'text', one document each; other files are plain text; either may
      end in .gz.
    validation: the share set aside: the last documents, or, when the corpus is one document in one
      file, its last characters.
    documents: what a document of plain text is: a 'file', a 'line', or a 'paragraph' (lines
      between empty ones). Blank ones are left out.

  Raises:
    UserError: files that are missing, empty, binary or not UTF-8; an unknown split.
  """
  if documents not in _UNITS:
    known = ', '.join(map(repr, _UNITS))
    raise UserError(
      f'data.source: documents={documents!r}{did_you_mean(documents, _UNITS)}; there is {known}'
    )
  found = splits.files(split, files, 'data.source: files')
  everything = Documents.open(found, documents, 'text')
  if documents == 'file' and len(everything) == 1 and not is_jsonl(found[0]):
    size = everything.size(0) if validation else 1
    bounds = splits.part(split, files, size, validation, 'characters')
    return everything.characters(*bounds) if validation else everything
  count = len(everything)
  return everything.select(*splits.part(split, files, count, validation, f'{documents}s'))


class Documents(Sequence):
  """Documents of local files.

  Attributes:
    fingerprint: names, sizes and times of the files.
  """

  def __init__(self, pieces: Pieces, column: str):
    """Takes pieces of files as documents.

    Args:
      pieces: of plain text or JSON lines.
      column: the key of the text in JSON lines.
    """
    self._pieces = pieces
    self._column = column
    self.fingerprint = pieces.fingerprint

  @classmethod
  def open(cls, files: list[pathlib.Path], documents: str, column: str) -> 'Documents':
    """Finds the documents of files.

    Args:
      files: plain text or JSON lines, possibly gzipped.
      documents: the unit of plain text, 'file', 'line' or 'paragraph'.
      column: the key of the text in JSON lines.

    Raises:
      UserError: there is no text in the files, or one cannot be read.
    """
    units = ['line' if is_jsonl(file) else documents for file in files]
    return cls(Pieces(files, units), column)

  def select(self, start: int, stop: int) -> 'Documents':
    """Returns some of the documents."""
    return Documents(self._pieces.select(slice(start, stop)), self._column)

  def size(self, index: int) -> int:
    """Returns how many characters a document of plain text has."""
    return self._pieces.characters(index)

  def characters(self, first: int, last: int) -> 'Documents':
    """Returns some characters of the first document, `last` exclusive."""
    return Documents(self._pieces.cut(0, first, last), self._column)

  def __len__(self) -> int:
    return len(self._pieces)

  def __getitem__(self, index):
    document = self._pieces[index]
    if is_jsonl(self._pieces.file_of(index)):
      document = self._pieces.json_object(index, [self._column])[self._column]
      if not isinstance(document, str):
        place = self._pieces.place(index)
        raise UserError(f'{place}: the value of {self._column!r} is not a string')
    return {'text': document}


def is_jsonl(file: pathlib.Path) -> bool:
  """Returns whether a file, by its name, has one JSON object a line."""
  return suffix(file) == '.jsonl'
