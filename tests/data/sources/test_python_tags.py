import ast
import keyword
import pathlib

import pytest

from lm.data.sources import python_tags
from lm.data.sources.embedded import python_library
from lm.errors import UserError

SOURCE = r'''
@cached(size=1)
async def area(shape, max=3) -> float:  # of it
  """Some
  lines."""
  # alone
  text = f'{shape!r} {"a"}' + rb"b"
  return len(shape).id - shape.scale(0x1f)
class Round(Shape): pass
total = 1 + """over
lines"""
x = 1
'''

# The words of each line and, below, the first letters of their tags.
EXPECTED = [
  ['@', 'cached', '(', 'size', '=', '1', ')'],
  'O CALL O NAME O NUM O',
  ['async', 'def', 'area', '(', 'shape', ',', 'max', '=', '3', ')', '->', 'float', ':', '# of it'],
  'KEY KEY FUN O NAME O NAME O NUM O O BUI O COM',
  ['text', '=', 'f\'{shape!r} {"a"}\'', '+', 'rb"b"'],
  'NAME O STR O STR',
  ['return', 'len', '(', 'shape', ')', '.', 'id', '-', 'shape', '.', 'scale', '(', '0x1f', ')'],
  'KEY BUI O NAME O O ATT O NAME O CALL O NUM O',
  ['class', 'Round', '(', 'Shape', ')', ':', 'pass'],
  'KEY CLASS O NAME O O KEY',
]


@pytest.fixture
def library(monkeypatch):
  """Returns a function that replaces the standard library by the given sources."""

  def replace(*sources):
    files = {pathlib.PurePath(f'm{n}.py'): s.encode() for n, s in enumerate(sources)}
    monkeypatch.setattr(python_library, 'files', lambda: files)

  return replace


def test_words_have_tags_of_their_kinds(library):
  library(SOURCE, SOURCE, 'not python')
  examples = list(python_tags('train', validation=0.001))
  assert [example['words'] for example in examples] == EXPECTED[::2]
  for example, letters in zip(examples, EXPECTED[1::2], strict=True):
    assert example['separator'] == ' '
    for tag, start in zip(example['tags'], letters.split(), strict=True):
      assert tag.startswith(start)


def test_lines_have_the_requested_length(library):
  library(SOURCE)
  examples = list(python_tags('train', validation=0.001, shortest=3, longest=5))
  assert [example['words'][0] for example in examples] == ['text', 'x']


def test_tags_of_the_real_library():
  train, aside = (list(python_tags(split, modules=40)) for split in ('train', 'validation'))
  assert len(train) > 5 * len(aside) > 100
  for example in train:
    for word, tag in zip(example['words'], example['tags'], strict=True):
      assert (tag == 'KEYWORD') == keyword.iskeyword(word)
      assert (tag == 'COMMENT') == word.startswith('#')
      if tag in ('STRING', 'NUMBER'):
        ast.parse(word, mode='eval')
      elif tag not in ('OPERATOR', 'COMMENT'):
        assert word.isidentifier()
  tags = {tag for example in train for tag in example['tags']}
  assert len(tags) == 11
  assert python_tags('train').fingerprint == python_library.fingerprint()
  with pytest.raises(UserError, match="no split 'test'"):
    python_tags('test')
