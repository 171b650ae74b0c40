"""Embedded examples in many languages, from the Unicode CLDR in Babel (extra `cldr`).

An example is a function of its split and its index. The split of a date, a number or a name is
determined by a hash.
"""

import collections
import datetime
import decimal
import functools
import itertools
import platform
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

from lm.data.sources.base import Example, LazySequence, hash_split
from lm.errors import UserError, did_you_mean

_CURRENCIES = ('BRL', 'CAD', 'CHF', 'CNY', 'EUR', 'GBP', 'INR', 'USD')  # all with two decimals
_MEASURES = (
  'area-square-kilometer',
  'digital-megabyte',
  'duration-hour',
  'energy-kilowatt-hour',
  'length-kilometer',
  'length-meter',
  'mass-kilogram',
  'speed-kilometer-per-hour',
  'temperature-celsius',
)
_NAMED = ('territories', 'languages', 'currencies')
_LANGUAGES = ('cs', 'de', 'en', 'es', 'fr', 'it', 'nl', 'pl', 'pt', 'ru', 'sv', 'tr', 'zh')


def dates(
  split: str,
  languages: Sequence[str] = ('en', 'zh', 'de', 'fr'),
  size: int = 40_000,
  years: tuple[int, int] = (1900, 2100),
  validation: float = 0.05,
) -> LazySequence:
  """Returns {'source', 'target'}: a date in a format of a language, and as YYYY-MM-DD.

  The formats are CLDR's full, long, medium and short, without ambiguous formats: 03/04/2021 leaves
  the month open, and 4.3.21 the century. A format thus has the full year, and either the month in
  letters or the order year, month, day.

  No date is in both splits, in any format or language.

  Args:
    split: 'train' or 'validation'.
    languages: CLDR locales, such as 'en' or 'pt_BR'.
    size: examples of 'train'; 'validation' has the fraction `validation` of them.
    years: (start, stop); `stop` is exclusive.
    validation: the fraction of the dates set aside.

  Raises:
    UserError: an unknown split or locale; invalid years; Babel is not installed.
  """
  in_split = hash_split(split, validation)
  babel = _babel()
  styles = [(locale, style) for locale in map(_locale, languages) for style in _unambiguous(locale)]
  if not 1 <= years[0] < years[1] <= datetime.MAXYEAR + 1:
    raise UserError(f'data.source: years={years} must be increasing, from 1 to 10000')
  first = datetime.date(years[0], 1, 1)
  days = (datetime.date(years[1] - 1, 12, 31) - first).days + 1

  def make(index: int) -> Example:
    rng = random.Random(f'{split} {index}')
    day = _sample(lambda: first + datetime.timedelta(rng.randrange(days)), in_split)
    locale, style = rng.choice(styles)
    return {'source': babel.dates.format_date(day, style, locale), 'target': day.isoformat()}

  return LazySequence(_size(split, size, validation), make, _fingerprint())


def numbers(
  split: str,
  source_language: str = 'en',
  target_language: str = 'de',
  size: int = 40_000,
  validation: float = 0.05,
) -> LazySequence:
  """Returns {'source', 'target'}: a number in the formats of two languages.

  Formats are plain numbers, percentages, amounts of money and measures with a unit, such as
  '1,234.5 kilometers' and '1.234,5 Kilometer'. Spaces follow CLDR; some are no-break spaces.

  Args:
    split: 'train' or 'validation'; no number occurs in both.
    source_language: CLDR locale of the source.
    target_language: CLDR locale of the target.
    size: examples of 'train'; 'validation' has the fraction `validation` of them.
    validation: the fraction of the numbers set aside.

  Raises:
    UserError: an unknown split or locale; Babel is not installed.
  """
  in_split = hash_split(split, validation)
  source, target = _locale(source_language), _locale(target_language)
  kinds = _number_formats((source, target))

  def make(index: int) -> Example:
    rng = random.Random(f'{split} {index}')

    def candidate() -> decimal.Decimal:
      digits = decimal.Decimal(rng.randrange(1, 10 ** rng.randint(1, 8)))
      return digits / 10 ** rng.choice((0, 0, 1, 2))

    number = _sample(candidate, in_split)
    write = rng.choice(rng.choice(kinds))
    return {'source': write(number, locale=source), 'target': write(number, locale=target)}

  return LazySequence(_size(split, size, validation), make, _fingerprint())


def names(
  split: str, source_language: str = 'en', target_language: str = 'zh', validation: float = 0.1
) -> LazySequence:
  """Returns {'source', 'target'}: names of territories, languages and currencies in two languages.

  Names with several translations are skipped.

  Args:
    split: 'train' or 'validation', by a hash of the source.
    source_language: CLDR locale of the source.
    target_language: CLDR locale of the target.
    validation: the fraction of the names set aside.

  Raises:
    UserError: an unknown split or locale; Babel is not installed.
  """
  in_split = hash_split(split, validation)
  sources, targets = _names(_locale(source_language)), _names(_locale(target_language))
  codes = sorted(sources.keys() & targets.keys())
  pairs = dict.fromkeys((sources[code], targets[code]) for code in codes)
  translations = collections.Counter(source for source, _ in pairs)
  examples = [
    {'source': source, 'target': target}
    for source, target in pairs
    if translations[source] == 1 and in_split(source)
  ]
  return LazySequence(len(examples), examples.__getitem__, _fingerprint())


def languages(
  split: str,
  languages: Sequence[str] = _LANGUAGES,
  size: int = 20_000,
  fewest: int = 3,
  most: int = 8,
  validation: float = 0.1,
) -> LazySequence:
  """Returns {'text', 'label'}: names of territories, languages and currencies, and their language.

  A text has several names, as a single name may suit several languages. Names that occur in two of
  the languages are skipped.

  Args:
    split: 'train' or 'validation'; no name occurs in both.
    languages: CLDR locales, used as labels.
    size: examples of 'train'; 'validation' has the fraction `validation` of them.
    fewest: minimum of names in a text.
    most: maximum of names in a text.
    validation: the fraction of the names set aside.

  Raises:
    UserError: an unknown split or locale; a language with too few names; Babel is not installed.
  """
  in_split = hash_split(split, validation)
  in_language = {language: set(_names(_locale(language)).values()) for language in languages}
  occurrences = collections.Counter(itertools.chain.from_iterable(in_language.values()))
  unique = {
    language: sorted(name for name in names if occurrences[name] == 1 and in_split(name))
    for language, names in in_language.items()
  }
  for language, names in unique.items():
    if not 1 <= fewest <= most <= len(names):
      raise UserError(
        f'data.source: fewest={fewest}, most={most}: {language!r} has {len(names)} names in '
        f'{split!r}; required: 1 <= fewest <= most <= {len(names)}'
      )

  def make(index: int) -> Example:
    rng = random.Random(f'{split} {index}')
    label = rng.choice(list(unique))
    return {'text': ', '.join(rng.sample(unique[label], rng.randint(fewest, most))), 'label': label}

  return LazySequence(_size(split, size, validation), make, _fingerprint())


def _babel() -> Any:
  """Returns the package Babel.

  Raises:
    UserError: Babel is not installed.
  """
  try:
    import babel
    from babel import dates, localedata, numbers, units  # noqa: F401
  except ModuleNotFoundError as e:
    raise UserError(
      'data.source: lm.data.sources.embedded.cldr needs Babel: pip install -e ".[cldr]"'
    ) from e
  return babel


def _locale(name: str) -> Any:
  """Returns the babel.Locale of a name."""
  known = _babel().localedata.locale_identifiers()
  if name not in known:
    raise UserError(
      f'data.source: CLDR has no locale {name!r}{did_you_mean(name, known)}; locales are, for '
      "example, 'en' and 'pt_BR'"
    )
  return _babel().Locale.parse(name)


def _unambiguous(locale: Any) -> list[str]:
  """Returns the styles, such as 'short', of a locale's date formats that are unambiguous."""
  kept: dict[str, str] = {}
  for style in ('full', 'long', 'medium', 'short'):
    pattern = re.sub("'[^']*'", '', locale.date_formats[style].pattern)
    month_in_letters = re.search('MMM|LLL', pattern)
    year_month_day = re.fullmatch('[^yMLd]*y+[^yMLd]*[ML]+[^yMLd]*d+[^yMLd]*', pattern)
    if (month_in_letters or year_month_day) and not re.search('(?<!y)yy(?!y)', pattern):
      kept.setdefault(pattern, style)  # some styles have the same format
  return list(kept.values())


def _number_formats(locales: Sequence[Any]) -> list[list[Callable[..., str]]]:
  """Returns functions `(number, locale=) -> str` for numbers, percentages, money, and measures."""
  write = _babel().numbers
  measure = functools.partial(functools.partial, _babel().units.format_unit)
  # For some units Babel has no long name and returns their identifier.
  measures = [
    measure(measurement_unit=unit)
    for unit in _MEASURES
    if not any(unit in measure(measurement_unit=unit)(2, locale=locale) for locale in locales)
  ]
  money = [
    functools.partial(write.format_currency, currency=currency, format_type=kind)
    for currency in _CURRENCIES
    for kind in ('standard', 'name')
  ]

  def percentage(number: decimal.Decimal, locale: Any) -> str:
    return write.format_percent(number / 100, locale=locale, decimal_quantization=False)

  return [[write.format_decimal], [percentage], money, measures]


def _names(locale: Any) -> dict[tuple[str, str], str]:
  """Returns names by kind and code, such as ('territories', 'CH')."""
  return {
    (kind, code): name for kind in _NAMED for code, name in dict(getattr(locale, kind)).items()
  }


def _sample(candidate: Callable[[], Any], in_split: Callable[[str], bool]) -> Any:
  """Returns the first random candidate that belongs to a split."""
  return next(value for value in iter(candidate, None) if in_split(str(value)))


def _size(split: str, size: int, validation: float) -> int:
  return size if split == 'train' else max(1, round(size * validation))


def _fingerprint() -> str:
  return f'Babel {_babel().__version__}, Python {platform.python_version()}'
