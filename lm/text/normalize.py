"""Normal forms of strings: Unicode, case, white space, simplified Chinese; and stop words."""

import functools
import unicodedata
from collections.abc import Iterable
from typing import Any, Literal, get_args

import regex

from lm.config.resolve import import_extra
from lm.errors import UserError, check_choice, did_you_mean

Form = Literal['NFC', 'NFD', 'NFKC', 'NFKD']
Case = Literal['keep', 'lower', 'fold']

_SPACE = regex.compile(r'[\s\p{Cc}]+')
# The time of unicodedata is quadratic in a run of combining marks. Long runs are cut, as in the
# Stream-Safe Text Format of UAX #15.
_LONG_RUN = regex.compile(r'\p{M}{64}')
_SAFE_PART = regex.compile(r'(?s).*?\p{M}{64}|.+')
# The time of OpenCC is quadratic in the length of its input.
_HAN = regex.compile(r'\p{Han}{1,500}')


def normalize(string: str, form: Form = 'NFKC', case: Case = 'fold', simplify: bool = False) -> str:
  """Returns a string in a normal form, without surrounding white space.

  A run of white space and control characters becomes one space. 'NFKC' maps ﬁ to fi, Ａ to A and ①
  to 1. Case folding maps ß to ss, so it matches more words than lower case does. NFKC with folding
  is Unicode's toNFKC_Casefold, but keeps ignorable characters such as the zero-width joiner.

  Args:
    string: any string, lone surrogates included.
    form: Unicode normalization form (UAX #15).
    case: 'keep', 'lower' or 'fold'.
    simplify: whether to convert traditional Chinese characters to simplified ones.

  Raises:
    UserError: `simplify` needs OpenCC, which is not installed.
  """
  string = _unicode_form(string, form)
  if case != 'keep':
    string = _unicode_form(string.casefold() if case == 'fold' else string.lower(), form)
  if simplify:
    string = simplify_chinese(string)
  return _SPACE.sub(' ', string).strip(' ')


def check_options(form: str, case: str) -> None:
  """Raises UserError for an unknown normal form or case."""
  check_choice('form', form, get_args(Form))
  check_choice('case', case, get_args(Case))


def simplify_chinese(string: str) -> str:
  """Returns a string of equal length with traditional Chinese characters simplified.

  The conversion depends on the context, by the phrases of OpenCC's t2s: 乾 becomes 干 in 乾燥 and
  stays in 乾隆.

  Raises:
    UserError: OpenCC is not installed.
  """
  convert = _opencc().convert
  return _HAN.sub(lambda run: convert(run[0]), string)


def stop_words(languages: str | Iterable[str]) -> frozenset[str]:
  """Returns the stop words of one or more languages, as keys (`stop_word_key`).

  They come from Stopwords ISO. A few of its lists contain punctuation marks and digits.
  https://github.com/stopwords-iso/stopwords-iso

  Args:
    languages: ISO 639-1 codes, such as 'en' or ['en', 'zh'].

  Raises:
    UserError: a language has no list, or the lists are not installed.
  """
  stopwordsiso = import_extra('stopwordsiso', 'zh', 'stop words need Stopwords ISO')
  chosen = [languages] if isinstance(languages, str) else list(languages)
  known = sorted(stopwordsiso.langs())
  for language in chosen:
    if language not in known:
      raise UserError(
        f'no stop words of {language!r}{did_you_mean(language, known)}; available: '
        f'{", ".join(known)}'
      )
  return frozenset(map(stop_word_key, stopwordsiso.stopwords(chosen)))


def stop_word_key(word: str) -> str:
  """Returns a key, the same for spellings that differ in case, width or curly apostrophes."""
  return normalize(word).replace('\u2019', "'")


def _unicode_form(string: str, form: Form) -> str:
  if string.isascii():
    return string
  if _LONG_RUN.search(string):
    return ''.join(unicodedata.normalize(form, part) for part in _SAFE_PART.findall(string))
  return unicodedata.normalize(form, string)


@functools.cache
def _opencc() -> Any:
  return import_extra('opencc', 'zh', 'simplified Chinese needs OpenCC').OpenCC('t2s')
