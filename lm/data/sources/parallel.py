"""Parallel text: files of different languages that are aligned line by line."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from lm.data.sources.base import (
  ByteSpans,
  Example,
  LazySequence,
  as_tuple,
  available,
  check_choice,
  has_split_files,
  split_bounds,
  split_files,
)
from lm.data.sources.tables import EMPTY
from lm.errors import UserError

_Files = str | Sequence[str]


def parallel(
  split: str, source: _Files, target: _Files, validation: float = 0.0, empty: str = 'error'
) -> Sequence[Example]:
  """Returns {'source', 'target'} for each line of two aligned texts.

  Args:
    split: 'train'; 'validation' if a part is set aside; any name that replaces '{split}'.
    source: names or glob patterns of files; ~, $VARIABLES and '{split}' are replaced. They may be
      gzipped.
    target: the files of the other side, in the same number and order.
    validation: the fraction set aside, the last lines.
    empty: policy for pairs with a blank side: 'error' or 'skip'.

  Raises:
    UserError: files that are missing, damaged, empty or not aligned; an unknown split.
  """
  files = {'source': source, 'target': target}
  return _pairs(split, files, [('source', 'target')], validation, empty, with_languages=False)


def directions(
  split: str,
  files: Mapping[str, _Files],
  pairs: Sequence[tuple[str, str]],
  validation: float = 0.0,
  empty: str = 'error',
) -> Sequence[Example]:
  """Returns examples of several directions of translation between aligned texts.

  They are {'source', 'target', 'source_language', 'target_language'}, one direction after another.
  The same lines of every language are set aside, so that 'train' has no sentence of 'validation'
  in another direction.

  Args:
    split: 'train'; 'validation' if a part is set aside; any name that replaces '{split}'.
    files: by language, names or glob patterns; ~, $VARIABLES and '{split}' are replaced.
    pairs: source and target language of each direction.
    validation: the fraction set aside, the last lines.
    empty: policy for pairs with a blank side: 'error' or 'skip'.

  Raises:
    UserError: a language without files; files that are missing, damaged, empty or not aligned; an
      unknown split.
  """
  if not pairs:
    raise UserError("data.source: pairs is empty; give some as in (('de', 'en'), ('en', 'fr'))")
  for language in itertools.chain.from_iterable(pairs):
    if language not in files:
      raise UserError(f'data.source: pairs: no files of {language!r}{available(language, files)}')
  used = {language: files[language] for pair in pairs for language in pair}
  return _pairs(split, used, pairs, validation, empty, with_languages=True)


def _pairs(
  split: str,
  files: Mapping[str, _Files],
  pairs: Sequence[tuple[str, str]],
  validation: float,
  empty: str,
  with_languages: bool,
) -> LazySequence:
  """Returns the examples of all pairs of sides, one pair after another."""
  check_choice('empty', empty, EMPTY)
  sides, lines = _aligned(split, files, validation)
  chosen = [lines] * len(pairs)
  if empty == 'skip':
    blank = {name: np.array([side.is_blank(i) for i in lines]) for name, side in sides.items()}
    chosen = [lines[~(blank[source] | blank[target])] for source, target in pairs]
  skipped = len(lines) * len(pairs) - sum(map(len, chosen))
  starts = np.cumsum([0, *map(len, chosen)])

  def find(index: int) -> tuple[tuple[str, str], int]:
    nth = int(np.searchsorted(starts, index, side='right')) - 1
    return pairs[nth], chosen[nth][index - starts[nth]]

  def make(index: int) -> Example:
    (source, target), line = find(index)
    example = {'source': _text(sides[source], line), 'target': _text(sides[target], line)}
    languages = {'source_language': source, 'target_language': target}
    return example | languages if with_languages else example

  def place(index: int) -> str:
    (source, _), line = find(index)
    return sides[source].place(line)

  fingerprint = ' '.join(side.fingerprint for side in sides.values())
  note = f'{skipped} pairs with a blank side are skipped' if skipped else ''
  return LazySequence(int(starts[-1]), make, fingerprint, place, note)


def _aligned(
  split: str, files: Mapping[str, _Files], validation: float
) -> tuple[dict[str, ByteSpans], np.ndarray]:
  """Returns all lines of each side, and the indices of those in the split."""
  names = [name for given in files.values() for name in as_tuple(given)]
  has_split_files(names)
  found = {side: split_files(split, given, f'data.source: {side}') for side, given in files.items()}
  sides = {side: ByteSpans(paths, ['every line'] * len(paths)) for side, paths in found.items()}
  first, *others = sides.values()
  for other in others:
    _check_aligned(first, other)
  return sides, np.arange(*split_bounds(split, names, len(first), validation, 'lines'))


def _check_aligned(one: ByteSpans, other: ByteSpans) -> None:
  """Raises UserError if two sides differ in their number of files, or of lines in a file."""
  if len(one.files) != len(other.files):
    raise UserError(
      f'data.source: {one.files[0]} is one of {len(one.files)} files, but {other.files[0]} is one '
      f'of {len(other.files)}; both sides need the same number'
    )
  for *files, a, b in zip(one.files, other.files, one.counts(), other.counts(), strict=True):
    if a != b:
      (fewer, shorter), (more, longer) = sorted(zip((a, b), files, strict=True))
      raise UserError(
        f'data.source: {longer}, line {fewer + 1} has no counterpart: {shorter} has {fewer} lines, '
        f'but this file has {more}'
      )


def _text(side: ByteSpans, line: int) -> str:
  if side.is_blank(line):
    raise UserError(f"{side.place(line)} is blank; empty='skip' skips such lines")
  return side[line].rstrip('\r\n')
