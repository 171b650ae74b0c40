import pytest

from lm.text import tokenizers
from lm.text.detokenize import group_words


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
def test_subwords_are_put_together_and_ideographs_are_not(build, size):
  texts = ['ein Hund und noch ein Hund', '小狗和小狗'] * 20
  tokenizer = build(texts, vocab_size=size)
  assert spelled(tokenizer, 'ein Mund und Hund') == ['ein', 'Mund', 'und', 'Hund']
  assert ''.join(spelled(tokenizer, '小狗和猫')) == '小狗和猫'
  assert len(spelled(tokenizer, '和猫')) == 2


def test_pieces_of_wordpiece_are_put_together():
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


def test_no_tokens_are_no_words():
  assert group_words(tokenizers.bytes([]), []) == []
