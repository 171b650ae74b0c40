"""How a corpus without splits of its own is divided into 'train' and 'validation'."""

from lm.errors import UserError, nearest


def check(split: str, known: list[str], remedy: str = '') -> None:
  """Raises UserError when a source has no split of that name."""
  if split not in known:
    there = ', '.join(map(repr, known))
    raise UserError(f'data: no split {split!r}{nearest(split, known)}; there is {there}{remedy}')


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
  if not 0 <= validation < 1:
    raise UserError(f'data.source: validation={validation} is not a share, 0 <= validation < 1')
  if not validation:
    check(split, ['train'], '; validation=0.1 would set a tenth aside')
    return 0, count
  check(split, ['train', 'validation'])
  cut = int(count * (1 - validation))
  if not 0 < cut < count:
    raise UserError(
      f'data.source: validation={validation} of {count} {what} leaves a split without any'
    )
  return (0, cut) if split == 'train' else (cut, count)
