"""How a source finds its splits: each in files of its own, or all divided out of one corpus.

'{split}' in the name of a file stands for the name of the split. Without it the files hold one
corpus, and its last part, the share `validation`, is set aside under that name. What is embedded
and has no files is divided by a hash of names.
"""

import fractions
import hashlib
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from lm.errors import UserError, did_you_mean
from lm.text.files import expand_path, find_files, glob_files

_PLACE = '{split}'


def check(split: str, known: Sequence[str], remedy: str = '') -> None:
  """Raises UserError when a source has no split of that name."""
  if split not in known:
    there = ', '.join(map(repr, known))
    raise UserError(
      f'data: no split {split!r}{did_you_mean(split, known)}; there is {there}{remedy}'
    )


def files(split: str, names: str | Sequence[str], key: str) -> list[pathlib.Path]:
  """Returns the files of a split, or of the whole corpus where no name has '{split}' in it.

  Args:
    split: stands in the place of '{split}'.
    names: names or glob patterns; ~ and $VARIABLES are replaced.
    key: names the argument in errors.

  Raises:
    UserError: a name finds no file.
  """
  found = []
  for name in _tuple(names):
    expand_path(name, key)  # what is wrong with the name itself is told as the config has it
    try:
      found += find_files(name.replace(_PLACE, split), key)
    except UserError as e:
      if _PLACE not in name:
        raise
      others = glob_files(expand_path(name.replace(_PLACE, '*'), key))
      there = sorted(other.name for other in others)
      wanted = pathlib.PurePath(name.replace(_PLACE, split)).name
      known = (
        f'{did_you_mean(wanted, there)}; there is {", ".join(map(repr, there))}' if there else ''
      )
      raise UserError(f'{e}{known}') from e
  return found


def has_files_each(names: str | Sequence[str]) -> bool:
  """Returns whether each split has files of its own, which is when '{split}' is in their names.

  Raises:
    UserError: it is in some of the names only.
  """
  bare = [name for name in _tuple(names) if _PLACE not in name]
  if 0 < len(bare) < len(_tuple(names)):
    raise UserError(f"data.source: {bare[0]!r} has no '{{split}}' in it, and other files have")
  return not bare


def part(
  split: str, names: str | Sequence[str], count: int, validation: float, what: str
) -> tuple[int, int]:
  """Returns the first and the last index, exclusive, of a split among what its files hold.

  Args:
    split: its name.
    names: the names of the files, all with '{split}' in them or none.
    count: how many things the files hold.
    validation: the share set aside where the names have no '{split}'.
    what: what is counted, for errors.

  Raises:
    UserError: there is no such split, or one of the two would be empty.
  """
  if not has_files_each(names):
    return bounds(split, count, validation, what)
  if validation:
    raise UserError(
      f"data.source: validation={validation} sets a part aside, but with '{{split}}' in the names "
      'of files each split has its own; leave one of the two out'
    )
  return 0, count


def bounds(split: str, count: int, validation: float, what: str) -> tuple[int, int]:
  """Returns the first and the last index, exclusive, of a split among `count` things in order.

  Args:
    split: 'train', the first part, or 'validation', the rest.
    count: how many there are.
    validation: the share set aside, rounded up to whole things.
    what: what is counted, for errors.

  Raises:
    UserError: there is no such split, or one of the two would be empty.
  """
  if not _is_number(validation) or not 0 <= validation < 1:
    raise UserError(f'data.source: validation={validation!r} is not a share, 0 <= validation < 1')
  if not validation:
    check(split, ['train'], '; validation=0.1 would set a tenth aside')
    return 0, count
  check(split, ['train', 'validation'])
  cut = count - math.ceil(exactly(validation) * count)
  if not 0 < cut < count:
    raise UserError(
      f'data.source: validation={validation} of {count} {what} leaves a split without any'
    )
  return (0, cut) if split == 'train' else (cut, count)


def exactly(number: float) -> fractions.Fraction:
  """Returns the decimal fraction that a number is written as: 0.2 is 1/5, which no float is."""
  return fractions.Fraction(str(number))


def by_name(split: str, validation: float) -> Callable[[str], bool]:
  """Returns the function that says whether what has a name belongs to a split.

  It depends on a hash of the name alone, so nothing changes sides when other things come or go,
  and a larger share holds all of a smaller one.

  Raises:
    UserError: there is no such split, or the share is none.
  """
  if not _is_number(validation) or not 0 < validation < 1:
    raise UserError(f'data.source: validation={validation!r} is not a share, 0 < validation < 1')
  check(split, ['train', 'validation'])
  aside = split == 'validation'
  return lambda name: (_between_0_and_1(name) < validation) == aside


def _between_0_and_1(name: str) -> float:
  return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], 'big') / 2**32


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _tuple(names: str | Sequence[str]) -> tuple[str, ...]:
  return (names,) if isinstance(names, str) else tuple(names)
