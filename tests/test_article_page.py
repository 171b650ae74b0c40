"""experiments/ARTICLE.md names tests that there are; its two languages say the same."""

import collections
import pathlib
import re

TESTS = pathlib.Path(__file__).parent
TEXT = (TESTS.parent / 'experiments/ARTICLE.md').read_text('utf-8')
ENGLISH, CHINESE = TEXT.split('\n---\n')


def test_every_test_that_the_page_names_is_there_and_every_one_there_is_named():
  named = set(re.findall(r'`(test_\w+)`', TEXT))
  files = ('test_article.py', 'test_article_networks.py', 'test_article_pair.py')
  code = '\n'.join((TESTS / file).read_text() for file in files)
  assert named == set(re.findall(r'^def (test_\w+)', code, re.MULTILINE))


def test_both_halves_have_the_same_commands_formulas_and_headings():
  def code(half):
    return collections.Counter(re.findall(r'`([^`]+)`', half.replace('\n', ' ')))

  assert code(ENGLISH) == code(CHINESE)
  numbers = [re.findall(r'^## ([\d.]+)', half, re.MULTILINE) for half in (ENGLISH, CHINESE)]
  assert numbers[0] == numbers[1]
  assert {number[0] for number in numbers[0]} == set('123456789')


def test_both_halves_have_the_same_figures():
  def figures(half):
    # After the first section, whose millions the Chinese counts by ten thousands.
    return collections.Counter(re.findall(r'\d+\.\d+', half[half.index('## 2. ') :]))

  assert figures(ENGLISH) == figures(CHINESE)


def test_every_figure_is_one_of_the_log_or_of_the_tests_of_the_pair():
  log = (TESTS.parent / 'experiments/LOG.md').read_text('utf-8')
  pair = (TESTS / 'test_article_pair.py').read_text('utf-8')
  known = set(re.findall(r'\d+\.\d+', log + pair))
  sections = r'^## [\d. and]+|\bsections? [\d.]+|\b[3-9]\.\d to [3-9]\.\d|^- 9\.\d|\([3-9]\.\d\)'
  text = re.sub(sections, '', ENGLISH, flags=re.MULTILINE)
  assert set(re.findall(r'\d+\.\d+', text)) <= known
