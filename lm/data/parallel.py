"""Parallel text: files of different languages that are aligned line by line."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from lm.data import splits
from lm.data.examples import Computed, Example
from lm.data.pieces import Pieces
from lm.data.tables import check_empty
from lm.errors import UserError, did_you_mean

_Files = str | Sequence[str]


def parallel(
  split: str, source: _Files, target: _Files, validation: float = 0.0, empty: str = 'error'
) -> Sequence[Example]:
  """Returns {'source', 'target'} for each line of two aligned texts.

  Args:
    split: 'train' or, where a part is set aside, 'validation'; any that stands for '{split}'.
    source: names or glob patterns of files; ~, $VARIABLES and '{split}' are replaced. They may be
      gzipped.
    target: the files of the other side, as many and in the same order.
    validation: the share set aside, the last lines.
    empty: what becomes of a pair with a blank side: 'error', or 'skip' to leave it out.

  Raises:
    UserError: files that are missing, damaged, empty or not aligned; an unknown split.
  """
  check_empty(empty)
  sides, lines = _aligned(split, {'source': source, 'target': target}, validation)
  note = ''
  if empty == 'skip':
    filled = _filled(sides, lines)
    note = _left_out(len(lines) - len(filled))
    lines = filled

  def make(index: int) -> Example:
    return {name: _text(side, lines[index]) for name, side in sides.items()}

  def place(index: int) -> str:
    return sides['source'].place(lines[index])

  return Computed(len(lines), make, _fingerprint(sides), place, note)


def directions(
  split: str,
  files: Mapping[str, _Files],
  pairs: Sequence[tuple[str, str]],
  validation: float = 0.0,
  empty: str = 'error',
) -> Sequence[Example]:
  """Returns examples of several directions of translation between aligned texts.

  They are {'source', 'target', 'source_language', 'target_language'}, all of one direction after
  all of another. What is set aside are the same lines of every language, so that no sentence of
  'validation' is in 'train' in another direction.

  Args:
    split: 'train' or, where a part is set aside, 'validation'; any that stands for '{split}'.
    files: by language, names or glob patterns; ~, $VARIABLES and '{split}' are replaced.
    pairs: source and target language of each direction.
    validation: the share set aside, the last lines.
    empty: what becomes of a pair with a blank side: 'error', or 'skip' to leave it out.

  Raises:
    UserError: a language without files; files that are missing, damaged, empty or not aligned; an
      unknown split.
  """
  check_empty(empty)
  if not pairs:
    raise UserError("data.source: pairs is empty; give some as in (('de', 'en'), ('en', 'fr'))")
  for language in itertools.chain.from_iterable(pairs):
    if language not in files:
      known = ', '.join(map(repr, files))
      near = did_you_mean(language, files)
      raise UserError(f'data.source: pairs: no files of {language!r}{near}; there is {known}')
  used = {language: files[language] for pair in pairs for language in pair}
  sides, lines = _aligned(split, used, validation)
  chosen = [lines] * len(pairs)
  if empty == 'skip':
    chosen = [_filled({name: sides[name] for name in pair}, lines) for pair in pairs]
  note = _left_out(len(lines) * len(pairs) - sum(map(len, chosen)))
  starts = np.cumsum([0, *map(len, chosen)])

  def make(index: int) -> Example:
    nth = int(np.searchsorted(starts, index, side='right')) - 1
    source, target = pairs[nth]
    line = chosen[nth][index - starts[nth]]
    return {
      'source': _text(sides[source], line),
      'target': _text(sides[target], line),
      'source_language': source,
      'target_language': target,
    }

  return Computed(int(starts[-1]), make, _fingerprint(sides), note=note)


def _aligned(
  split: str, names: Mapping[str, _Files], validation: float
) -> tuple[dict[str, Pieces], np.ndarray]:
  """Returns all lines of each side, and the positions among them that are of the split."""
  every_name = [
    name for given in names.values() for name in ((given,) if isinstance(given, str) else given)
  ]
  splits.has_files_each(every_name)
  sides = {}
  for side, given in names.items():
    found = splits.files(split, given, f'data.source: {side}')
    sides[side] = Pieces(found, ['every line'] * len(found))
  first, *others = sides.values()
  for other in others:
    _check_aligned(first, other)
  bounds = splits.part(split, every_name, len(first), validation, 'lines')
  return sides, np.arange(*bounds)


def _check_aligned(one: Pieces, other: Pieces) -> None:
  """Raises UserError when two sides have not as many lines in each of their files."""
  if len(one.files) != len(other.files):
    raise UserError(
      f'data.source: {one.files[0]} is one of {len(one.files)} files and {other.files[0]} one of '
      f'{len(other.files)}; both sides need as many'
    )
  counts = zip(one.counts(), other.counts(), strict=True)
  for i, (ones, others) in enumerate(counts):
    if ones != others:
      longer, shorter = one.files[i], other.files[i]
      if ones < others:
        longer, shorter = shorter, longer
      raise UserError(
        f'data.source: {longer}, line {min(ones, others) + 1} stands alone: {shorter} has '
        f'{min(ones, others)} lines and this file {max(ones, others)}'
      )


def _filled(sides: Mapping[str, Pieces], lines: np.ndarray) -> np.ndarray:
  """Returns the lines that are blank on no side."""
  kept = [i for i in lines if not any(side.is_blank(i) for side in sides.values())]
  return np.array(kept, np.int64)


def _left_out(pairs: int) -> str:
  return f'{pairs} pairs with a blank side are left out' if pairs else ''


def _text(side: Pieces, line: int) -> str:
  if side.is_blank(line):
    raise UserError(f"{side.place(line)} is blank; empty='skip' leaves such lines out")
  return side[line].rstrip('\r\n')


def _fingerprint(sides: Mapping[str, Pieces]) -> str:
  return ' '.join(side.fingerprint for side in sides.values())
