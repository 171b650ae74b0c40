import os
import pathlib
import re
import sys
import time
import unicodedata

import numpy as np
import pytest

from lm.data.sources import conllu
from lm.errors import UserError
from lm.metrics import spans
from lm.text import segment
from lm.text.segment import (
  Text,
  Token,
  as_single_token,
  normalize_tokens,
  sentence_spans,
  split_sentences,
)

# ruff: noqa: RUF001


pytest.importorskip('rjieba')
pytest.importorskip('opencc')

# What strings of all kinds are made of.
ALPHABET = (
  *'aZé3_.,;:!?\'"’-+/@#%(“” \t\n\r\x00\x1f\x85\xa0\xad',
  *'\u0301\u0323\u200b\u200d\u2028\u2029\u202e\u3000\ufeff\ufe0f',
  *'中文学说𠮷々〇。！？、「」カな가ㄱ',
  *'ابتَ؟ शिक्षा สวัสดี ကာ שלום".',
  *'👨👩\U0001f3fd🇦🇧𝔸½ﬁ①ßİ\u0378\ue000\U0010ffff\ud800\udbff\udc00\udfff\U000e0100',
)


def random_strings(count, seed=0):
  rng = np.random.default_rng(seed)
  for _ in range(count):
    yield ''.join(rng.choice(ALPHABET, rng.integers(0, 40)))
    codes = rng.integers(0, sys.maxunicode + 1, 40)
    # What Python's tables do not know yet, a library may.
    yield ''.join(c for c in map(chr, codes) if unicodedata.category(c) != 'Cn')


def is_space(string):
  return not string.strip()


def is_gap(string):
  """Whether there is only white space, control and format characters, by Python's own tables."""
  return all(c.isspace() or unicodedata.category(c) in ('Cc', 'Cf') for c in string)


def check_round_trip(raw, tokens, gap):
  """Tokens are in order, do not overlap, are the raw text at their places, and leave out gaps."""
  last = 0
  for token in tokens:
    assert last <= token.start < token.end
    assert raw[token.start : token.end] == token.text and not gap(token.text)
    assert gap(raw[last : token.start])
    last = token.end
  assert gap(raw[last:])


def test_tokens_of_any_string_match_their_offsets():
  for raw in random_strings(2000):
    check_round_trip(raw, segment.split_words(as_single_token(raw)).tokens, is_gap)
    check_round_trip(raw, segment.split_sentences(as_single_token(raw)).tokens, is_space)


def strings(raw, **arguments):
  return [token.text for token in segment.split_words(as_single_token(raw), **arguments).tokens]


@pytest.mark.parametrize(
  ('raw', 'words'),
  [
    ("She can't pay $3,000.50 (or 1e5)!", "She can't pay $ 3,000.50 ( or 1e5 ) !"),
    ('e-mail a_b it’s U.S.A. x:y', 'e - mail a_b it’s U.S.A . x:y'),
    ('Ｔｈｅ １，０００ cafe\u0301s', 'Ｔｈｅ １，０００ cafe\u0301s'),
    ('مرحبا، بالعالم', 'مرحبا ، بالعالم'),
    ('शिक्षा है।', 'शिक्षा है ।'),
    ('👩‍👩‍👧👍🏽!', '👩‍👩‍👧 👍🏽 !'),
    ('🇩🇪🇫🇷🇨🇭🇦', '🇩🇪 🇫🇷 🇨🇭 🇦'),
    ('สวัสดี', 'ส วั ส ดี'),
    ('カタカナとひらがな', 'カタカナ と ひ ら が な'),
    ('\ufeffa\u200bb\x00c so\xadft', 'a \u200bb c so\xadft'),
    ('\t \n', ''),
    ('', ''),
  ],
)
def test_words_follow_unicode_boundaries(raw, words):
  found = strings(raw)
  assert [w.strip('\u200b') for w in found] == [w.strip('\u200b') for w in words.split(' ') if w]


def test_chinese_is_segmented_among_other_scripts():
  found = strings('我来到北京清华大学。iPhone15的价格是5,999元🇨🇳')
  assert ' '.join(found) == '我 来到 北京 清华大学 。 iPhone15 的 价格 是 5,999 元 🇨🇳'


def test_offsets_with_characters_beyond_the_bmp():
  raw = '𠮷𠮷北京👍清华大学'
  tokens = segment.split_words(as_single_token(raw)).tokens
  assert Token('北京', 2, 4) in tokens and Token('清华大学', 5, 9) in tokens


def test_a_variation_selector_stays_with_its_ideograph():
  assert strings('北京葛\U000e0100城') == ['北京', '葛\U000e0100', '城']


def test_long_runs_of_ideographs_are_segmented_the_same():
  found = strings('清华大学' * 1000)
  assert len(found) == 1000 and set(found) == {'清华大学'}


def test_traditional_characters_are_segmented_as_simplified():
  pytest.importorskip('opencc')
  raw = '測量員發現這個問題很複雜'
  simple = [len(word) for word in strings('测量员发现这个问题很复杂')]
  assert [len(word) for word in strings(raw, simplify=True)] == simple
  assert [len(word) for word in strings(raw)] != simple
  assert ''.join(strings(raw, simplify=True)) == raw


def test_sentences_are_split_into_words_in_place():
  raw = 'Go on. You can stop.'
  found = segment.split_words(segment.split_sentences(as_single_token(raw)))
  assert found == segment.split_words(as_single_token(raw))
  assert found.tokens[3] == Token('You', 7, 10)
  second = Text(raw, segment.split_sentences(as_single_token(raw)).tokens[1:])
  assert segment.split_words(second).tokens == found.tokens[3:]


def test_normalized_tokens_are_not_split():
  with pytest.raises(UserError, match=r"token at 0:2 .*'fi!'.*'ﬁ!'"):
    segment.split_words(normalize_tokens(as_single_token('ﬁ!')))


def test_missing_library_is_refused(monkeypatch):
  monkeypatch.setitem(sys.modules, 'rjieba', None)
  assert strings('plain words') == ['plain', 'words']
  with pytest.raises(UserError, match=r'needs? rjieba: pip install -e "\.\[zh\]"'):
    strings('中文')


@pytest.mark.parametrize(
  'unit',
  (*"a \n.'🇦中\u0301\u200d\ud800", 'word ', "a'", '1,', '. ', '!”', '.(', 'A.')
  + ('\n ', 'e\u0301', '🇦\u200d', '👨\u200d', '中\ufe00'),
)
@pytest.mark.parametrize('find', [segment.word_spans, segment.sentence_spans])
def test_time_grows_with_the_length_of_a_line(find, unit):
  def seconds(size):
    raw = 'a' + unit * (size // len(unit))
    start = time.process_time()
    for _ in find(raw):
      pass
    return time.process_time() - start

  def fastest(size):  # of three: others are interrupted by garbage collection
    return min(seconds(size) for _ in range(3))

  # Sixteen times as long a line would take 256 times as long at quadratic cost.
  assert fastest(80_000) < 64 * max(fastest(5000), 0.002)


needs_data = pytest.mark.skipif('LM_DATA' not in os.environ, reason='needs the folder LM_DATA')


@needs_data
@pytest.mark.parametrize('name', ['enwiki_sample.txt', 'us_presidents.txt'])
def test_english_offsets(name):
  raw = pathlib.Path(os.environ['LM_DATA'], 'english_text', name).read_text('utf-8')
  found = segment.split_words(as_single_token(raw)).tokens
  assert len(found) > 400_000
  check_round_trip(raw, found, is_gap)
  check_round_trip(raw, segment.split_sentences(as_single_token(raw)).tokens, is_space)


@pytest.fixture(scope='module')
def treebank():
  """The texts of a treebank, and the places of their words."""
  file = pathlib.Path(os.environ['LM_DATA'], 'ud_chinese_gsdsimp/dev.conllu')
  texts = re.findall('^# text = (.*)$', file.read_text('utf-8'), re.MULTILINE)
  words = [e['words'] for e in conllu('dev', '$LM_DATA/ud_chinese_gsdsimp/{split}.conllu')]
  return texts, [spans.word_spans(*pair) for pair in zip(words, texts, strict=True)]


@needs_data
def test_chinese_offsets(treebank):
  texts, _ = treebank
  assert len(texts) == 500
  for raw in texts:
    check_round_trip(raw, segment.split_words(as_single_token(raw)).tokens, is_gap)
    check_round_trip(raw, segment.split_sentences(as_single_token(raw)).tokens, is_space)


@needs_data
def test_chinese_words_agree_with_a_treebank(treebank):
  texts, words = treebank
  f1 = spans.segmentation()([list(segment.word_spans(raw)) for raw in texts], words).values['f1']
  characters = [[(i, i + 1) for i, c in enumerate(raw) if not c.isspace()] for raw in texts]
  control = spans.segmentation()(characters, words).values['f1']
  assert 0.78 < f1 < 0.81 and 0.38 < control < 0.41


# ruff: noqa: RUF001


@pytest.mark.parametrize(
  'wanted',
  [
    ['He paid 3.50 dollars.', '"Is it?" she said.', '"Yes."', 'They left (at last!).', 'Go.'],
    ['Dr. J. R. Smith of the U.S. Army met Mr. Brown at No. 5.', 'He did.'],
    ['See e.g. Fig. 3 of vol. 2, Oct. 4.', 'I said no.', 'Well, etc. and so on.'],
    ['1. One thing.', '2. Another.', 'In 1999.', 'Then...', 'And . . . so on.'],
    ['It costs 5 p. a piece, see http://a.b/?c=d.e for more!', 'Éa est là?!', 'Oh…', 'Ah.'],
    ['Er sagte: „Komm!“', 'Dann ging er.'],
    ['« Viens\xa0!\xa0»', 'Il vint.'],
    ['«Пойдём!»', 'Он пошёл.', 'Куда?'],
    ['أين هو؟', 'هنا.', 'نعم'],
    ['वह गया।', 'क्यों?'],
    ['The “end.”', '‘So.’', '[Yes.]', 'No'],
  ],
)
def test_sentences_between_spaces(wanted):
  for space in (' ', '\n', ' \n ', '\u3000'):
    raw = space.join(wanted)
    assert [raw[start:end] for start, end in sentence_spans(raw)] == wanted


@pytest.mark.parametrize(
  'wanted',
  [
    ['他说：“你好。”', '然后走了。', '真的吗？！', '是的……', '好吧'],
    ['“你好！”，他说。', '「走吧。」', '（好。）', '「好。」', '《书》。'],
    ['你好!', '你是谁?', '我是3.5版.', '好'],
    ['“走……”——他说。', '嗯。'],
    ['用python3.5写。', 'Good。', 'OK'],
    ['値は３．１４である．', '次に'],
    ['行く。', '「はい！」', 'と言った。'],
  ],
)
def test_sentences_without_spaces(wanted):
  raw = ''.join(wanted)
  assert [raw[start:end] for start, end in sentence_spans(raw)] == wanted


def test_blank_lines_end_sentences_and_line_ends_do_not():
  raw = 'A title\r\n\r\nsome\ntext. x\n \t\nand on\u2029end\n\n\n'
  found = [raw[start:end] for start, end in sentence_spans(raw)]
  assert found == ['A title', 'some\ntext. x', 'and on', 'end']


def test_sentence_offsets():
  assert split_sentences(as_single_token('  Go. 走。 ')).tokens == (
    Token('Go.', 2, 5),
    Token('走。', 6, 8),
  )


@pytest.mark.parametrize('raw', ['', ' \n\n ', '\u2029'])
def test_empty_text_has_no_sentences(raw):
  assert split_sentences(as_single_token(raw)).tokens == ()


def test_marks_alone_are_a_sentence():
  assert [*sentence_spans('...')] == [(0, 3)] and [*sentence_spans(' ?! ')] == [(1, 3)]


pytest.importorskip('rjieba')


def test_tagger_is_any_function_of_words():
  text = segment.split_words(as_single_token('Old  dogs'))
  tagged = segment.tag_words(text, lambda words: [str(len(word)) for word in words])
  assert tagged == Text('Old  dogs', (Token('Old', 0, 3, '3'), Token('dogs', 5, 9, '4')))
  assert text.tokens[0].tag == ''


def test_wrong_count_of_tags_is_refused():
  with pytest.raises(ValueError, match='tagger: 1 tags for 2 words'):
    segment.tag_words(segment.split_words(as_single_token('old dogs')), lambda words: ['A'])


def test_parts_of_speech_of_chinese_words():
  words = ['我', '来到', '北京', '3.5', 'iPhone', '。', '\ud800', '魑魅魍魉呀呀']
  assert segment.parts_of_speech(words) == ['r', 'v', 'ns', 'm', 'eng', 'x', 'x', 'x']


def test_parts_of_speech_need_the_dictionary(monkeypatch):
  monkeypatch.setitem(sys.modules, 'rjieba', None)
  with pytest.raises(UserError, match='rjieba'):
    segment.parts_of_speech(['好'])
