import pathlib

import pytest

from lm.data.sources import python_dialogues
from lm.data.sources.embedded import python_library
from lm.errors import UserError

FIRST = '''
def join(path, *paths):
  """Join some paths. The last
  may be empty.

  More.
  """
def split(path):
  """Split a path"""
def now():
  """Return the time."""
def bare(x): pass
def short(x):
  """Too short."""
def signed(x):
  """signed(x) says how it is called."""
'''
CONTEXT = """first.join(path, *paths): Join some paths. The last may be empty.
first.split(path): Split a path"""


@pytest.fixture
def library(monkeypatch):
  """Replaces the standard library by two modules."""
  other = 'def quit():\n  """Leave at once, please."""\n'
  files = {pathlib.PurePath('first.py'): FIRST.encode(), pathlib.PurePath('z.py'): other.encode()}
  monkeypatch.setattr(python_library, 'files', lambda: files)
  python_library._functions.cache_clear()
  yield
  python_library._functions.cache_clear()


def test_questions_about_a_list_of_functions(library):
  examples = list(python_library.python_questions('train', functions=2, validation=0.001))
  assert len({e['id'] for e in examples}) == len(examples) == 9
  assert [e['context'] for e in examples[:5]] == [CONTEXT] * 5
  asked = [(e['question'], [a['text'] for a in e['answers']]) for e in examples]
  assert asked[:7] == [
    ('What does first.join do?', ['Join some paths']),
    ('What are the arguments of first.join?', ['path, *paths']),
    ('What does first.split do?', ['Split a path']),
    ('What are the arguments of first.split?', ['path']),
    ('What does first.now do?', []),
    ('What does first.now do?', ['Return the time']),
    ('What does z.quit do?', []),
  ]


def test_dialogues_about_a_list_of_functions(library):
  first, second = python_dialogues('train', functions=3, validation=0.001)
  assert first['turns'] == [
    'What does first.join do?',
    'Join some paths.',
    'And first.split?',
    'Split a path.',
    'And first.now?',
    'Return the time.',
  ]
  assert second['turns'] == ['What does z.quit do?', 'Leave at once, please.']


@pytest.mark.slow
def test_questions_of_the_real_library():
  train, aside = (list(python_library.python_questions(split)) for split in ('train', 'validation'))
  assert len(train) > 5000 and len(aside) > 200
  assert not {e['context'] for e in train} & {e['context'] for e in aside}
  for example in train + aside:
    for answer in example['answers']:
      place = slice(answer['start'], answer['start'] + len(answer['text']))
      assert answer['text'] and example['context'][place] == answer['text']
    if not example['answers']:
      name = example['question'].removeprefix('What does ').removesuffix(' do?')
      assert f'{name}(' not in example['context'].split()
  assert 0.05 < sum(not e['answers'] for e in train) / len(train) < 0.2
  with pytest.raises(UserError, match="no split 'test'"):
    python_dialogues('test')
