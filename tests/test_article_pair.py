"""The article's one result, "accuracy 90 %, BLEU 0.8", beside what its two texts give.

There is no reference among them: the text that was read stands for one here, as it is the only
other. experiments/ARTICLE.md says what these figures are worth.
"""

import collections
import json
import os
import pathlib

import numpy as np
import pytest

from lm.metrics.labels import exact_match
from lm.metrics.translation import bleu, chrf, ter

needs_data = pytest.mark.skipif('LM_DATA' not in os.environ, reason='needs the folder LM_DATA')


def n_grams(text, n):
  return collections.Counter(text[i : i + n] for i in range(len(text) - n + 1))


def bleu_by_hand(prediction, reference):
  """Papineni et al. 2002 on characters, a share of 1: all of n = 1 to 4 have to match somewhere."""
  matched = [(n_grams(prediction, n) & n_grams(reference, n)).total() for n in range(1, 5)]
  of = [len(prediction) - n + 1 for n in range(1, 5)]
  brevity = min(1, np.exp(1 - len(reference) / len(prediction)))
  return brevity * np.prod(np.divide(matched, of)) ** 0.25


def at_their_places(prediction, reference):
  """How many characters are the same at the same index."""
  return sum(p == r for p, r in zip(prediction, reference, strict=False))


def in_common(prediction, reference):
  """How many characters both have, wherever they stand."""
  return (collections.Counter(prediction) & collections.Counter(reference)).total()


def longest_common(prediction, reference):
  """How many characters both have in one order (the L of ROUGE-L)."""
  row = np.zeros(len(reference) + 1, int)
  for p in prediction:
    taken = np.where(np.array(list(reference)) == p, row[:-1] + 1, 0)
    row[1:] = np.maximum.accumulate(np.maximum(row[1:], taken))
  return row[-1]


@pytest.fixture
def pair():
  file = pathlib.Path(os.environ['LM_DATA'], 'article/pair.json')
  return json.loads(file.read_text('utf-8'))


def test_bleu_is_a_hundred_times_the_share_of_the_paper():
  prediction, reference = '今天天气真的很好我们走', '今天天气很好我们快走吧'
  share = bleu_by_hand(prediction, reference)
  assert 0 < share < 1
  assert bleu('zh')([prediction], [reference]).values['bleu'] == pytest.approx(100 * share)
  assert bleu('zh')([reference], [reference]).values['bleu'] == pytest.approx(100)
  assert bleu('zh')(['甲乙丙丁'], ['一二三四']).values['bleu'] == 0


def test_bleu_punishes_what_is_short_and_accuracy_one_character_that_is_moved():
  reference = '今天天气真的很好'
  short = bleu('zh')([reference[:4]], [reference]).values['bleu']
  assert short == pytest.approx(100 * np.exp(1 - 8 / 4))
  assert at_their_places('啊' + reference, reference) == 1, 'the second of a pair 天天'
  assert longest_common('啊' + reference, reference) == len(reference)


@needs_data
def test_the_bleu_of_the_articles_pair_is_27_and_not_80(pair):
  read, written = pair['input'], pair['output']
  assert (len(written), len(read)) == (106, 79)
  found = bleu('zh')([written], [read])
  assert '|tok:zh|' in found.notes['bleu']
  assert found.values['bleu'] == pytest.approx(26.59, abs=0.005)
  assert found.values['bleu'] == pytest.approx(100 * bleu_by_hand(written, read))
  assert bleu('zh')([read], [written]).values['bleu'] == pytest.approx(25.48, abs=0.005)
  assert chrf()([written], [read]).values['chrf'] == pytest.approx(28.20, abs=0.005)
  assert ter('zh')([written], [read]).values['ter'] == pytest.approx(86.08, abs=0.005)
  assert abs(found.values['bleu'] - 100 * pair['printed']['bleu']) > 50


@needs_data
def test_no_accuracy_of_the_articles_pair_is_near_90_percent(pair):
  read, written = pair['input'], pair['output']
  same, common = at_their_places(written, read), in_common(written, read)
  ordered = longest_common(written, read)
  shares = {
    'exact match': exact_match()([written], [read]).values['exact_match'],
    'positions, of what was read': same / len(read),
    'positions, of what was written': same / len(written),
    'characters, precision': common / len(written),
    'characters, recall': common / len(read),
    'in order, precision': ordered / len(written),
    'in order, recall': ordered / len(read),
  }
  assert shares == {
    'exact match': 0,
    'positions, of what was read': pytest.approx(0.13, abs=0.005),
    'positions, of what was written': pytest.approx(0.09, abs=0.005),
    'characters, precision': pytest.approx(0.43, abs=0.005),
    'characters, recall': pytest.approx(0.58, abs=0.005),
    'in order, precision': pytest.approx(0.38, abs=0.005),
    'in order, recall': pytest.approx(0.51, abs=0.005),
  }
  assert max(shares.values()) < pair['printed']['accuracy'] - 0.3
