import pytest

from lm.errors import UserError
from lm.metrics.spans import segmentation, word_spans


def test_scores_by_hand():
  # 下雨天 留客 against 下雨 天 留客, and 我 来 against itself: 3 of 4 words are among the 5.
  predictions = [[(0, 3), (3, 5)], [(0, 1), (1, 2)]]
  references = [[(0, 2), (2, 3), (3, 5)], [(0, 1), (1, 2)]]
  values = segmentation()(predictions, references).values
  assert values == {'precision': 3 / 4, 'recall': 3 / 5, 'f1': pytest.approx(2 / 3)}


def test_both_ends_of_a_word_count():
  assert segmentation()([[(0, 2), (2, 5)]], [[(0, 2), (3, 5)]]).values['precision'] == 0.5


def test_a_text_without_correct_words_scores_zero():
  assert segmentation()([[]], [[(0, 1)]]).values == {'precision': 0, 'recall': 0, 'f1': 0}


def test_references_without_words_and_overlapping_words_are_errors():
  for empty in ([], [[]]):
    with pytest.raises(UserError, match='metric on an empty set'):
      segmentation()(empty, empty)
  with pytest.raises(ValueError, match='1 predictions for 2 references'):
    segmentation()([[]], [[], []])
  for wrong in ([(0, 2), (1, 3)], [(1, 1)], [(2, 3), (0, 1)]):
    with pytest.raises(ValueError, match=r'the word \d:\d does not follow'):
      segmentation()([wrong], [[(0, 1)]])


def test_words_are_found_in_running_text():
  assert word_spans(['我', '来', 'to', 'Bei jing', '。'], ' 我来 to\nBei jing。 ') == [
    (1, 2),
    (2, 3),
    (4, 6),
    (7, 15),
    (15, 16),
  ]
  assert word_spans([], ' ') == []


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['a', 'c'], "'c' is not at character 1"),
    (['a'], 'no word is at character 1'),
    (['a', 'b', 'c'], "'c' is not at character 2"),
  ],
)
def test_words_of_another_text_are_refused(words, message):
  with pytest.raises(UserError, match=f'do not spell the text: {message}'):
    word_spans(words, 'ab')
