import pytest

from lm.config.base import base as base_config


@pytest.fixture
def section(tmp_path):
  """Returns a function that makes a data section with its own cache."""

  def make(source, **changes):
    base = {
      'source': source,
      'train_split': 'train',
      'mixture': {},
      'words': None,
      'mix': 'lm.data.mixture:mix',
      'prepare': (),
      'tokenizer': {'fn': 'lm.text.tokenizers:bytes'},
      'tokenizer_alpha': 1.0,
      'special_tokens': (),
      'task': None,
      'pair_counter': None,
      'seq_len': 16,
      'source_len': 16,
      'pack': 'lm.data.packing:concatenate',
      'transforms': (),
      'packing_slack': 1.0,
      'cache': str(tmp_path / 'cache'),
      'workers': 1,
    }
    assert not changes.keys() - base_config().data.keys()
    return base | changes

  return make


@pytest.fixture
def corpus(tmp_path):
  """Returns a function that writes a text file and the import path of its source."""

  def write(text, name='corpus.txt', **arguments):
    file = tmp_path / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    given = ''.join(f', {key}={value!r}' for key, value in arguments.items())
    return f'lm.data.sources:text(files={str(file)!r}{given})'

  return write
