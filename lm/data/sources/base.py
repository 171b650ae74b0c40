"""Building blocks of sources: the files of a split, its share of them, and lazy sequences.

'{split}' in a file name is replaced by the name of the split. Without it the files hold one corpus,
whose last part, the fraction `validation`, becomes the split of that name. Embedded sources have no
files and are divided by a hash of names.
"""

import fractions
import functools
import hashlib
import math
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lm.errors import UserError, did_you_mean
from lm.text.files import expand_path, find_files, glob_files

Example = dict[str, Any]

_SPLIT = '{split}'


class LazySequence(Sequence):
  """Examples computed from their indices.

  Attributes:
    fingerprint: changes whenever the examples do.
    place: names the origin of the example at an index, for errors; None for sources without files.
    note: what was left out of the files, '' for nothing.
  """

  def __init__(
    self,
    size: int,
    make: Callable[[int], Example],
    fingerprint: str,
    place: Callable[[int], str] | None = None,
    note: str = '',
  ):
    self._indices = range(size)
    self._make = make
    self.fingerprint, self.place, self.note = fingerprint, place, note

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index):
    return self._make(self._indices[index])


class LazyLoad(Sequence):
  """Examples that a function makes all together when the first is read.

  Attributes:
    fingerprint: changes whenever the examples do.
  """

  def __init__(self, make: Callable[[], list[Example]], fingerprint: str):
    self._examples = functools.cache(make)
    self.fingerprint = fingerprint

  def __len__(self) -> int:
    return len(self._examples())

  def __getitem__(self, index):
    return self._examples()[index]


def available(name: str, known: Iterable[str]) -> str:
  """Returns the end of a message: the nearest of the known names, and all of them."""
  known = list(known)
  return f'{did_you_mean(name, known)}; available: {", ".join(map(repr, known))}'


def check_split(split: str, known: Sequence[str], remedy: str = '') -> None:
  """Raises UserError if a source has no split of that name."""
  if split not in known:
    raise UserError(f'data: no split {split!r}{available(split, known)}{remedy}')


def check_choice(key: str, value: str, known: Sequence[str]) -> None:
  """Raises UserError if an argument of a source is not one of its known values."""
  if value not in known:
    raise UserError(f'data.source: {key}={value!r}{available(value, known)}')


def split_files(
  split: str, names: str | Sequence[str], key: str = 'data.source: files'
) -> list[pathlib.Path]:
  """Returns the files of a split, or of the entire corpus if no name contains '{split}'.

  Args:
    split: replaces '{split}'.
    names: names or glob patterns; ~ and $VARIABLES are replaced.
    key: names the argument in errors.

  Raises:
    UserError: a name matches no file.
  """
  found = []
  for name in _tuple(names):
    expand_path(name, key)  # errors show the name as in the config
    try:
      found += find_files(name.replace(_SPLIT, split), key)
    except UserError as e:
      if _SPLIT not in name:
        raise
      others = sorted(path.name for path in glob_files(expand_path(name.replace(_SPLIT, '*'), key)))
      wanted = pathlib.PurePath(name.replace(_SPLIT, split)).name
      raise UserError(f'{e}{available(wanted, others) if others else ""}') from e
  return found


def has_split_files(names: str | Sequence[str]) -> bool:
  """Returns whether each split has files of its own, that is, names contain '{split}'.

  Raises:
    UserError: only some of the names do.
  """
  without = [name for name in _tuple(names) if _SPLIT not in name]
  if 0 < len(without) < len(_tuple(names)):
    raise UserError(f"data.source: {without[0]!r} does not contain '{{split}}', but others do")
  return not without


def split_bounds(
  split: str, names: str | Sequence[str], count: int, validation: float, unit: str
) -> tuple[int, int]:
  """Returns the first and last index, exclusive, of a split among the items of its files.

  Args:
    split: its name.
    names: names of the files, all with '{split}' or none.
    count: number of items in the files.
    validation: the fraction set aside if the names have no '{split}'.
    unit: of the items, for errors.

  Raises:
    UserError: there is no such split, or one of the two would be empty.
  """
  if not has_split_files(names):
    return share_bounds(split, count, validation, unit)
  if validation:
    raise UserError(
      f"data.source: validation={validation} sets a part aside, but '{{split}}' in file names "
      'selects the files of each split; use only one of the two'
    )
  return 0, count


def share_bounds(split: str, count: int, validation: float, unit: str) -> tuple[int, int]:
  """Returns the first and last index, exclusive, of a split among `count` items in order.

  Args:
    split: 'train', the first part, or 'validation', the rest.
    count: number of items.
    validation: the fraction set aside, rounded up to entire items.
    unit: of the items, for errors.

  Raises:
    UserError: there is no such split, or one of the two would be empty.
  """
  if not _is_number(validation) or not 0 <= validation < 1:
    raise UserError(f'data.source: validation={validation!r} must satisfy 0 <= validation < 1')
  if not validation:
    check_split(split, ['train'], '; validation=0.1 would set 10 % aside')
    return 0, count
  check_split(split, ['train', 'validation'])
  # A decimal fraction: 0.2 is 1/5, which no float is.
  cut = count - math.ceil(fractions.Fraction(str(validation)) * count)
  if not 0 < cut < count:
    raise UserError(f'data.source: validation={validation} of {count} {unit} leaves a split empty')
  return (0, cut) if split == 'train' else (cut, count)


def hash_split(split: str, validation: float) -> Callable[[str], bool]:
  """Returns the predicate whether an item with a name belongs to a split.

  It depends on a hash of the name alone. Thus no item changes its split when others come or go, and
  a larger fraction includes all of a smaller one.

  Raises:
    UserError: there is no such split or fraction.
  """
  if not _is_number(validation) or not 0 < validation < 1:
    raise UserError(f'data.source: validation={validation!r} must satisfy 0 < validation < 1')
  check_split(split, ['train', 'validation'])
  return lambda name: (_hash_fraction(name) < validation) == (split == 'validation')


def _hash_fraction(name: str) -> float:
  return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], 'big') / 2**32


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _tuple(names: str | Sequence[str]) -> tuple[str, ...]:
  return (names,) if isinstance(names, str) else tuple(names)
