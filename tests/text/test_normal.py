# ruff: noqa: RUF001
import sys
import time
import unicodedata

import pytest

from lm.errors import UserError
from lm.text import segment
from lm.text.normal import check, normal_form, normalise, simplified
from lm.text.tokens import Token, whole

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
  assert normal_form('\t Straße ﬁ ① Ａ Cafe\u0301\x00 \u3000x\r\ny\n', **arguments) == wanted


def test_folding_makes_equal_what_differs_in_case():
  assert normal_form('ΌΣΟΣ') == normal_form('όσος') == normal_form('ΌΣΟς')
  assert normal_form('İ', case='lower') == normal_form('i\u0307', case='lower')


@pytest.mark.parametrize('form', ['NFC', 'NFD', 'NFKC', 'NFKD'])
@pytest.mark.parametrize('case', ['keep', 'lower', 'fold'])
def test_normal_forms_are_normal_and_are_their_own(form, case):
  for start in range(0, sys.maxunicode + 1, 4096):
    string = ' '.join(map(chr, range(start, start + 4096)))
    found = normal_form(string, form, case)
    assert unicodedata.is_normalized(form, found) and normal_form(found, form, case) == found


def test_a_word_changes_its_text_and_not_its_place():
  tokens = normalise(segment.words(whole('Ｔhe  ﬁeld ½!'))).tokens
  assert tokens == (
    Token('the', 0, 3),
    Token('field', 5, 9),
    Token('1\u20442', 10, 11),
    Token('!', 11, 12),
  )


def test_many_marks_on_one_letter_cost_no_more_time_each():
  def seconds(count):
    start = time.process_time()
    found = normal_form('a' + '\u0301\u0323' * count)
    assert len(found) > count
    return time.process_time() - start

  # Ten times as many would take a hundred times as long at quadratic cost.
  assert seconds(40_000) < 30 * max(min(seconds(4000) for _ in range(3)), 0.002)


def test_marks_in_moderate_number_are_put_in_order_as_a_whole():
  string = 'a' + '\u0301\u0323' * 31
  assert normal_form(string) == unicodedata.normalize('NFKC', string)


def test_traditional_characters_become_simplified_ones_by_their_neighbours():
  assert simplified('皇后在後面，乾隆說頭髮乾燥') == '皇后在后面，乾隆说头发干燥'
  assert normal_form('Ａ頭髮', simplify=True) == 'a头发'


def test_simplified_text_has_the_same_length():
  ideographs = [*range(0x3400, 0xA000), *range(0xF900, 0xFB00), *range(0x20000, 0x2FA20)]
  for start in range(0, len(ideographs), 100):
    string = ''.join(map(chr, ideographs[start : start + 100]))
    assert len(simplified(string)) == len(string)
  assert len(simplified('發展' * 3000)) == 6000


def test_opencc_is_asked_for_only_when_it_is_needed(monkeypatch):
  from lm.text import normal

  monkeypatch.setattr(normal, '_opencc', normal._opencc.__wrapped__)
  monkeypatch.setitem(sys.modules, 'opencc', None)
  assert normal_form('發') == '發'
  with pytest.raises(UserError, match=r'OpenCC: pip install -e "\.\[zh\]"'):
    normal_form('發', simplify=True)


def test_unknown_forms_and_cases_are_refused():
  with pytest.raises(UserError, match=r"form='NFKQ' \(did you mean .*\) is none of 'NFC', 'NFD'"):
    check('NFKQ', 'fold')
  with pytest.raises(UserError, match=r"case='upper' .*is none of 'keep', 'lower', 'fold'"):
    normalise(whole('a'), case='upper')
