import json
import re

import numpy as np
import pytest

from lm.errors import UserError
from lm.evaluation.vectors import word_map as find_word_map
from lm.report import word_map
from lm.report.page import SECTIONS, render
from lm.text.vectors import make_vectors
from lm.workdir.run_data import read_run


def _marks(page):
  """Returns (classes, left, top, name) of each word of a map."""
  found = re.findall(
    r'<i class="([a-z ]*)" style="left:([\d.]+)%;top:([\d.]+)%"><b dir="auto">(.*?)</b></i>', page
  )
  return [(kinds.split(), float(left), float(top), name) for kinds, left, top, name in found]


def test_words_are_placed_by_principal_components():
  # Two orthogonal directions; the variance along the third axis is larger.
  vectors = make_vectors('abcd', [[0, 0, 4], [0, 0, -4], [0, 2, 0], [0, -2, 0]])
  found = find_word_map(vectors, ['d', 'a', 'b', 'c', 'a'])
  assert found['words'] == ['d', 'a', 'b', 'c']
  assert np.abs(found['points']).tolist() == [[0, 0.5], [1, 0], [1, 0], [0, 0.5]]
  assert found['shares'] == pytest.approx([0.8, 0.2])
  page = word_map.show(json.loads(json.dumps(found)))
  assert '4 words' in page and '80% of the variance across, 20% down' in page
  marks = {name: (left, top) for _, left, top, name in _marks(page)}
  ratio = re.search(r'aspect-ratio:(\d+)/(\d+)', page)
  width, height = int(ratio[1]), int(ratio[2])
  across = abs(marks['a'][0] - marks['b'][0]) * width
  down = abs(marks['c'][1] - marks['d'][1]) * height
  assert across == pytest.approx(2 * down, rel=1e-3)  # both axes have one scale
  assert marks['a'][1] == marks['b'][1] == 50
  assert all(0 < place < 100 for point in marks.values() for place in point)


def test_labels_are_visible_where_they_fit_and_earlier_ones_have_priority():
  # Three dots above each other, less than a line apart, between two dots far from all others.
  points = [[0, 0], [0, 0.01], [0, 0.02], [-1, 0.5], [1, 0.5]]
  words = [f'word{i}' for i in range(5)]
  marks = _marks(word_map.show({'words': words, 'points': points, 'shares': [1, 0]}))
  kinds = [kinds for kinds, *_ in marks]
  assert kinds == [['named'], ['left', 'named'], [], ['named'], ['left', 'named']]


def test_labels_cover_no_dots():
  points = [[0, 0], [0.03, 0], [-0.03, 0], [-1, 0.5], [1, 0.5]]
  words = ['first', 'a', 'a', 'b', 'c']
  marks = _marks(word_map.show({'words': words, 'points': points, 'shares': [1, 0]}))
  assert ['named' in kinds for kinds, *_ in marks] == [False, True, True, True, True]


def test_labels_stay_inside_the_map():
  points = [[0, 0], [1, 0]]
  marks = _marks(word_map.show({'words': ['w', 'w' * 30], 'points': points, 'shares': [1, 0]}))
  assert [kinds for kinds, *_ in marks] == [['named'], ['left', 'named']]
  marks = _marks(word_map.show({'words': ['w', 'w' * 41], 'points': points, 'shares': [1, 0]}))
  assert marks[1][0] == ['left', 'named'] and marks[1][3] == 'w' * 40 + '…'


def test_words_are_escaped_in_a_report(tmp_path):
  (tmp_path / 'config.json').write_text('{"steps": 10}')
  words = ['</b><script>alert(1)</script>', 'a&b"', '\x1b[2J', '\ud800', 'עברית', '红楼梦']
  found = find_word_map(make_vectors(words, np.eye(6)), words)
  page = render(read_run(tmp_path), (*SECTIONS, lambda run: word_map.show(found)))
  page = page.encode('utf-8', errors='backslashreplace').decode()
  assert [name for *_, name in _marks(page)] == [
    '&lt;/b&gt;&lt;script&gt;alert(1)&lt;/script&gt;',
    'a&amp;b&quot;',
    '␛[2J',
    r'\ud800',
    'עברית',
    '红楼梦',
  ]
  assert not re.search(r'url\(|@import|\bsrc=|\bhref=', page)


def test_maps_of_no_one_and_two_words():
  assert word_map.show({}) == ''
  one = word_map.show(find_word_map(make_vectors('ab', [[1], [2]]), ['b']))
  assert [mark[1:] for mark in _marks(one)] == [(50, 50, 'b')]
  two = word_map.show(find_word_map(make_vectors('ab', [[1], [2]]), ['a', 'b']))
  assert '100% of the variance across, 0% down' in two
  with pytest.raises(UserError, match='at least one word'):
    find_word_map(make_vectors('ab', [[1], [2]]), [])
  with pytest.raises(UserError, match="'c' is not among the 2 words"):
    find_word_map(make_vectors('ab', [[1], [2]]), ['c'])
