import sys

import pytest

from lm.errors import UserError
from lm.text import segment
from lm.text.segment import Text, Token, as_single_token

pytest.importorskip('rjieba')


def test_any_function_of_words_tags_them():
  text = segment.split_words(as_single_token('Old  dogs'))
  tagged = segment.tag_words(text, lambda words: [str(len(word)) for word in words])
  assert tagged == Text('Old  dogs', (Token('Old', 0, 3, '3'), Token('dogs', 5, 9, '4')))
  assert text.tokens[0].tag == ''


def test_a_tagger_gives_each_word_a_tag():
  with pytest.raises(ValueError, match='tagger: 1 tags for 2 words'):
    segment.tag_words(segment.split_words(as_single_token('old dogs')), lambda words: ['A'])


def test_parts_of_speech_of_chinese_words():
  words = ['我', '来到', '北京', '3.5', 'iPhone', '。', '\ud800', '魑魅魍魉呀呀']
  assert segment.parts_of_speech(words) == ['r', 'v', 'ns', 'm', 'eng', 'x', 'x', 'x']


def test_parts_of_speech_need_the_dictionary(monkeypatch):
  monkeypatch.setitem(sys.modules, 'rjieba', None)
  with pytest.raises(UserError, match='rjieba'):
    segment.parts_of_speech(['好'])
