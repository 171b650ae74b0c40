"""Sequences of examples that are made by position, or all together when the first is read."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm.errors import UserError

Example = dict[str, Any]


def checked(example: Any, key: str) -> Any:
  """Returns an example once it is known to be a dict; `key` made it.

  Raises:
    UserError: it is none.
  """
  if not isinstance(example, Mapping):
    raise UserError(
      f"{key}: an example is {example!r:.60}, not a dict of its fields such as {{'text': ...}}"
    )
  return example


class Computed(Sequence):
  """Examples that a function makes of their positions.

  Attributes:
    fingerprint: a string that changes whenever the examples do.
    place: says where the example at a position is from, for errors; None where that is no file.
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
    self.fingerprint = fingerprint
    self.place = place
    self.note = note

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index):
    return self._make(self._indices[index])


class Deferred(Sequence):
  """Examples that a function makes all together when the first is read.

  Attributes:
    fingerprint: a string that changes whenever the examples do.
  """

  def __init__(self, make: Callable[[], list[Example]], fingerprint: str):
    self._make = make
    self.fingerprint = fingerprint

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index):
    return self._examples[index]

  @functools.cached_property
  def _examples(self) -> list[Example]:
    return self._make()
