"""The contents of gzipped files are not held in memory, even if they are highly compressed."""

import gzip
import random
import re
import tracemalloc

import pytest

from lm.data.sources import base, columns, squad, table, text
from lm.errors import UserError

SIZE = 2**25  # bytes unpacked


@pytest.mark.parametrize(
  ('name', 'line', 'unit'),
  [
    ('a.txt.gz', b'a' * 1024, 'file'),
    ('a.jsonl.gz', b'a' * 1024, 'line'),
    ('a.txt.gz', b'line\n' * 2**18, 'paragraph'),
    ('a.csv.gz', b'"a",' * 2**18, 'record'),
  ],
)
def test_a_gzip_bomb_is_opened_in_little_memory(tmp_path, name, line, unit):
  file = tmp_path / name
  with gzip.open(file, 'wb', compresslevel=1) as f:
    for _ in range(SIZE // len(line)):
      f.write(line)
  base._load.cache_clear()
  tracemalloc.start()
  try:
    spans = base.ByteSpans([file], [unit])
    place = spans.place(len(spans) - 1)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert len(spans) == 1 and place == f'{file}, line 1'
  assert peak < SIZE / 2


@pytest.mark.parametrize(
  ('name', 'read'),
  [
    ('a.txt.gz', lambda file: text('train', file, documents='line')),
    ('a.txt', lambda file: text('train', file, documents='line')),
    ('a.jsonl.gz', lambda file: columns('train', file)),
    ('a.tsv.gz', lambda file: table('train', file, {'text': 'text'})),
    ('a.jsonl.gz', lambda file: squad('train', file)),
  ],
)
def test_a_line_that_is_too_long_is_reported_before_it_is_read(tmp_path, monkeypatch, name, read):
  monkeypatch.setattr(base, 'LONGEST', 100)
  content = b'text\n' + b'x' * 101
  file = tmp_path / name
  file.write_bytes(gzip.compress(content) if name.endswith('.gz') else content)
  if '.jsonl' in name:
    file.write_bytes(gzip.compress(b'\n' + b'x' * 101))
  message = rf'{re.escape(str(file))}, line 2: 101 bytes; the maximum is 100'
  with pytest.raises(UserError, match=message):
    list(read(str(file)))


def test_a_gzip_file_that_does_not_fit_on_the_disk_is_reported(tmp_path, monkeypatch):
  file = tmp_path / 'a.txt.gz'
  file.write_bytes(gzip.compress(b'a' * 1000))

  def full(source, target, length):
    target.write(source.read(500))
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(base.shutil, 'copyfileobj', full)
  with pytest.raises(UserError, match=r'does not fit into .* \(No space left .* after 500 bytes\)'):
    text('train', str(file))


def test_possessive_quantifiers_match_like_backtracking_ones():
  """Possessive quantifiers match the same spans as backtracking ones."""
  plain = {
    'paragraph': rb'[^\r\n]+(?:\r?\n[^\r\n]+)*',
    'record': rb'(?:[^"\r\n]+|"[^"]*(?:"|\Z))+',
  }
  rng = random.Random(0)
  for _ in range(2000):
    data = bytes(rng.choice(b'ab",\r\n\n') for _ in range(rng.randrange(30)))
    for unit, pattern in plain.items():
      spans = [match.span() for match in base.UNITS[unit].finditer(data)]
      assert spans == [match.span() for match in re.finditer(pattern, data)], (unit, data)
