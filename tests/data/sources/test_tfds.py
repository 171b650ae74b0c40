import os
import pathlib
import shutil
import subprocess
import sys
import textwrap

import pytest

from lm.data import pipeline
from lm.data.sources import tfds
from lm.data.sources.tfds import _builder, _missing_downloads, _offline
from lm.errors import UserError
from lm.text import tokenizers

# In its own process, as the definition registers the builder, and the test checks the imports.
BUILDER = """
  import sys
  import numpy as np
  import tensorflow_datasets as tfds

  class TinyLines(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      text = tfds.features.Text()
      mood = tfds.features.ClassLabel(names=['low', 'high'])
      features = {'body': text, 'words': tfds.features.Sequence(text), 'mood': mood}
      features |= {'score': np.float32}
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, downloads):
      splits = {'train': self._generate_examples(20), 'test': self._generate_examples(5)}
      return splits | {'unlabeled': self._generate_examples(3, mood=-1, end=b'\\xe9')}

    def _generate_examples(self, count, mood=None, end=b''):
      for n in range(count):
        text = f'línea {n}'.encode() + end
        mood_of = n % 2 if mood is None else mood
        yield n, {'body': text, 'words': ['a', 'b'], 'mood': mood_of, 'score': n / 4}
"""
READ = """
  from lm.data.sources import tfds as source
  lines = source('train', name='tiny_lines', text='body', data_dir=sys.argv[1])
  assert sorted(lines[i]['text'] for i in range(20)) == sorted(f'línea {n}' for n in range(20))
  assert len(lines) == 20 and lines.fingerprint.startswith('tiny_lines/1.0.0 train 20')
  print('tensorflow' in sys.modules, 'jax' in sys.modules)
"""


def python(program, *arguments):
  return subprocess.run(
    [sys.executable, '-c', textwrap.dedent(program), *map(str, arguments)],
    capture_output=True,
    text=True,
  )


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """Returns a directory with a builder that is prepared from its source without TensorFlow."""
  folder = tmp_path_factory.mktemp('tfds')
  run = python(textwrap.dedent(BUILDER) + textwrap.dedent(READ), folder)
  assert run.returncode == 0, run.stderr
  assert run.stdout == 'False False\n'  # no other output on stdout, and no slow imports
  return folder


def path(data_dir, **arguments):
  given = {'name': 'tiny_lines', 'text': 'body', 'data_dir': str(data_dir)} | arguments
  return f'lm.data.sources:tfds({", ".join(f"{k}={v!r}" for k, v in given.items())})'


def read(section, data_dir, split, **arguments):
  data = section(path(data_dir, **arguments), pack='lm.data.packing:concatenate', seq_len=1000)
  return pipeline.packed_rows(data, split, tokenizers.bytes([]), 0)


def test_a_prepared_builder_is_read_without_its_code(section, data_dir):
  rows = read(section, data_dir, 'train')
  assert rows.documents == 20
  assert rows.bytes == sum(len(f'línea {n}'.encode()) for n in range(20))
  assert read(section, data_dir, 'test').documents == 5


def test_splits_are_renamed_and_cut(section, data_dir):
  splits = {'train': 'train[:75%]', 'validation': 'train[75%:]'}
  train = read(section, data_dir, 'train', splits=splits)
  validation = read(section, data_dir, 'validation', splits=splits)
  assert (train.documents, validation.documents) == (15, 5)
  entire = read(section, data_dir, 'train')
  assert train.bytes + validation.bytes == entire.bytes


def test_features_become_fields_and_classes_become_names(data_dir):
  columns = {'text': 'body', 'label': 'mood', 'value': 'score'}
  examples = tfds('train', name='tiny_lines', data_dir=str(data_dir), columns=columns)
  odd = {f'línea {n}': 'low' if n % 2 == 0 else 'high' for n in range(20)}
  read = [examples[i] for i in range(20)]
  assert {e['text']: e['label'] for e in read} == odd
  assert {e['text']: e['value'] for e in read} == {f'línea {n}': n / 4 for n in range(20)}
  assert type(read[0]['value']) is float


@pytest.mark.parametrize(
  ('split', 'arguments', 'message'),
  [
    ('validation', {}, "no split 'validation'; available: 'test', 'train', 'unlabeled'"),
    ('test', {'splits': {'train': 'train'}}, "no split 'test'; available: 'train'"),
    ('train', {'splits': {'train': 'training'}}, "Unknown split 'training'"),
    (
      'train',
      {'text': 'text'},
      "has no feature 'text'; available: 'body', 'mood', 'score', 'words'",
    ),
    ('train', {'text': 'words'}, "'words' is of type .*, not text"),
    ('train', {'name': 'tiny_shakespear'}, "no builder 'tiny_shakespear' .*'tiny_shakespeare'"),
    ('train', {'name': 'glue/cola3'}, 'glue/cola3'),
  ],
)
def test_user_errors_are_reported_in_one_line(section, data_dir, split, arguments, message):
  with pytest.raises(UserError, match=message) as e:
    read(section, data_dir, split, **arguments)
  assert '\n' not in str(e.value)


def test_without_network_the_error_names_the_place_of_the_file(section, tmp_path, monkeypatch):
  monkeypatch.setattr(sys.modules['lm.data.sources.tfds'], '_offline', lambda urls: True)
  where = rf'put https://.*/input\.txt at {tmp_path}/downloads/manual/input\.txt.*:text'
  with pytest.raises(UserError, match=where):
    read(section, tmp_path, 'train', name='tiny_shakespeare', text='text')


def test_a_host_that_does_not_resolve_is_offline():
  assert _offline(['https://no-such-host.invalid/file'])
  assert not _offline(['https://no-such-host.invalid/file', 'http://127.0.0.1/'])


def manual_file(folder):
  """Returns the path where tiny_shakespeare looks for its file before a download."""
  file = folder / 'downloads' / 'manual' / 'input.txt'
  file.parent.mkdir(parents=True)
  return file


def test_only_missing_files_are_downloaded(tmp_path):
  builder = _builder('tiny_shakespeare', tmp_path)
  assert list(_missing_downloads(builder, tmp_path).values()) == ['input.txt']
  cached = tmp_path / 'downloads' / 'tiny_shakespeare' / 'some.INFO'
  cached.parent.mkdir(parents=True)
  cached.touch()
  assert _missing_downloads(builder, tmp_path) == {}
  cached.unlink()
  manual_file(tmp_path).touch()
  assert _missing_downloads(builder, tmp_path) == {}


def test_a_wrong_file_in_place_of_a_download_is_rejected(section, tmp_path):
  manual_file(tmp_path).write_text('something else')
  with pytest.raises(UserError, match=r'https://.* has wrong checksum: .*86c4e6aa9db7c04.*f41f3fa'):
    read(section, tmp_path, 'train', name='tiny_shakespeare', text='text')


@pytest.mark.skipif('LM_DATA' not in os.environ, reason='LM_DATA names no folder of texts')
def test_tiny_shakespeare_is_prepared_from_a_placed_file(section, tmp_path):
  file = pathlib.Path(os.environ['LM_DATA']) / 'tinyshakespeare' / 'input.txt'
  shutil.copy(file, manual_file(tmp_path))
  parts = path(tmp_path, name='tiny_shakespeare', text='text')
  run = python(
    'import sys\n'
    'from lm.config import resolve\n'
    'from lm.errors import UserError\n'
    'try:\n'
    "  print(len(resolve.resolve(sys.argv[1], 'source')('train')[0]['text']))\n"
    'except UserError as e:\n'
    '  print(e)\n',
    parts,
  )
  try:
    import tensorflow  # noqa: F401
  except ImportError:
    assert "needs TensorFlow: pip install -e '.[tfds]'" in run.stdout
  else:
    assert run.stdout == f'{int(1115394 * 0.9)}\n'


@pytest.mark.parametrize(
  ('columns', 'message'),
  [
    (
      {'label': 'mood'},
      r"tiny_lines/1\.0\.0 'unlabeled', example 1 .*'mood' is the class -1, but ",
    ),
    ({'text': 'body'}, r"'unlabeled', example 1 \(from 0\): 'body' is not UTF-8 at byte 8"),
  ],
)
def test_unpublished_labels_and_bytes_that_are_no_text_are_reported(data_dir, columns, message):
  examples = tfds('unlabeled', name='tiny_lines', data_dir=str(data_dir), columns=columns)
  with pytest.raises(UserError, match=message):
    examples[1]
