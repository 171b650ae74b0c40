"""Embedded examples in many languages, from the Unicode CLDR in Babel (extra `cldr`).

An example is a function of the split and its index. A hash of a date, a number or a name determines
its split.
"""

import collections
import datetime
import decimal
import functools
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
  """Returns {'source', 'target'}: a date as written in a language, and as YYYY-MM-DD.

  The formats are CLDR's full, long, medium and short, without ambiguous ones: 03/04/2021 leaves the
  month open, and 4.3.21 the century. A format thus has the full year, and either the month in
  letters or the order year, month, day.

  No date is in both splits, whatever its format and language.

  Args:
    split: 'train' or 'validation'.
    languages: CLDR locales, such as 'en' or 'pt_BR'.
    size: examples of 'train'; 'validation' has the fraction `validation` of them.
    years: the first year, and the last, exclusive.
    validation: the fraction of the dates set aside.

  Raises:
    UserError: an unknown split or locale; no such years; Babel is not installed.
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
  """Returns {'source', 'target'}: a number as written in two languages.

  It is a plain number, a percentage, an amount of money or a measure with its unit:
  '1,234.5 kilometers' and '1.234,5 Kilometer'. Spaces follow CLDR; some are no-break spaces.

  Args:
    split: 'train' or 'validation'; no number occurs in both.
    source_language: a CLDR locale.
    target_language: another.
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
      digits = rng.randrange(1, 10 ** rng.randint(1, 8))
      return decimal.Decimal(digits) / 10 ** rng.choice((0, 0, 1, 2))

    number = _sample(candidate, in_split)
    write = rng.choice(rng.choice(kinds))
    return {'source': write(number, locale=source), 'target': write(number, locale=target)}

  return LazySequence(_size(split, size, validation), make, _fingerprint())


def names(
  split: str, source_language: str = 'en', target_language: str = 'zh', validation: float = 0.1
) -> LazySequence:
  """Returns {'source', 'target'}: names of territories, languages and currencies in two languages.

  Ambiguous names with several translations are skipped.

  Args:
    split: 'train' or 'validation', by a hash of the source.
    source_language: a CLDR locale.
    target_language: another.
    validation: the fraction of the names set aside.

  Raises:
    UserError: an unknown split or locale; Babel is not installed.
  """
  in_split = hash_split(split, validation)
  sources, targets = _names(_locale(source_language)), _names(_locale(target_language))
  translations = collections.defaultdict(set)
  for code in sorted(sources.keys() & targets.keys()):
    translations[sources[code]].add(targets[code])
  pairs = [
    {'source': source, 'target': min(found)}
    for source, found in translations.items()
    if len(found) == 1 and in_split(source)
  ]
  return LazySequence(len(pairs), pairs.__getitem__, _fingerprint())


def languages(
  split: str,
  languages: Sequence[str] = _LANGUAGES,
  size: int = 20_000,
  fewest: int = 3,
  most: int = 8,
  validation: float = 0.1,
) -> LazySequence:
  """Returns {'text', 'label'}: names of territories, languages and currencies, and their language.

  A text has several names, as a single one may fit several languages. Names shared by two of the
  languages are skipped.

  Args:
    split: 'train' or 'validation'; no name occurs in both.
    languages: CLDR locales, used as labels.
    size: examples of 'train'; 'validation' has the fraction `validation` of them.
    fewest: minimum number of names in a text.
    most: maximum number of names in a text.
    validation: the fraction of the names set aside.

  Raises:
    UserError: an unknown split or locale; a language with too few names; Babel is not installed.
  """
  in_split = hash_split(split, validation)
  found = {language: set(_names(_locale(language)).values()) for language in languages}
  spread = collections.Counter(name for of_one in found.values() for name in of_one)
  own = {
    language: sorted(name for name in of_one if spread[name] == 1 and in_split(name))
    for language, of_one in found.items()
  }
  for language, of_one in own.items():
    if not 1 <= fewest <= most <= len(of_one):
      raise UserError(
        f'data.source: fewest={fewest}, most={most}: {language!r} has {len(of_one)} names in '
        f'{split!r}; required: 1 <= fewest <= most <= {len(of_one)}'
      )

  def make(index: int) -> Example:
    rng = random.Random(f'{split} {index}')
    label = rng.choice(list(own))
    return {'text': ', '.join(rng.sample(own[label], rng.randint(fewest, most))), 'label': label}

  return LazySequence(_size(split, size, validation), make, _fingerprint())


def _babel() -> Any:
  """Returns Babel.

  Raises:
    UserError: it is not installed.
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
      f"data.source: CLDR has no locale {name!r}{did_you_mean(name, known)}; it has 'en' or 'pt_BR'"
    )
  return _babel().Locale.parse(name)


def _unambiguous(locale: Any) -> list[str]:
  """Returns the lengths of a locale's date formats that are unambiguous."""
  kept: dict[str, str] = {}
  for style in ('full', 'long', 'medium', 'short'):
    pattern = re.sub("'[^']*'", '', locale.date_formats[style].pattern)
    has_full_year = not re.search('(?<!y)yy(?!y)', pattern)
    in_letters = re.search('MMM|LLL', pattern)
    in_order = re.fullmatch('[^yMLd]*y+[^yMLd]*[ML]+[^yMLd]*d+[^yMLd]*', pattern)
    if has_full_year and (in_letters or in_order):
      kept.setdefault(pattern, style)  # some lengths are the same
  return list(kept.values())


def _number_formats(locales: Sequence[Any]) -> list[list[Callable[..., str]]]:
  """Returns functions `(number, locale=) -> str` by kind: numbers, percentages, money, measures."""
  write = _babel().numbers
  measure = functools.partial(functools.partial, _babel().units.format_unit)
  # Babel lacks the long names of some units and writes their identifiers.
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
