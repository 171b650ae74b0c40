import numpy as np
import pytest
import test_special_text
from tokenizers import Tokenizer, decoders, models

from lm.decode import stream as decode_stream
from lm.decode.loop import DecodeConfig
from lm.text import stream, tokenizers
from lm.text.stream import TextStream
from lm.text.words import group

CORPUS = ['The dog, the cat and the 北京 bird do not sing. Is it so?'] * 4


def with_suffix():
  """OpenAI GPT's layout: words end with </w>."""
  made = Tokenizer(
    models.WordLevel({'<unk>': 0, 'a</w>': 1, 'b': 2, 'c</w>': 3}, unk_token='<unk>')
  )
  made.decoder = decoders.BPEDecoder()
  return made


LAYOUTS = {
  'bytes': lambda: tokenizers.bytes([]),
  'characters': lambda: tokenizers.characters(CORPUS),
  'words': lambda: tokenizers.words(CORPUS),
  'bpe': lambda: tokenizers.bpe(CORPUS, 270),
  'unigram': lambda: tokenizers.unigram(CORPUS, 259),
  'wordpiece': lambda: tokenizers.wordpiece(CORPUS, 48),
  'llama': test_special_text.llama,
  't5': lambda: test_special_text.by_pieces(test_special_text.SPECIALS),
  'suffix': with_suffix,
}


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('window', [8, 512])
def test_pieces_add_up_to_the_text_decoded_at_once(layout, window, monkeypatch):
  monkeypatch.setattr(stream, '_WINDOW', window)
  tokenizer = LAYOUTS[layout]()
  size = tokenizers.vocabulary_size(tokenizer)
  rng = np.random.default_rng(0)
  for _ in range(30):
    ids = rng.integers(0, size + 2, 40).tolist()  # bytes at random, special tokens, ids of nothing
    row = TextStream(tokenizer)
    pieces = [row.step(i) for i in ids]
    assert ''.join([*pieces, row.finish()]) == tokenizer.decode(ids)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_what_is_given_stays_as_it_is(layout):
  tokenizer = LAYOUTS[layout]()
  ids = np.random.default_rng(1).integers(0, tokenizers.vocabulary_size(tokenizer), 60).tolist()
  row, given = TextStream(tokenizer), ''
  for token in ids:
    given += row.step(token)
    assert tokenizer.decode(ids).startswith(given)


def test_text_comes_as_soon_as_it_is_certain():
  tokenizer = tokenizers.bytes([])
  row = TextStream(tokenizer)
  assert [row.step(b + 1) for b in 'a狗b'.encode()] == ['a', '', '', '狗', 'b']


@pytest.mark.parametrize('layout', ['bytes', 'llama', 'words', 't5'])
def test_the_first_word_keeps_its_space(layout):
  tokenizer = LAYOUTS[layout]()
  before = tokenizer.encode('the', add_special_tokens=False).ids
  after = tokenizer.encode('the and', add_special_tokens=False).ids
  assert after[: len(before)] == before
  row = TextStream(tokenizer, before)
  added = ''.join([*map(row.step, after[len(before) :]), row.finish()])
  assert tokenizer.decode(before) + added == tokenizer.decode(after)


def test_new_bytes_that_break_the_prompt_are_what_they_spell():
  tokenizer = LAYOUTS['llama']()
  before = tokenizer.encode('北', add_special_tokens=False).ids
  byte = {b: tokenizer.token_to_id(f'<0x{b:02X}>') for b in (0xFF, 0xE4)}
  row = TextStream(tokenizer, before)
  pieces = [row.step(byte[0xFF]), row.step(byte[0xE4]), row.step(tokenizer.token_to_id('a'))]
  assert pieces == ['', '', '\ufffd\ufffda']


def continued(tokenizer, prompts, rows, monkeypatch):
  """Returns the texts of rows that a model continues with these tokens."""

  class Model:
    context, reads_on = 1000, False

  tokens = np.array(rows).T
  monkeypatch.setattr(decode_stream, 'stream_tokens', lambda *a: iter(tokens))
  config = DecodeConfig(tokenizers.end_id(tokenizer), 50)
  found = decode_stream.stream_text(Model(), None, None, tokenizer, prompts, config, [0])
  return [''.join(pieces) for pieces in zip(*found, strict=True)]


@pytest.mark.parametrize('layout', ['bytes', 'llama', 'bpe', 'words', 'wordpiece'])
def test_continuations_are_the_text_of_prompt_and_tokens(layout, monkeypatch):
  tokenizer = LAYOUTS[layout]()
  rng, size = np.random.default_rng(2), tokenizers.vocabulary_size(tokenizer)
  end = tokenizers.end_id(tokenizer)
  rows = rng.integers(end + 1, size, (4, 50))
  rows[1, 20:] = end
  encode = decode_stream.prompt_encoder(tokenizer)
  prompts = ['the', 'the cat', 'the bird', 'and the dog']
  found = continued(tokenizer, prompts, rows, monkeypatch)
  for prompt, row, text in zip(prompts, rows, found, strict=True):
    ids = [*encode(prompt), *row[: 20 if row[-1] == end else 50].tolist()]
    assert prompt + text == tokenizer.decode(ids)


def test_a_space_at_the_end_of_a_prompt_is_not_doubled(monkeypatch):
  tokenizer = tokenizers.words(CORPUS)
  dog = [tokenizer.token_to_id('dog')] * 2
  assert continued(tokenizer, ['the ', 'the'], [dog, dog], monkeypatch) == ['dog dog', ' dog dog']


def test_a_prompt_that_looks_like_the_end_is_text(monkeypatch):
  tokenizer = tokenizers.bytes([])
  assert decode_stream.prompt_encoder(tokenizer)('<|end|>') == [0, *(b + 1 for b in b'<|end|>')]


def test_words_of_broken_bytes_have_all_tokens():
  tokenizer = LAYOUTS['llama']()
  ids = np.random.default_rng(3).integers(3, 259, 40).tolist()
  ids += tokenizer.encode('the dog', add_special_tokens=False).ids
  words = group(tokenizer, ids)
  assert [i for _, indices in words for i in indices] == list(range(len(ids)))
  assert words[-1][0] == 'dog'
