"""Repeated texts and shared n-grams, against brute force over all pairs and naive splitting."""

import functools
import os
import random
import re
import subprocess
import sys

import pytest

from lm.text import duplicates
from lm.text.duplicates import character_ngrams, find_repeats, is_unspaced, word_ngrams

ENGLISH = ['river', 'stone', 'the', 'of', 'walks', 'under', 'blue', 'seven', 'letters', 'a', 'no']
CHINESE = '天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏閏餘成歲律呂調陽雲騰致雨露結為霜'


def edited(rng, text, count):
  for _ in range(count):
    at = rng.randrange(len(text))
    text = text[:at] + rng.choice(text) * rng.randrange(2) + text[at + 1 :]
  return text


def corpus(seed=0, count=200):
  """Returns English and Chinese texts, some of which are copies of others with a few edits."""
  rng, texts = random.Random(seed), []
  for _ in range(count):
    if texts and rng.random() < 0.6:
      old = rng.choice(texts)
      texts.append(edited(rng, old, rng.choice([0, 1, 2, 3, 6, 12]) * (len(old) > 20)))
    elif rng.random() < 0.5:
      texts.append(' '.join(rng.choices(ENGLISH, k=rng.randrange(1, 60))))
    else:
      texts.append(''.join(rng.choices(CHINESE, k=rng.randrange(1, 200))))
  return texts


@functools.cache
def runs(text, size=5):
  return {tuple(text[i : i + size]) for i in range(max(len(text) - size, 0) + 1)}


def jaccard(a, b):
  return len(runs(a) & runs(b)) / len(runs(a) | runs(b))


def brute_force(texts, near):
  """Returns (text, first text to keep that it repeats, their similarity), from all pairs."""
  kept, found = [], []
  for i, text in enumerate(texts):
    first = texts.index(text)
    similar = [(j, s) for j in kept if (s := jaccard(text, texts[j])) >= near]
    if first < i:
      found.append((i, first, 1.0))
    elif similar:
      found.append((i, *similar[0]))
    else:
      kept.append(i)
  return found


def repeats(texts, near):
  pairs = enumerate(find_repeats(texts, near))
  return [(i, repeat.of, repeat.similarity) for i, repeat in pairs if repeat]


@pytest.mark.parametrize('near', [0.5, 0.8])
def test_repeats_are_those_of_brute_force(near):
  texts = corpus()
  expected, found = brute_force(texts, near), repeats(texts, near)
  assert sum(s < 1 for *_, s in expected) > 30
  assert {i for i, *_ in found} <= {i for i, *_ in expected}, 'nothing else is removed'
  assert len({i for i, *_ in found} & {i for i, *_ in expected}) >= 0.95 * len(expected)
  for i, j, similarity in found:
    assert j < i
    assert similarity == (1 if texts[i] == texts[j] else jaccard(texts[i], texts[j])) >= near


def test_equal_texts_need_no_library(monkeypatch):
  monkeypatch.setitem(sys.modules, 'rensa', None)
  assert repeats(['one', 'two', 'one', '', 'two', ''], None) == [(2, 0, 1), (4, 1, 1), (5, 3, 1)]


def test_long_texts_are_sketched_in_pieces(monkeypatch):
  texts = corpus(seed=1, count=60)
  expected = repeats(texts, 0.8)
  monkeypatch.setattr(duplicates, '_PIECE', 7)
  assert expected and repeats(texts, 0.8) == expected


def test_repeats_do_not_depend_on_the_seed_of_hashes():
  code = 'from test_repeats import *; print(repeats(corpus(count=100), 0.8))'
  environment = os.environ | {'PYTHONHASHSEED': '7', 'RAYON_NUM_THREADS': '1'}
  environment['PYTHONPATH'] = os.pathsep.join(['tests/text', *sys.path])
  done = subprocess.run(
    [sys.executable, '-c', code], env=environment, capture_output=True, text=True
  )
  assert done.stdout.strip() == str(repeats(corpus(count=100), 0.8)), done.stderr


@pytest.mark.parametrize('near', [0.05, 0.3, 0.5, 0.8, 0.95, 1.0])
def test_bands_find_99_percent_at_the_threshold(near):
  bands, rows = duplicates._bands(near)
  assert bands * rows <= 128
  assert 1 - (1 - near**rows) ** bands >= 0.99


def test_ngrams_are_those_of_naive_splitting():
  text = "It was (so) cold,  it was SO dark: it's 5 o'clock. 天冷、天黑。5点"
  words = re.findall(r'[^\W_]+', text)
  assert list(word_ngrams(text, 3)) == [' '.join(words[i : i + 3]) for i in range(len(words) - 2)]
  joined = ''.join(words)
  expected = [joined[i : i + 9] for i in range(len(joined) - 8)]
  assert list(character_ngrams(text, 9)) == expected
  assert list(word_ngrams('one two', 3)) == list(character_ngrams('天地玄黃', 5)) == []
  assert list(word_ngrams('one two', 2)) == ['one two']
  assert list(character_ngrams('天地', 2)) == ['天地']


def test_script_without_spaces_is_that_of_most_letters():
  assert [is_unspaced(x) for x in ('天地, OK', '天地玄黃 OK', 'ひらがな', 'ภาษาไทย')] == [False] + [
    True
  ] * 3
  assert not any(map(is_unspaced, ('plain', '', '...', 'слово', '한국어 문장')))
