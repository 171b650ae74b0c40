import timeit

import numpy as np
import pytest

from lm.data import pipeline
from lm.text import tokenizers

TEXT = 'one two\n\nthree\n\nfür 学习 🎉 end\n\n' + '\n\n'.join('word ' * n for n in range(1, 30))
END = 0


def rows_of(section, corpus, pack='concatenate', seq_len=16, text=TEXT):
  source = corpus(text, documents='paragraph')
  data = section(source, pack=f'lm.data.packing:{pack}', seq_len=seq_len)
  return pipeline.packed_rows(data, 'train', tokenizers.bytes([]), seed=0)


def pieces(rows):
  """Yields the columns of each piece of each row."""
  for i in range(len(rows)):
    row = rows[i]
    for segment in range(1, row['segments'].max() + 1):
      yield {name: values[row['segments'] == segment] for name, values in row.items()}


@pytest.mark.parametrize('pack', ['concatenate', 'best_fit'])
def test_joined_pieces_equal_the_documents(section, corpus, pack):
  rows = rows_of(section, corpus, pack, seq_len=5000)
  joined = sorted(bytes(piece['targets'][:-1].tolist()) for piece in pieces(rows))
  expected = [bytes(b + 1 for b in d.strip('\n').encode()) for d in TEXT.split('\n\n')]
  assert joined == sorted(expected)
  for piece in pieces(rows):
    assert piece['targets'][-1] == END == piece['inputs'][0]
    assert (piece['inputs'][1:] == piece['targets'][:-1]).all()


@pytest.mark.parametrize('pack', ['concatenate', 'best_fit'])
def test_a_piece_from_the_middle_has_the_preceding_token_as_input(section, corpus, pack):
  text = ''.join(chr(33 + i) for i in range(90))
  rows = rows_of(section, corpus, pack, seq_len=16, text=text)
  tokens = [b + 1 for b in text.encode()] + [END]
  follows = dict(zip(tokens, [END, *tokens[:-1]], strict=True))
  for piece in pieces(rows):
    assert piece['inputs'].tolist() == [follows[t] for t in piece['targets'].tolist()]


@pytest.mark.parametrize('pack', ['concatenate', 'best_fit'])
def test_positions_restart_and_padding_is_zero(section, corpus, pack):
  rows = rows_of(section, corpus, pack)
  for piece in pieces(rows):
    assert piece['positions'].tolist() == list(range(len(piece['positions'])))
    assert (piece['weights'] == 1).all()
  for i in range(len(rows)):
    padding = rows[i]['segments'] == 0
    assert all((values[padding] == 0).all() for values in rows[i].values())
    assert (np.diff(padding.astype(int)) >= 0).all()  # padding comes last


@pytest.mark.parametrize('pack', ['concatenate', 'best_fit'])
@pytest.mark.parametrize('seq_len', [3, 16, 1000])
def test_bytes_sum_to_the_size_of_the_text(section, corpus, pack, seq_len):
  rows = rows_of(section, corpus, pack, seq_len)
  size = sum(len(d.strip('\n').encode()) for d in TEXT.split('\n\n'))
  batch = rows.batch(np.arange(len(rows)))
  assert batch['bytes'].sum() == rows.bytes == size
  assert batch['weights'].sum() == rows.tokens
  assert (batch['targets'][batch['bytes'] > 0] == END).all()


@pytest.mark.parametrize('pack', ['concatenate', 'best_fit'])
def test_a_batch_stacks_rows(section, corpus, pack):
  rows = rows_of(section, corpus, pack)
  indices = np.array([len(rows) - 1, 0, 3, 3, 1])
  batch = rows.batch(indices)
  types = {name: np.int32 for name in batch} | {'weights': np.float32}
  for name, values in batch.items():
    assert values.dtype == types[name] and values.shape == (5, 16)
    assert (values == np.stack([rows[int(i)][name] for i in indices])).all()


def test_an_index_outside_the_rows_raises_index_error(section, corpus):
  rows = rows_of(section, corpus)
  assert all((rows[-1][name] == rows[len(rows) - 1][name]).all() for name in rows[0])
  with pytest.raises(IndexError):
    rows[len(rows)]


@pytest.mark.parametrize('shape', [(12, 64), (8, 1024)])
def test_a_batch_is_assembled_in_a_millisecond(section, corpus, shape):
  text = '\n\n'.join('some words of text ' * (n % 40 + 1) for n in range(2000))
  rows = rows_of(section, corpus, 'best_fit', seq_len=shape[1], text=text)
  indices = np.random.default_rng(0).integers(0, len(rows), shape[0])
  assert min(timeit.repeat(lambda: rows.batch(indices), number=10, repeat=20)) / 10 < 1e-3
