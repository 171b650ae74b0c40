"""Invalid sources, steps and transforms are reported in one line, before any file is written."""

import numpy as np
import pytest

from lm.data import batches, pipeline
from lm.errors import UserError
from lm.text import tokenizers

SOURCES = """
import numpy as np

def good(split): return [{'text': f'line {n}'} for n in range(40)]
def lazy(split): yield {'text': 'a'}
def none(split): pass
def mapping(split): return {'text': ['a', 'b']}
def string(split): return 'a text'
def strings(split): return ['a text', 'another']
def unsized(split): return iter([{'text': 'a'}])

def same(examples): yield from examples
def nothing(examples): pass
def one(examples): return {'text': 'a'}
def texts(examples): return (example['text'] for example in examples)

def drops(row, rng): return {name: x for name, x in row.items() if name != 'weights'}
def in_place(row, rng): row['weights'] = row['weights'] * rng.random(row['weights'].shape)
def shortens(row, rng): return row | {'inputs': row['inputs'][:-1]}
def ragged(row, rng): return row | {'more': np.zeros(row['targets'].sum())}
def floats(row, rng): return row | {'inputs': row['inputs'] / 2}
def lists(row, rng): return row | {'inputs': row['inputs'].tolist()}
def fine(row, rng): return row | {'inputs': row['inputs'] * 2, 'more': np.zeros(3)}
"""


@pytest.fixture
def named(tmp_path, monkeypatch):
  """Returns the name of a module of such functions."""
  (tmp_path / 'functions_of_users.py').write_text(SOURCES)
  monkeypatch.syspath_prepend(tmp_path)
  return 'functions_of_users'


@pytest.mark.parametrize(
  ('source', 'step', 'message'),
  [
    (
      'lazy',
      'same',
      r"data\.source='.*:lazy' returns a generator for split 'train'; .* return a list",
    ),
    ('none', 'same', r"data\.source='.*:none' returns a NoneType"),
    ('mapping', 'same', r"data\.source='.*:mapping' returns a dict"),
    ('string', 'same', r"data\.source='.*:string' returns a str"),
    ('unsized', 'same', r"data\.source='.*:unsized' returns a list_iterator"),
    ('strings', 'same', r"data\.source: an example is 'a text', not a dict"),
    ('good', 'nothing', r"data\.prepare\[0\]='.*:nothing' returns a NoneType"),
    ('good', 'one', r"data\.prepare\[0\]='.*:one' returns a dict"),
    ('good', 'texts', r"data\.prepare\[0\]: an example is 'line 0', not a dict"),
  ],
)
def test_invalid_sources_and_steps_are_reported(section, named, tmp_path, source, step, message):
  data = section(f'{named}:{source}', prepare=(f'{named}:{step}',))
  with pytest.raises(UserError, match=message) as e:
    pipeline.packed_rows(data, 'train', pipeline.tokenizer(data), 0)
  assert '\n' not in str(e.value)
  assert not list((tmp_path / 'cache').glob('[!.]*'))


@pytest.mark.parametrize(
  ('transform', 'message'),
  [
    ('drops', r"data\.transforms\[0\]='.*:drops' drops 'weights' of a row"),
    ('in_place', r"data\.transforms\[0\]='.*:in_place' returns a NoneType, not the changed row"),
    (
      'shortens',
      r"data\.transforms\[0\]='.*:shortens' makes 'inputs' int32\(15,\) and 'segments' int32\(16",
    ),
    ('ragged', r"data\.transforms\[0\]='.*:ragged' makes 'more' float64.* and .*, by row; it must"),
    (
      'floats',
      r"data\.transforms\[0\]='.*:floats' makes 'inputs' float64\(16,\); it was int32\(16",
    ),
    ('lists', r"data\.transforms\[0\]='.*:lists' makes 'inputs' a list"),
  ],
)
def test_invalid_transforms_are_reported(section, named, transform, message):
  rows = pipeline.packed_rows(section(f'{named}:good'), 'train', tokenizers.bytes([]), 0)
  with pytest.raises(UserError, match=message) as e:
    batches.open_transforms([f'{named}:{transform}'], tokenizers.bytes([]), rows)
  assert '\n' not in str(e.value)


def test_valid_functions_are_accepted(section, named):
  rows = pipeline.packed_rows(section(f'{named}:good'), 'train', tokenizers.bytes([]), 0)
  transforms = batches.open_transforms([f'{named}:fine'], tokenizers.bytes([]), rows)
  batch = batches.batch_at(rows, transforms, 2, 0, 0)
  plain = batches.batch_at(rows, (), 2, 0, 0)
  assert np.array_equal(batch['inputs'], 2 * plain['inputs']) and batch['more'].shape == (2, 3)
