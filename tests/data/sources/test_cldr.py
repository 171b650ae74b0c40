import datetime
import re
import sys

import pytest

from lm.data.sources import dates, languages, names, numbers
from lm.errors import UserError

pytest.importorskip('babel')


def test_dates_of_both_splits_are_disjoint():
  train, aside = dates('train', size=3000), dates('validation', size=3000)
  assert (len(train), len(aside)) == (3000, 150)
  assert not {e['target'] for e in train} & {e['target'] for e in aside}
  assert list(dates('train', size=10)) == list(train)[:10]
  assert {train[i]['target'][:2] for i in range(100)} == {'19', '20'}


MONTHS = {
  'en': 'January February March April May June July August September October November December',
  'de': 'Januar Februar März April Mai Juni Juli August September Oktober November Dezember',
  'fr': 'janvier février mars avril mai juin juillet août septembre octobre novembre décembre',
}


def month_of(source):
  """Reads a month without CLDR: by the beginning of its name, or as ISO 8601."""
  if re.match(r'\d{4}\D', source):
    return int(re.split(r'\D+', source)[1])
  months = {
    number
    for names in MONTHS.values()
    for number, name in enumerate(names.split(), 1)
    for word in re.findall(r'[^\W\d]+', source.lower())
    # 'jui' begins two months; weekdays such as 'mardi' and 'Mittwoch' begin like months.
    if len(word) > 2 and name.lower().startswith(word)
  }
  return months.pop() if len(months) == 1 else months


def test_a_date_is_determined_by_its_text():
  for example in dates('train', size=1000):
    year, month, day = map(int, example['target'].split('-'))
    numbers_in = [int(n) for n in re.findall(r'\d+', example['source'])]
    assert year in numbers_in and day in numbers_in
    assert month_of(example['source']) == month
    datetime.date(year, month, day)


def test_ambiguous_date_formats_are_skipped():
  german = [e['source'] for e in dates('train', ('de',), size=500)]
  assert any(re.match(r'\d+\. \w', source) for source in german)  # 4. März 2021
  assert not any(re.match(r'\d+\.\d', source) for source in german)  # 04.03.2021
  assert all(re.search(r'[a-z]', e['source']) for e in dates('train', ('en', 'fr'), size=500))
  english = {e['source'] for e in dates('train', ('en',), size=500, years=(2020, 2021))}
  assert all(', 2020' in source for source in english)


def test_numbers_are_the_same_in_both_languages():
  def value(text, group, point):
    digits = re.search(rf'\d[\d{re.escape(group + point)}]*', text)[0]
    return float(digits.replace(group, '').replace(point, '.'))

  train, aside = (
    list(numbers(split, size=4000, validation=0.4)) for split in ('train', 'validation')
  )
  for e in train + aside:
    assert value(e['source'], ',', '.') == value(e['target'], '.', ',')
    assert ('%' in e['source']) == ('%' in e['target'])
  seen = {value(e['source'], ',', '.') for e in train}
  assert not seen & {value(e['source'], ',', '.') for e in aside}
  assert any(re.fullmatch(r'[\d,.]+ meters', e['source']) for e in train)
  assert not any('length-' in e['target'] for e in numbers('train', 'en', 'zh', size=500))


def test_a_name_has_one_translation():
  train, aside = (list(names(split)) for split in ('train', 'validation'))
  pairs = {e['source']: e['target'] for e in train + aside}
  assert len(pairs) == len(train) + len(aside) > 1000
  assert (pairs['Germany'], pairs['Japanese'], pairs['Swiss Franc']) == ('德国', '日语', '瑞士法郎')
  assert 'Nauru' not in pairs  # the country is 瑙鲁, the language 瑙鲁语
  assert 0.05 < len(aside) / len(pairs) < 0.15


def test_a_text_has_names_of_one_language():
  train, aside = languages('train', size=2000), languages('validation', size=2000)
  assert (len(train), len(aside)) == (2000, 200)
  spoken = {}
  for source in (train, aside):
    for e in source:
      for name in e['text'].split(', '):
        spoken.setdefault(name, set()).add(e['label'])
      assert len(e['text'].split(', ')) >= 3
  assert all(len(of) == 1 for of in spoken.values())
  assert len({e['label'] for e in train}) == 13
  seen = {name for e in train for name in e['text'].split(', ')}
  assert not seen & {name for e in aside for name in e['text'].split(', ')}


def test_user_errors_are_reported(monkeypatch):
  with pytest.raises(UserError, match=r"CLDR has no locale 'eng' .did you mean"):
    dates('train', ('eng',))
  with pytest.raises(UserError, match="no split 'test'"):
    numbers('test')
  with pytest.raises(UserError, match=r'years=\(2000, 2000\) must be increasing'):
    dates('train', years=(2000, 2000))
  with pytest.raises(UserError, match=r"fewest=3, most=9999: 'de' has \d+ names in 'train'"):
    languages('train', ('de', 'en'), most=9999)
  monkeypatch.setitem(sys.modules, 'babel', None)
  with pytest.raises(UserError, match=r'needs Babel: pip install -e "\.\[cldr\]"'):
    dates('train')
