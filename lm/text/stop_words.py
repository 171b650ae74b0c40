"""Stop words: the frequent words that say little of what a text is about."""

from collections.abc import Iterable, Set

import stopwordsiso

from lm.errors import UserError, did_you_mean
from lm.text.normal import normal_form
from lm.text.tokens import Text


def drop(text: Text, words: Set[str]) -> Text:
  """Returns the text without the tokens that are stop words, as `of` returns them."""
  return Text(text.raw, tuple(token for token in text.tokens if key(token.text) not in words))


def of(languages: str | Iterable[str]) -> frozenset[str]:
  """Returns the stop words of one language or several, by their keys.

  They are those of Stopwords ISO, which for a few languages also hold punctuation marks and digits.
  https://github.com/stopwords-iso/stopwords-iso

  Args:
    languages: ISO 639-1 codes, such as 'en' or ['en', 'zh'].

  Raises:
    UserError: there is no list for a language.
  """
  chosen = [languages] if isinstance(languages, str) else list(languages)
  known = sorted(stopwordsiso.langs())
  for language in chosen:
    if language not in known:
      there = ', '.join(known)
      raise UserError(
        f'no stop words of {language!r}{did_you_mean(language, known)}; there is {there}'
      )
  return frozenset(map(key, stopwordsiso.stopwords(chosen)))


def key(word: str) -> str:
  """Returns what equals for all ways to write a word: case, width, a curly apostrophe."""
  return normal_form(word).replace('\u2019', "'")
