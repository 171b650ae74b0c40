# ruff: noqa: RUF001
import json
import os
import pathlib

import pytest

from lm.errors import UserError
from lm.metrics.answers import cmrc, squad


def of_one(metric, prediction, answers):
  """Returns the exact match and the F1 of one question."""
  values = metric([prediction], [answers]).values
  return values['exact_match'], pytest.approx(values['f1'])


@pytest.mark.parametrize(
  ('prediction', 'answers', 'exact', 'f1'),
  [
    ('The Normans!', ['normans'], 100, 1),
    ('in the 10th  century', ['10th century', 'the 10th and 11th centuries'], 0, 2 * 2 / (3 + 2)),
    ('no no', ['no'], 0, 2 * 1 / (2 + 1)),  # a word is shared as often as both have it
    ("Beyoncé's", ['beyoncés', 'x'], 100, 1),
    ('Athens', ['theatre'], 0, 0),  # articles are whole words
    ('', [], 100, 1),
    ('Athens', [], 0, 0),
    ('', ['Athens'], 0, 0),
    ('a', ['The'], 100, 1),  # 2.0 has no answer here; 1.1 would say 100 and 0
    ('Athens', ['The', 'Athens'], 100, 1),
    ('Athens', 'Athens', 100, 1),
  ],
)
def test_squad_by_hand(prediction, answers, exact, f1):
  assert of_one(squad(), prediction, answers) == (exact, 100 * f1)


@pytest.mark.parametrize(
  ('prediction', 'answers', 'exact', 'f1'),
  [
    ('《红楼梦》', ['红楼梦'], 100, 1),
    ('北京大学的学生', ['北京大学', '学生'], 0, 2 * 4 / (7 + 4)),
    ('北京的大学', ['北京大学'], 0, 2 * 2 / (5 + 4)),  # a run: neither a subsequence nor a bag
    ('我是nba', ['NBA'], 0, 2 * 1 / (3 + 1)),
    ('Windows-XP', ['windowsxp系统'], 0, 2 * 1 / (1 + 3)),
    (' nba ', ['NBA'], 100, 1),
    ('等……', ['等'], 0, 2 * 1 / (2 + 1)),  # dots stay, and are one word
    ('', ['等'], 0, 0),
    ('，', ['。'], 100, 0),
  ],
)
def test_cmrc_by_hand(prediction, answers, exact, f1):
  assert of_one(cmrc(), prediction, answers) == (exact, 100 * f1)


@pytest.mark.parametrize(
  ('answer', 'words'),
  [
    ('46,600m²', ['46,600m²']),
    ('3.5%', ['3.5', '%']),
    ('roy h. reinhart', ['roy', 'h.', 'reinhart']),
    ('(nba, fiba).', ['(', 'nba', ',', 'fiba', ')', '.']),
    ('wait...what?!', ['wait', '...', 'what', '?', '!']),
    ("rover's boys' d'arc", ['rover', "'s", 'boys', "'", "d'arc"]),
    ('3.共5.', ['3', '.', '共', '5', '.']),
  ],
)
def test_words_between_chinese_are_those_of_nltk(answer, words):
  # As many pieces as words, and the very same pieces as of the words with spaces between them.
  assert of_one(cmrc(), '中' + answer, ['中']) == (0, 100 * 2 / (2 + len(words)))
  assert of_one(cmrc(), answer, [' '.join(words)])[1] == 100


def asked(file):
  """Returns predictions and answers; two of three predictions begin some characters early."""
  text = (pathlib.Path(os.environ['LM_DATA']) / file).read_text(encoding='utf-8')
  articles = json.loads(text)['data']
  paragraphs = [paragraph for article in articles for paragraph in article['paragraphs']]
  questions = [(p['context'], question['answers']) for p in paragraphs for question in p['qas']]
  predictions = []
  for i, (context, answers) in enumerate(questions):
    if answers:
      start = answers[0]['answer_start']
      end = start + len(answers[0]['text'])
      predictions.append(context[max(0, start - i % 3 * 3) : end])
    else:
      predictions.append('' if i % 2 else context[:9])
  return predictions, [[answer['text'] for answer in answers] for _, answers in questions]


# What the published scorers print for the same predictions: evaluate-v1.1.py, evaluate-v2.0.py, and
# cmrc2018_evaluate.py (v6) with NLTK 3.10.
@pytest.mark.skipif('LM_DATA' not in os.environ, reason='LM_DATA names no folder of texts')
@pytest.mark.parametrize(
  ('metric', 'file', 'exact', 'f1'),
  [
    (squad, 'squad/dev-v1.1-style.json', 40.26845637583892, 83.7719681511628),
    (squad, 'squad/v2.0-part.json', 44.68922108575924, 68.27739442645026),
    (cmrc, 'cmrc2018/dev.json', 33.94886363636363, 81.91896472325355),
  ],
)
def test_scores_are_those_of_the_published_scorers(metric, file, exact, f1):
  found = metric()(*asked(file)).values
  assert found == {'exact_match': pytest.approx(exact), 'f1': pytest.approx(f1)}


@pytest.mark.parametrize('metric', [squad(), cmrc()])
def test_empty_set_is_refused(metric):
  with pytest.raises(UserError, match='metric on an empty set'):
    metric([], [])
  with pytest.raises(ValueError, match='2 predictions for 1 references'):
    metric(['a', 'b'], [['a']])


def test_cmrc_has_no_question_without_an_answer():
  with pytest.raises(UserError, match='no unanswerable questions'):
    cmrc()(['x'], [[]])
