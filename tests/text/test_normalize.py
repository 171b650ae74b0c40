import sys
import time
import unicodedata

import pytest

from lm.errors import UserError
from lm.text import segment
from lm.text.normalize import check_options, normalize, simplify_chinese, stop_words
from lm.text.segment import Token, as_single_token, normalize_tokens

# ruff: noqa: RUF001


pytest.importorskip('opencc')


@pytest.mark.parametrize(
  ('arguments', 'wanted'),
  [
    ({}, 'strasse fi 1 a café x y'),
    ({'case': 'lower'}, 'straße fi 1 a café x y'),
    ({'case': 'keep'}, 'Straße fi 1 A Café x y'),
    ({'form': 'NFC', 'case': 'keep'}, 'Straße ﬁ ① Ａ Café x y'),
  ],
)
def test_forms_by_hand(arguments, wanted):
  assert normalize('\t Straße ﬁ ① Ａ Cafe\u0301\x00 \u3000x\r\ny\n', **arguments) == wanted


def test_folding_ignores_case():
  assert normalize('ΌΣΟΣ') == normalize('όσος') == normalize('ΌΣΟς')
  assert normalize('İ', case='lower') == normalize('i\u0307', case='lower')


@pytest.mark.parametrize('form', ['NFC', 'NFD', 'NFKC', 'NFKD'])
@pytest.mark.parametrize('case', ['keep', 'lower', 'fold'])
def test_normal_forms_are_normal_and_idempotent(form, case):
  for start in range(0, sys.maxunicode + 1, 4096):
    string = ' '.join(map(chr, range(start, start + 4096)))
    found = normalize(string, form, case)
    assert unicodedata.is_normalized(form, found) and normalize(found, form, case) == found


def test_normalized_token_keeps_its_offsets():
  tokens = normalize_tokens(segment.split_words(as_single_token('Ｔhe  ﬁeld ½!'))).tokens
  assert tokens == (
    Token('the', 0, 3),
    Token('field', 5, 9),
    Token('1\u20442', 10, 11),
    Token('!', 11, 12),
  )


def test_time_of_many_combining_marks_is_linear():
  def seconds(count):
    start = time.process_time()
    found = normalize('a' + '\u0301\u0323' * count)
    assert len(found) > count
    return time.process_time() - start

  # Ten times as many would take a hundred times as long at quadratic cost.
  assert seconds(40_000) < 30 * max(min(seconds(4000) for _ in range(3)), 0.002)


def test_combining_marks_are_in_canonical_order():
  string = 'a' + '\u0301\u0323' * 31
  assert normalize(string) == unicodedata.normalize('NFKC', string)


def test_simplification_depends_on_context():
  assert simplify_chinese('皇后在後面，乾隆說頭髮乾燥') == '皇后在后面，乾隆说头发干燥'
  assert normalize('Ａ頭髮', simplify=True) == 'a头发'


def test_simplified_text_has_the_same_length():
  ideographs = [*range(0x3400, 0xA000), *range(0xF900, 0xFB00), *range(0x20000, 0x2FA20)]
  for start in range(0, len(ideographs), 100):
    string = ''.join(map(chr, ideographs[start : start + 100]))
    assert len(simplify_chinese(string)) == len(string)
  assert len(simplify_chinese('發展' * 3000)) == 6000


def test_opencc_is_needed_for_chinese_only(monkeypatch):
  opencc = sys.modules['lm.text.normalize']._opencc
  monkeypatch.setattr('lm.text.normalize._opencc', opencc.__wrapped__)
  monkeypatch.setitem(sys.modules, 'opencc', None)
  assert normalize('發') == '發'
  with pytest.raises(UserError, match=r'OpenCC: pip install -e "\.\[zh\]"'):
    normalize('發', simplify=True)


def test_unknown_forms_and_cases_are_refused():
  with pytest.raises(UserError, match=r"form='NFKQ' \(did you mean .*\) .*'NFC', 'NFD'"):
    check_options('NFKQ', 'fold')
  with pytest.raises(UserError, match=r"case='upper' .*'keep', 'lower', 'fold'"):
    normalize_tokens(as_single_token('a'), case='upper')


# ruff: noqa: RUF001


def test_stop_words_are_removed_and_other_offsets_stay():
  text = segment.split_words(as_single_token('The cats of Ａ ROME don’t'))
  kept = (Token('cats', 4, 8), Token('ROME', 14, 18))
  assert segment.remove_stop_words(text, stop_words('en')).tokens == kept
  assert segment.remove_stop_words(normalize_tokens(text), stop_words(['en'])).tokens == tuple(
    token._replace(text=token.text.lower()) for token in kept
  )


def test_stop_words_of_several_languages():
  both = stop_words(('en', 'zh'))
  assert both == stop_words('en') | stop_words('zh') and {'the', '的'} <= both
  assert '的' not in stop_words('en') and stop_words([]) == frozenset()


def test_unknown_language_is_refused():
  with pytest.raises(UserError, match=r"no stop words of 'eng' \(did you mean 'en'.*: af, ar"):
    stop_words(['de', 'eng'])
