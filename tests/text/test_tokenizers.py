import collections
import os
import re
import subprocess
import sys

import pytest
import tokenizers as library
from tokenizers import Tokenizer, models

from lm.errors import UserError
from lm.text import tokenizers
from lm.text.tokenizers import special_ids, unknown_id, word_ids

ENGLISH = [
  'The quick brown fox jumps over the lazy dog.',
  'A stitch in time saves nine; the early bird catches the worm!',
  "It's the dog that didn't bark,\n\tthe hound of the Baskervilles.",
] * 4
CHINESE = ['北京是中国的首都。', '今天天气很好，我们去公园散步。', '学而时习之，不亦说乎？'] * 4  # noqa: RUF001
CORPUS = ENGLISH + CHINESE
UNSEEN = 'Zoë’s café…  naïve\r\n\n  龘 🎉👩‍👩‍👧 \u0000 ▁ ## <unk> <|end|> x'  # noqa: RUF001


def encode(tokenizer, text):
  tokenizer.encode_special_tokens = True
  return tokenizer.encode(text, add_special_tokens=False).ids


def round_trip(tokenizer, text):
  return tokenizer.decode(encode(tokenizer, text), skip_special_tokens=False)


BUILDERS = {
  'bytes': lambda texts: tokenizers.bytes(texts),
  'characters': lambda texts: tokenizers.characters(texts),
  'words': lambda texts: tokenizers.words(texts),
  'bpe': lambda texts: tokenizers.bpe(texts, 300),
  'unigram': lambda texts: tokenizers.unigram(texts, 275),
  'wordpiece': lambda texts: tokenizers.wordpiece(texts, 130),
}


@pytest.mark.parametrize('kind', ['bytes', 'bpe', 'unigram'])
@pytest.mark.parametrize('text', [*ENGLISH[:3], *CHINESE[:3], UNSEEN, '', ' ', '\n\n'])
def test_decoding_is_exact(kind, text):
  assert round_trip(BUILDERS[kind](CORPUS), text) == text


@pytest.mark.parametrize('text', [*ENGLISH[:3], *CHINESE[:3], '北京 dog\n好'])
def test_decoding_of_known_characters_is_exact(text):
  assert round_trip(tokenizers.characters(CORPUS), text) == text


def test_bytes_are_utf8_plus_one():
  text = 'aé中🎉\n'
  assert encode(tokenizers.bytes([]), text) == [b + 1 for b in text.encode()]


def test_characters_are_numbered_by_code_point_and_rare_ones_are_unknown():
  tokenizer = tokenizers.characters(['banana', 'bc'], min_count=2)
  assert tokenizer.get_vocab() == {'<|end|>': 0, '<unk>': 1, 'a': 2, 'b': 3, 'n': 4}
  assert encode(tokenizer, 'bac!') == [3, 2, 1, 1]


def test_words_by_frequency():
  tokenizer = tokenizers.words(CORPUS, min_count=8)
  counts = collections.Counter(w for text in CORPUS for w in re.findall(r'\w+|[^\w\s]', text))
  frequent = {w for w, count in counts.items() if count >= 8}
  assert set(tokenizer.get_vocab()) == frequent | {'<|end|>', '<unk>'}
  assert encode(tokenizer, 'the zebra')[1] == tokenizer.token_to_id('<unk>') == 1
  assert min(counts[tokenizer.id_to_token(2)], 20) >= max(counts[w] for w in frequent if w != 'the')


def test_words_of_segmented_text_decode_exactly():
  tokenizer = tokenizers.words(['我 喜欢 学习 <unk> U.S. @-@'], min_count=1, pattern=r'\S+')
  assert round_trip(tokenizer, '学习 U.S. @-@ 我 <unk>') == '学习 U.S. @-@ 我 <unk>'
  assert encode(tokenizer, '<unk>') == [1]


def test_wordpiece_marks_inner_pieces_and_splits_chinese():
  tokenizer = tokenizers.wordpiece(CORPUS, 130)
  pieces = tokenizer.encode('Thedog 北京').tokens
  assert [p.startswith('##') for p in pieces] == [False] + [True] * (len(pieces) - 3) + [False] * 2
  assert ''.join(p.removeprefix('##') for p in pieces) == 'thedog北京'
  assert round_trip(tokenizer, 'the lazy dog') == 'the lazy dog'


@pytest.mark.parametrize('kind', BUILDERS)
def test_end_is_token_zero_before_and_after_saving(kind, tmp_path):
  tokenizer = BUILDERS[kind](CORPUS)
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  again = tokenizers.existing([], str(tmp_path / 'tokenizer.json'))
  assert tokenizers.end_id(again) == again.token_to_id('<|end|>') == 0
  assert again.to_str() == tokenizer.to_str()
  assert sorted(again.get_vocab().values()) == list(range(again.get_vocab_size()))


@pytest.mark.parametrize('kind', BUILDERS)
def test_end_inside_a_text_is_text(kind):
  assert 0 not in encode(BUILDERS[kind](CORPUS), 'the <|end|> dog')


def test_training_is_deterministic_across_processes():
  program = (
    'import hashlib, test_tokenizers as t\n'
    'for build in t.BUILDERS.values():\n'
    '  print(hashlib.sha256(build(t.CORPUS).to_str().encode()).hexdigest())\n'
  )
  folder = os.path.dirname(__file__)
  runs = [
    subprocess.run(
      [sys.executable, '-c', program],
      env=os.environ | {'PYTHONPATH': folder, 'PYTHONHASHSEED': str(seed)},
      capture_output=True,
      text=True,
      check=True,
    ).stdout
    for seed in range(3)
  ]
  assert runs[0] == runs[1] == runs[2] and len(runs[0].split()) == len(BUILDERS)


def test_unused_bytes_have_a_stable_order():
  learned = [('ab', -2.0), ('a', -3.5), ('abc', -9.123456)]

  def pieces(order):
    return learned + [(c, -9.123456 + 1e-4 * k) for k, c in enumerate(order)]

  found = [tokenizers._in_stable_order(pieces(order)) for order in ('xyz', 'zxy', 'yzx')]
  assert found[0] == found[1] == found[2]
  assert [piece for piece, _ in found[0]] == ['<|end|>', 'ab', 'a', 'abc', 'x', 'y', 'z']
  assert dict(found[0])['a'] == -3.5


@pytest.mark.parametrize('kind', ['words', 'bpe', 'unigram', 'wordpiece'])
def test_unfilled_vocabulary_is_refused(kind):
  with pytest.raises(UserError, match=r'data\.tokenizer\.vocab_size=5000: the corpus yields only'):
    getattr(tokenizers, kind)(CORPUS, vocab_size=5000)


@pytest.mark.parametrize('kind', ['bpe', 'unigram', 'wordpiece'])
def test_vocabulary_below_the_alphabet_is_refused(kind):
  with pytest.raises(UserError, match=r'data\.tokenizer\.vocab_size=20: .* alone need \d+'):
    getattr(tokenizers, kind)(CORPUS, vocab_size=20)


@pytest.mark.parametrize('size', [-3, 0, 2])
def test_vocabulary_without_words_is_refused(size):
  with pytest.raises(UserError, match=rf'vocab_size={size}: .* alone need 3'):
    tokenizers.words(CORPUS, vocab_size=size)


@pytest.mark.parametrize('build', [tokenizers.words, tokenizers.characters])
def test_negative_min_count_is_refused(build):
  with pytest.raises(UserError, match=r'data\.tokenizer\.min_count=-1'):
    build(CORPUS, min_count=-1)


def test_existing_tokenizer_keeps_its_end(tmp_path):
  model = library.models.WordLevel({'a': 0, '</s>': 1, '<unk>': 2}, unk_token='<unk>')
  made = library.Tokenizer(model)
  made.add_special_tokens(['</s>'])
  made.enable_truncation(1)
  made.enable_padding()
  made.save(str(tmp_path / 'tokenizer.json'))
  tokenizer = tokenizers.existing([], str(tmp_path / 'tokenizer.json'))
  assert tokenizers.end_id(tokenizer) == 1
  assert tokenizer.truncation is None and tokenizer.padding is None


def test_existing_tokenizer_without_end_gets_one(tmp_path):
  library.Tokenizer(library.models.WordLevel({'a': 0, '<unk>': 1}, unk_token='<unk>')).save(
    str(tmp_path / 'tokenizer.json')
  )
  tokenizer = tokenizers.existing([], str(tmp_path / 'tokenizer.json'))
  assert tokenizers.end_id(tokenizer) == 2 and tokenizer.get_vocab_size() == 3


def test_wrong_tokenizer_file_is_refused(tmp_path):
  file = tmp_path / 'tokenizer.json'
  with pytest.raises(UserError, match='no such file'):
    tokenizers.existing([], str(file))
  file.write_text('{}')
  with pytest.raises(UserError, match=r'is no tokenizer\.json'):
    tokenizers.existing([], str(file))


def test_wrong_pattern_is_refused():
  with pytest.raises(UserError, match=r"data\.tokenizer\.pattern='\(' is no regular expression"):
    tokenizers.words(CORPUS, pattern='(')


def test_rows_without_a_token_get_a_special_one_that_text_does_not_contain():
  # Id 1 is skipped by the tokenizer, and 3 and 4 are beyond its tokens.
  small = Tokenizer(models.WordLevel({'a': 0, 'b': 2}, unk_token='a'))
  larger = tokenizers.with_rows(small, 5)
  assert larger.get_vocab() == {'a': 0, 'b': 2, '<|row 3|>': 3, '<|row 4|>': 4}
  assert tokenizers.special_ids(larger) == {3, 4}
  assert small.get_vocab_size() == 2
  assert tokenizers.with_rows(larger, 5).get_vocab() == larger.get_vocab()


def test_word_ids_exclude_special_added_and_unknown():
  known = tokenizers.with_special_tokens(tokenizers.words(['b b a'], min_count=1), ['<|mask|>'])
  assert known.get_vocab() == {'<|end|>': 0, '<unk>': 1, 'b': 2, 'a': 3, '<|mask|>': 4}
  assert list(word_ids(known).items()) == [('b', 2), ('a', 3)]
  assert special_ids(known) == {0, 1, 4}


def test_word_ids_exclude_end_and_unknown_of_the_model():
  model = models.WordLevel({'<|end|>': 0, 'a': 1, '[UNK]': 2}, unk_token='[UNK]')
  assert word_ids(Tokenizer(model)) == {'a': 1}
  assert unknown_id(Tokenizer(model)) == 2
  assert special_ids(Tokenizer(model)) == frozenset()
