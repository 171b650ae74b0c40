"""Prepared text depends on the code that imports reach, and on named files."""

import sys
import textwrap

import pytest

from lm.data import fingerprints, pipeline
from lm.text import tokenizers

STEPS = """
  '''Steps.'''
  import pathlib
  from mc_rules import clean
  from mc_pack import inner as renamed
  from mc_pack.sub import deep

  HERE = pathlib.Path(__file__).parent
  LIST = ('mc_words.txt',)

  def step(examples, keep='mc_kept.txt'):
    '''Cleans.'''
    import mc_late
    for e in examples:
      yield {**e, 'text': clean(e['text'])}

  def get_config(arg=''):
    import mc_config
    return {'rate': 0.1}
"""
FILES = {
  'mc_steps.py': textwrap.dedent(STEPS).lstrip(),
  'mc_rules.py': 'from mc_base import clean\n',
  'mc_base.py': 'clean = str.upper\n',
  'mc_late.py': 'x = 1\n',
  'mc_config.py': 'x = 1\n',
  'mc_other.py': 'x = 1\n',
  'mc_pack/__init__.py': 'from . import inner\n',
  'mc_pack/inner.py': 'from . import side\nfrom .side import y\n',
  'mc_pack/side.py': 'y = 1\n',
  'mc_pack/unused.py': 'y = 1\n',
  'mc_pack/sub.py': 'def deep(examples): return examples\n',
  'mc_words.txt': 'a',
  'mc_kept.txt': 'a',
  'mc_given.txt': 'a',
}
PATH = 'mc_steps:step'


def forget():
  for name in [name for name in sys.modules if name.startswith('mc_')]:
    del sys.modules[name]


@pytest.fixture
def project(tmp_path, monkeypatch):
  """Returns a folder of modules and files on the import path."""
  folder = tmp_path / 'project'
  for name, content in FILES.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)
  monkeypatch.setattr(sys, 'dont_write_bytecode', True)
  monkeypatch.syspath_prepend(folder)
  yield folder
  forget()


def change(file, old, new):
  text = file.read_text()
  assert old in text
  file.write_text(text.replace(old, new))


@pytest.mark.parametrize(
  ('name', 'old', 'new'),
  [
    ('mc_steps.py', "e['text']", "e['txt']"),
    ('mc_rules.py', 'clean', 'clean, clean as other'),
    ('mc_base.py', 'upper', 'title'),
    ('mc_late.py', '1', '2'),
    ('mc_pack/__init__.py', 'inner', 'inner, side'),
    ('mc_pack/inner.py', 'y', 'y as z'),
    ('mc_pack/side.py', '1', '2'),
    ('mc_pack/sub.py', 'return examples', 'return list(examples)'),
    ('mc_words.txt', 'a', 'b'),
    ('mc_kept.txt', 'a', 'b'),
  ],
)
def test_modules_reached_by_a_step_change_the_fingerprint(project, name, old, new):
  before = fingerprints.of_values([PATH])
  change(project / name, old, new)
  assert fingerprints.of_values([PATH]) != before


@pytest.mark.parametrize(
  ('name', 'old', 'new'),
  [
    ('mc_steps.py', "'''Cleans.'''", "'''Makes clean.'''  # a comment"),
    ('mc_steps.py', "'''Steps.'''\n", '\n\n'),
    ('mc_steps.py', 'clean(e[', 'clean( e[ '),
    ('mc_steps.py', "'rate': 0.1", "'rate': 0.2"),
    ('mc_base.py', 'clean', '# a comment\nclean'),
    ('mc_config.py', '1', '2'),
    ('mc_other.py', '1', '2'),
    ('mc_pack/unused.py', '1', '2'),
    ('mc_given.txt', 'a', 'b'),
  ],
)
def test_comments_docstrings_and_get_config_do_not_count(project, name, old, new):
  before = fingerprints.of_values([PATH])
  change(project / name, old, new)
  assert fingerprints.of_values([PATH]) == before


@pytest.mark.parametrize(
  'value',
  [
    "mc_pack.sub:deep(words='{}')",
    "mc_pack.sub:deep(words=('x', ('{}',)))",
    'mc_pack.sub:deep(inner="mc_pack.sub:deep(words=\'{}\')")',
    '{}',
    {'fn': 'lm.text.tokenizers:existing', 'file': '{}'},
    ['~/mc_given.txt'],
  ],
)
def test_files_named_by_arguments_count(project, monkeypatch, value):
  monkeypatch.setenv('HOME', str(project))
  change(project / 'mc_pack/sub.py', 'examples)', 'examples, words=(), inner=None)')
  file = project / 'mc_given.txt'
  if isinstance(value, dict):
    value = value | {'file': str(file)}
  elif isinstance(value, str):
    value = value.format(file)
  before = fingerprints.of_values(value)
  change(file, 'a', 'b')
  assert fingerprints.of_values(value) != before


def test_modules_are_those_of_the_project(project):
  digests = fingerprints.of_values([PATH, 'lm.data.sources:text', 'numpy:sort'])
  assert {name for name in digests if name.startswith('mc_')} == {
    *('mc_steps', 'mc_rules', 'mc_base', 'mc_late', 'mc_pack', 'mc_pack.inner', 'mc_pack.side'),
    'mc_pack.sub',
  }
  # A source of this package depends on the module that defines it, not on all other sources.
  assert {'lm.data.sources.text', 'lm.data.sources.base', 'lm.text.files'} <= digests.keys()
  assert not {'lm.data.sources', 'lm.data.sources.squad', 'numpy', 'pathlib'} & digests.keys()


def test_a_large_file_counts_by_size_and_time(project, monkeypatch):
  monkeypatch.setattr(fingerprints, '_LARGE', 2)
  file = project / 'mc_given.txt'
  file.write_text('large')
  digests = fingerprints.of_values(str(file))
  assert digests == {f'file {file}': f'5 {file.stat().st_mtime_ns}'}


def test_a_tokenizer_is_trained_again_after_changed_code_but_not_after_a_comment(
  project, section, corpus, monkeypatch
):
  data = section(
    corpus('abc ' * 9),
    prepare=(PATH,),
    tokenizer={'fn': 'lm.text.tokenizers:characters', 'min_count': 1},
  )

  def rows():
    return pipeline.packed_rows(data, 'train', tokenizers.bytes([]), 0).fingerprint

  first, prepared = pipeline.tokenizer(data).get_vocab(), rows()
  assert {'A', 'B', 'C'} <= first.keys()
  forget()
  change(project / 'mc_base.py', 'clean', '# upper\nclean')
  with monkeypatch.context() as patch:
    patch.setattr(tokenizers.characters, '__code__', (lambda texts, min_count: 1 / 0).__code__)
    assert pipeline.tokenizer(data).get_vocab() == first and rows() == prepared
  forget()
  change(project / 'mc_base.py', 'str.upper', 'str.lower')
  assert {'a', 'b', 'c'} <= pipeline.tokenizer(data).get_vocab().keys() and rows() != prepared
