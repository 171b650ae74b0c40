# ruff: noqa: RUF001
import pytest

from lm.errors import UserError
from lm.text import normalize, segment
from lm.text.segment import Token, as_single_token, normalize_tokens


def test_stop_words_are_left_out_and_the_others_keep_their_places():
  text = segment.split_words(as_single_token('The cats of Ａ ROME don’t'))
  kept = (Token('cats', 4, 8), Token('ROME', 14, 18))
  assert segment.remove_stop_words(text, normalize.stop_words('en')).tokens == kept
  assert segment.remove_stop_words(
    normalize_tokens(text), normalize.stop_words(['en'])
  ).tokens == tuple(token._replace(text=token.text.lower()) for token in kept)


def test_stop_words_of_several_languages():
  both = normalize.stop_words(('en', 'zh'))
  assert both == normalize.stop_words('en') | normalize.stop_words('zh') and {'the', '的'} <= both
  assert '的' not in normalize.stop_words('en') and normalize.stop_words([]) == frozenset()


def test_an_unknown_language_is_told_in_one_line():
  with pytest.raises(
    UserError, match=r"no stop words of 'eng' \(did you mean 'en'.*there is af, ar"
  ):
    normalize.stop_words(['de', 'eng'])
