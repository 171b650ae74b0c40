"""Normal forms: compatibility characters, case, white space, and simplified Chinese."""

import functools
import unicodedata
from collections.abc import Iterable
from typing import Any, Literal, get_args

import regex
import stopwordsiso

from lm.errors import UserError, nearest

Form = Literal['NFC', 'NFD', 'NFKC', 'NFKD']
Case = Literal['keep', 'lower', 'fold']

_SPACE = regex.compile(r'[\s\p{Cc}]+')
# unicodedata takes time with the square of a run of combining marks, so that long ones are cut, as
# in the Stream-Safe Text Format of UAX #15.
_LONG = regex.compile(r'\p{M}{64}')
_SAFE = regex.compile(r'(?s).*?\p{M}{64}|.+')
# The time of OpenCC grows with the square of what it is given.
_HAN = regex.compile(r'\p{Han}{1,500}')


def normalize(string: str, form: Form = 'NFKC', case: Case = 'fold', simplify: bool = False) -> str:
  """Returns a string in a normal form, without white space around it.

  Runs of white space and control characters become one space. With 'NFKC', ﬁ is fi, Ａ is A and ①
  is 1. Folding makes of ß an ss, and so finds more words equal than lower case does; the two
  together are Unicode's toNFKC_Casefold, but for ignorable characters such as the zero-width
  joiner, which stay.

  Args:
    string: any, also with lone surrogates.
    form: of Unicode (UAX #15).
    case: 'keep', 'lower' or 'fold'.
    simplify: whether traditional Chinese characters become simplified ones.

  Raises:
    UserError: OpenCC is not installed and `simplify` needs it.
  """
  string = _unicode_form(string, form)
  if case == 'fold':
    string = _unicode_form(string.casefold(), form)
  elif case == 'lower':
    string = _unicode_form(string.lower(), form)
  if simplify:
    string = simplify_chinese(string)
  return _SPACE.sub(' ', string).strip(' ')


def check_options(form: str, case: str) -> None:
  """Raises UserError where there is no such normal form or case."""
  for key, value, kind in (('form', form, Form), ('case', case, Case)):
    known = get_args(kind)
    if value not in known:
      there = ', '.join(map(repr, known))
      raise UserError(f'{key}={value!r}{nearest(value, known)} is none of {there}')


def simplify_chinese(string: str) -> str:
  """Returns a string of the same length with simplified for traditional Chinese characters.

  What becomes of a character depends on its neighbours, by the phrases of OpenCC's t2s: 乾 of 乾燥
  is 干, that of 乾隆 stays.

  Raises:
    UserError: OpenCC is not installed.
  """
  convert = _opencc().convert
  return _HAN.sub(lambda run: convert(run[0]), string)


def _unicode_form(string: str, form: Form) -> str:
  if string.isascii():
    return string
  if _LONG.search(string):
    return ''.join(unicodedata.normalize(form, part) for part in _SAFE.findall(string))
  return unicodedata.normalize(form, string)


@functools.cache
def _opencc() -> Any:
  try:
    import opencc
  except ModuleNotFoundError as e:
    raise UserError('simplified Chinese needs OpenCC: pip install -e ".[zh]"') from e
  return opencc.OpenCC('t2s')


def stop_words(languages: str | Iterable[str]) -> frozenset[str]:
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
      raise UserError(f'no stop words of {language!r}{nearest(language, known)}; there is {there}')
  return frozenset(map(stop_word_key, stopwordsiso.stopwords(chosen)))


def stop_word_key(word: str) -> str:
  """Returns what equals for all ways to write a word: case, width, a curly apostrophe."""
  return normalize(word).replace('\u2019', "'")
