import numpy as np
import pytest
import test_special_text
from tokenizers import Tokenizer, decoders, models

from lm.decode import stream as decode_stream
from lm.decode.loop import DecodeConfig
from lm.errors import UserError
from lm.text import detokenize, tokenizers
from lm.text.detokenize import TextStream, group_words

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
def test_pieces_concatenate_to_the_decoded_text(layout, window, monkeypatch):
  monkeypatch.setattr(detokenize, '_WINDOW', window)
  tokenizer = LAYOUTS[layout]()
  size = tokenizers.vocabulary_size(tokenizer)
  rng = np.random.default_rng(0)
  for _ in range(30):
    ids = rng.integers(0, size + 2, 40).tolist()  # bytes at random, special tokens, ids of nothing
    row = TextStream(tokenizer)
    pieces = [row.step(i) for i in ids]
    assert ''.join([*pieces, row.finish()]) == tokenizer.decode(ids)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_returned_text_is_final(layout):
  tokenizer = LAYOUTS[layout]()
  ids = np.random.default_rng(1).integers(0, tokenizers.vocabulary_size(tokenizer), 60).tolist()
  row, given = TextStream(tokenizer), ''
  for token in ids:
    given += row.step(token)
    assert tokenizer.decode(ids).startswith(given)


def test_text_is_returned_once_certain():
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


def test_bytes_that_invalidate_the_prompt():
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


def test_a_start_outside_the_vocabulary_is_refused():
  with pytest.raises(UserError, match=r'decode\.start=\(7, 300\): 300 is not below 257'):
    decode_stream.prompt_encoder(tokenizers.bytes([]), (7, 300))


def test_words_of_invalid_bytes_have_all_tokens():
  tokenizer = LAYOUTS['llama']()
  ids = np.random.default_rng(3).integers(3, 259, 40).tolist()
  ids += tokenizer.encode('the dog', add_special_tokens=False).ids
  words = group_words(tokenizer, ids)
  assert [i for _, indices in words for i in indices] == list(range(len(ids)))
  assert words[-1][0] == 'dog'


def spelled(tokenizer, text):
  ids = tokenizer.encode(text, add_special_tokens=False).ids
  found = group_words(tokenizer, ids)
  # Every token belongs to one word, in order.
  assert [i for _, indices in found for i in indices] == list(range(len(ids)))
  return [word for word, _ in found]


def test_bytes_become_words_and_characters():
  tokenizer = tokenizers.bytes([])
  words = spelled(tokenizer, "Für 3 dogs, don't 学习!")
  assert words == [
    'Für',
    '3',
    'dogs',
    ',',
    'don',
    "'",
    't',
    '学',
    '习',
    '!',
  ]


@pytest.mark.parametrize(('build', 'size'), [(tokenizers.bpe, 278), (tokenizers.unigram, 258)])
def test_subwords_are_joined_and_ideographs_are_not(build, size):
  texts = ['ein Hund und noch ein Hund', '小狗和小狗'] * 20
  tokenizer = build(texts, vocab_size=size)
  assert spelled(tokenizer, 'ein Mund und Hund') == ['ein', 'Mund', 'und', 'Hund']
  assert ''.join(spelled(tokenizer, '小狗和猫')) == '小狗和猫'
  assert len(spelled(tokenizer, '和猫')) == 2


def test_wordpieces_are_joined():
  tokenizer = tokenizers.wordpiece(['play plays played playing'] * 9, vocab_size=22)
  assert len(tokenizer.encode('plays played').ids) > 2
  assert spelled(tokenizer, 'plays played') == ['plays', 'played']


def test_special_tokens_stand_alone_by_name():
  tokenizer = tokenizers.with_special_tokens(tokenizers.bytes([]), ['<|sep|>'])
  ids = [
    0,
    *tokenizer.encode('ab').ids,
    tokenizer.token_to_id('<|sep|>'),
    *tokenizer.encode('c').ids,
  ]
  assert group_words(tokenizer, ids) == [
    ('<|end|>', [0]),
    ('ab', [1, 2]),
    ('<|sep|>', [3]),
    ('c', [4]),
  ]


def test_space_is_visible_and_half_a_character_is_kept():
  tokenizer = tokenizers.bytes([])
  assert spelled(tokenizer, '\n\na  b ') == ['⏎', '⏎', 'a', '␣', 'b', '␣']
  assert group_words(tokenizer, [*tokenizer.encode('a ').ids, 0])[1:] == [
    ('␣', [1]),
    ('<|end|>', [2]),
  ]
  half = tokenizer.encode('a狗').ids[:-1]
  assert group_words(tokenizer, half) == [('a', [0]), ('\ufffd', [1, 2])]


def test_no_tokens_have_no_words():
  assert group_words(tokenizers.bytes([]), []) == []
