# ruff: noqa: RUF001
import pytest

from lm.errors import UserError
from lm.text import segment, stop_words
from lm.text.normal import normalise
from lm.text.tokens import Token, whole


def test_stop_words_are_left_out_and_the_others_keep_their_places():
  text = segment.words(whole('The cats of Ａ ROME don’t'))
  kept = (Token('cats', 4, 8), Token('ROME', 14, 18))
  assert stop_words.drop(text, stop_words.of('en')).tokens == kept
  assert stop_words.drop(normalise(text), stop_words.of(['en'])).tokens == tuple(
    token._replace(text=token.text.lower()) for token in kept
  )


def test_stop_words_of_several_languages():
  both = stop_words.of(('en', 'zh'))
  assert both == stop_words.of('en') | stop_words.of('zh') and {'the', '的'} <= both
  assert '的' not in stop_words.of('en') and stop_words.of([]) == frozenset()


def test_an_unknown_language_is_told_in_one_line():
  with pytest.raises(
    UserError, match=r"no stop words of 'eng' \(did you mean 'en'.*there is af, ar"
  ):
    stop_words.of(['de', 'eng'])
