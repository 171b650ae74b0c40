"""Embedded examples in many languages, out of the Unicode CLDR as Babel has it (extra `cldr`).

An example is a function of the split and its index. In which split something may occur depends on a
hash of the thing itself: a date, a number or a name.
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

from lm.data import splits
from lm.data.examples import Computed, Example
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
) -> Computed:
  """Returns {'source', 'target'}: a date as a language writes it, and the same as YYYY-MM-DD.

  The formats are CLDR's full, long, medium and short, without those that leave a date open: of
  03/04/2021 one cannot tell the month, of 4.3.21 not the century. So a format has the whole year,
  and has the month in letters or else the order year, month, day.

  A date that occurs in 'validation' never does in 'train', whatever the format and the language.

  Args:
    split: 'train' or 'validation'.
    languages: CLDR locales, such as 'en' or 'pt_BR'.
    size: examples of 'train'; 'validation' has the share `validation` of as many.
    years: the first year, and the one after the last.
    validation: the share of the dates set aside.

  Raises:
    UserError: an unknown split or locale; no such years; Babel is not installed.
  """
  is_ours = splits.by_name(split, validation)
  babel = _babel()
  styles = [(locale, style) for locale in map(_locale, languages) for style in _unambiguous(locale)]
  if not 1 <= years[0] < years[1] <= datetime.MAXYEAR + 1:
    raise UserError(f'data.source: years={years}: the first is before the last, from 1 to 10000')
  first = datetime.date(years[0], 1, 1)
  days = (datetime.date(years[1] - 1, 12, 31) - first).days + 1

  def make(index: int) -> Example:
    rng = random.Random(f'{split} {index}')
    day = _draw(lambda: first + datetime.timedelta(rng.randrange(days)), is_ours)
    locale, style = rng.choice(styles)
    return {'source': babel.dates.format_date(day, style, locale), 'target': day.isoformat()}

  return Computed(_size(split, size, validation), make, _fingerprint())


def numbers(
  split: str,
  source_language: str = 'en',
  target_language: str = 'de',
  size: int = 40_000,
  validation: float = 0.05,
) -> Computed:
  """Returns {'source', 'target'}: a number as two languages write it.

  It stands alone, or is a percentage, an amount of money or a measure with its unit:
  '1,234.5 kilometers' and '1.234,5 Kilometer'. Spaces are those of CLDR, some of them no-break.

  Args:
    split: 'train' or 'validation'; no number occurs in both.
    source_language: a CLDR locale.
    target_language: another.
    size: examples of 'train'; 'validation' has the share `validation` of as many.
    validation: the share of the numbers set aside.

  Raises:
    UserError: an unknown split or locale; Babel is not installed.
  """
  is_ours = splits.by_name(split, validation)
  source, target = _locale(source_language), _locale(target_language)
  kinds = _number_formats((source, target))

  def make(index: int) -> Example:
    rng = random.Random(f'{split} {index}')

    def draw() -> decimal.Decimal:
      digits = rng.randrange(1, 10 ** rng.randint(1, 8))
      return decimal.Decimal(digits) / 10 ** rng.choice((0, 0, 1, 2))

    number = _draw(draw, is_ours)
    write = rng.choice(rng.choice(kinds))
    return {'source': write(number, locale=source), 'target': write(number, locale=target)}

  return Computed(_size(split, size, validation), make, _fingerprint())


def names(
  split: str, source_language: str = 'en', target_language: str = 'zh', validation: float = 0.1
) -> Computed:
  """Returns {'source', 'target'}: a territory, language or currency by its name in two languages.

  A name that is translated in several ways, as that of two things, is left out.

  Args:
    split: 'train' or 'validation', by a hash of the source.
    source_language: a CLDR locale.
    target_language: another.
    validation: the share of the names set aside.

  Raises:
    UserError: an unknown split or locale; Babel is not installed.
  """
  is_ours = splits.by_name(split, validation)
  sources, targets = _names(_locale(source_language)), _names(_locale(target_language))
  translations = collections.defaultdict(set)
  for thing in sorted(sources.keys() & targets.keys()):
    translations[sources[thing]].add(targets[thing])
  pairs = [
    {'source': source, 'target': min(found)}
    for source, found in translations.items()
    if len(found) == 1 and is_ours(source)
  ]
  return Computed(len(pairs), pairs.__getitem__, _fingerprint())


def languages(
  split: str,
  languages: Sequence[str] = _LANGUAGES,
  size: int = 20_000,
  fewest: int = 3,
  most: int = 8,
  validation: float = 0.1,
) -> Computed:
  """Returns {'text', 'label'}: names of territories and the like, and the language they are in.

  A text is several names of territories, languages and currencies, as one alone may look like any
  of several languages. Names that two of the languages share are left out.

  Args:
    split: 'train' or 'validation'; no name occurs in both.
    languages: CLDR locales, which are the labels.
    size: examples of 'train'; 'validation' has the share `validation` of as many.
    fewest: names in a text, at least.
    most: names in a text, at most.
    validation: the share of the names set aside.

  Raises:
    UserError: an unknown split or locale; a language with too few names; Babel is not installed.
  """
  is_ours = splits.by_name(split, validation)
  found = {language: set(_names(_locale(language)).values()) for language in languages}
  spread = collections.Counter(name for of_one in found.values() for name in of_one)
  own = {
    language: sorted(name for name in of_one if spread[name] == 1 and is_ours(name))
    for language, of_one in found.items()
  }
  for language, of_one in own.items():
    if not 1 <= fewest <= most <= len(of_one):
      raise UserError(
        f'data.source: fewest={fewest}, most={most}: {language!r} has {len(of_one)} names in '
        f'{split!r}; it takes 1 <= fewest <= most <= {len(of_one)}'
      )

  def make(index: int) -> Example:
    rng = random.Random(f'{split} {index}')
    label = rng.choice(list(own))
    return {'text': ', '.join(rng.sample(own[label], rng.randint(fewest, most))), 'label': label}

  return Computed(_size(split, size, validation), make, _fingerprint())


def _babel() -> Any:
  """Returns Babel.

  Raises:
    UserError: it is not installed.
  """
  try:
    import babel.dates
    import babel.localedata
    import babel.numbers
    import babel.units
  except ModuleNotFoundError as e:
    raise UserError(
      'data.source: what lm.data.cldr makes needs Babel: pip install -e ".[cldr]"'
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
  """Returns which of the lengths of a locale's date formats say what date it is."""
  kept: dict[str, str] = {}
  for style in ('full', 'long', 'medium', 'short'):
    pattern = re.sub("'[^']*'", '', locale.date_formats[style].pattern)
    has_whole_year = not re.search('(?<!y)yy(?!y)', pattern)
    in_letters = re.search('MMM|LLL', pattern)
    in_order = re.fullmatch('[^yMLd]*y+[^yMLd]*[ML]+[^yMLd]*d+[^yMLd]*', pattern)
    if has_whole_year and (in_letters or in_order):
      kept.setdefault(pattern, style)  # some lengths are the same
  return list(kept.values())


def _number_formats(locales: Sequence[Any]) -> list[list[Callable[..., str]]]:
  """Returns functions `(number, locale=) -> str` by kind: numbers, percentages, money, measures."""
  write = _babel().numbers
  measure = functools.partial(functools.partial, _babel().units.format_unit)
  # Of some units Babel lacks the long names, and then writes the identifier.
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
  """Returns the names of things by what they are, such as ('territories', 'CH')."""
  return {
    (kind, code): name for kind in _NAMED for code, name in dict(getattr(locale, kind)).items()
  }


def _draw(draw: Callable[[], Any], is_ours: Callable[[str], bool]) -> Any:
  """Returns the first thing drawn that may occur in a split."""
  while True:
    drawn = draw()
    if is_ours(str(drawn)):
      return drawn


def _size(split: str, size: int, validation: float) -> int:
  return size if split == 'train' else max(1, round(size * validation))


def _fingerprint() -> str:
  return f'Babel {_babel().__version__}, Python {platform.python_version()}'
