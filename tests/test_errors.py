"""Checks of values that raise errors of one line."""

import pytest

from lm.errors import UserError, check_choice, check_range


def test_range_includes_both_ends():
  for value in (0, 0.5, 1):
    check_range('rate', value, 0, 1)
  check_range('n', float('inf'), 1)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ((1.5, 0, 1), 'rate=1.5 is not between 0 and 1'),
    ((-1, 0), 'rate=-1 is not 0 or more'),
    ((float('nan'), 0), 'rate=nan is not 0 or more'),
  ],
)
def test_value_outside_its_range_is_refused(arguments, message):
  with pytest.raises(UserError) as error:
    check_range('rate', *arguments)
  assert str(error.value) == message


def test_unknown_choice_is_refused_with_the_nearest_name():
  check_choice('form', 'NFC', ('NFC', 'NFD'))
  with pytest.raises(UserError) as error:
    check_choice('form', 'NFX', ('NFC', 'keep'))
  assert str(error.value) == "form='NFX' (did you mean 'NFC'?) must be one of 'NFC', 'keep'"
