import pytest


@pytest.fixture
def section(tmp_path):
  """Returns a function that makes a data section with a cache of its own."""

  def make(source, **changes):
    base = {
      'source': source,
      'train': 'train',
      'prepare': (),
      'tokenizer': {'fn': 'lm.text.tokenizers:bytes'},
      'specials': (),
      'task': None,
      'count': None,
      'context': 16,
      'source_context': 16,
      'pack': 'lm.data.packing:concatenate',
      'transforms': (),
      'reserve': 1.0,
      'cache': str(tmp_path / 'cache'),
      'workers': 1,
    }
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
