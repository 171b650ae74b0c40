import math
import pathlib

import pytest

from lm.data.sources import python_functions
from lm.data.sources.embedded import python_library
from lm.errors import UserError

SOURCE = '''
def once(a, *, b=1):
  """Does it."""
  return a + b

class Holder:
  async def held(self):
    """Goes over

    some lines."""

    if self:
      return {
        1: 2,
      }

  def interface(self):
    """Is elsewhere."""

  def silent(self):
    return 1

def outer():
  """Has one inside."""
  def inner(x) -> int:
    """Is inside."""
    return x
  return inner
'''
EXPECTED = {
  'once(a, *, b=1)\n\nDoes it.': 1,
  'held(self)\n\nGoes over\n\nsome lines.': 4,
  'outer()\n\nHas one inside.': 4,
  'inner(x)\n\nIs inside.': 1,
}


@pytest.fixture
def library(monkeypatch):
  """Returns a function that replaces the standard library by the given sources."""

  def replace(*sources):
    files = {pathlib.PurePath(f'm{n}.py'): s.encode() for n, s in enumerate(sources)}
    monkeypatch.setattr(python_library, 'files', lambda: files)
    python_library._measured.cache_clear()

  yield replace
  python_library._measured.cache_clear()


def test_values_are_logarithms_of_lines_counted_by_hand(library):
  library(SOURCE, 'no Python $', SOURCE.replace('return a + b', 'return (a +\nb)'))
  lines = {e['text']: 2 ** e['value'] for e in python_functions('train', validation=0.001)}
  assert lines == pytest.approx(EXPECTED)


@pytest.mark.parametrize(
  ('library', 'least'), [('small_library', 100), pytest.param(None, 3000, marks=pytest.mark.slow)]
)
def test_no_text_is_in_both_splits(library, least, request):
  if library:
    request.getfixturevalue(library)
  train, aside = (list(python_functions(split)) for split in ('train', 'validation'))
  texts = [{example['text'] for example in part} for part in (train, aside)]
  assert not texts[0] & texts[1]
  assert (len(texts[0]), len(texts[1])) == (len(train), len(aside))
  # The share of a few modules depends on the version of Python.
  assert len(train) > least and (library or 0.02 < len(aside) / len(train) < 0.3)
  assert all(math.isfinite(e['value']) and e['value'] >= 0 for e in train + aside)


def test_the_fingerprint_follows_the_library_and_unknown_splits_are_reported():
  assert python_functions('train').fingerprint == python_library.fingerprint()
  with pytest.raises(UserError, match=r"no split 'test'"):
    python_functions('test')
