"""A data source of the first examples of another one."""

from collections.abc import Callable


def first(split: str, source: Callable, count: int):
  """Returns the first `count` examples of a split of the source at an import path."""
  examples = source(split)
  return [examples[i] for i in range(min(count, len(examples)))]
