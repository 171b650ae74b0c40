"""Exceptions that end a program with one line and an exit code, and checks that raise them."""

import numbers
from collections.abc import Collection, Iterable


class UserError(Exception):
  """A mistake of the user; its message is one line with the key, the value and a remedy.

  Programs print it on stderr without a trace and exit with code 2.
  """


class Preempted(Exception):
  """The run received SIGTERM and has saved its state. Programs exit with code 75."""


class PeerLost(Exception):
  """Another process of the run died, or did not start. Programs exit with code 134."""


def check_range(name: str, value: float, low: float, high: float = float('inf')) -> None:
  """Raises UserError unless `value` is a number from `low` to `high`; `name` is its key or flag."""
  if not isinstance(value, numbers.Real):
    raise UserError(f'{name}={value!r} is not a number')
  if not low <= value <= high:
    limits = f'{low} or more' if high == float('inf') else f'between {low} and {high}'
    raise UserError(f'{name}={value} is not {limits}')


def check_choice(name: str, value: str, known: Collection[str]) -> None:
  """Raises UserError unless `value` is one of `known`; `name` is its key or argument."""
  if value not in known:
    choices = ', '.join(map(repr, known))
    raise UserError(f'{name}={value!r}{did_you_mean(value, known)} must be one of {choices}')


def first_line(error: Exception) -> str:
  """Returns an error as one short line."""
  return ' '.join(f'{type(error).__name__}: {error}'.split())[:200]


def did_you_mean(name: str, known: Iterable[object]) -> str:
  """Returns ' (did you mean ...?)' with the names in `known` that are closest; '' without one."""
  import difflib

  close = difflib.get_close_matches(str(name), [str(k) for k in known], n=2, cutoff=0.5)
  return f' (did you mean {" or ".join(map(repr, close))}?)' if close else ''
