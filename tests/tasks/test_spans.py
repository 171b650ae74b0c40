import itertools
import json
import os

import numpy as np
import pytest

from lm.data.sources import squad
from lm.errors import UserError
from lm.parallel.preemption import Never
from lm.task import Task
from lm.tasks.questions import extraction
from lm.tasks.spans import best_span, spans, token_span, windows
from lm.text import tokenizers
from lm.text.tokenizers import SEPARATOR
from lm.training import trainer
from lm.workdir import experiment


def question(context, *answers, question='q'):
  found = [{'text': text, 'start': context.index(text)} for text in answers]
  return {'id': '1', 'question': question, 'context': context, 'answers': found}


@pytest.fixture(scope='module')
def characters():
  """Characters are tokens, so that windows can be worked out by hand."""
  return tokenizers.with_specials(tokenizers.characters(['abcdefghq ']), [SEPARATOR])


def features(tokenizer, example, context=7, **arguments):
  return spans(extraction(), **arguments).features(tokenizer, (), context)(example)


def logits(piece, start, stop, height=5.0):
  """Returns a piece of a batch with logits that say (start, stop), as predictions have it."""
  found = {f'tokens/{name}': values for name, values in piece.tokens.items()}
  for end, at in (('start', start), ('stop', stop)):
    found[f'tokens/{end}'] = np.zeros(len(piece.tokens['inputs']), np.float32)
    found[f'tokens/{end}'][at] = height
  return found


@pytest.mark.parametrize(
  ('length', 'room', 'stride', 'expected'),
  [
    (10, 4, 3, [(0, 4), (3, 7), (6, 10)]),
    (11, 4, 3, [(0, 4), (3, 7), (6, 10), (9, 11)]),
    (4, 4, 3, [(0, 4)]),
    (6, 4, 9, [(0, 4), (4, 6)]),  # a longer stride would leave tokens out
    (0, 4, 3, [(0, 0)]),
  ],
)
def test_windows_overlap_and_hold_everything(length, room, stride, expected):
  assert [w.indices(length)[:2] for w in windows(length, room, stride)] == expected


def test_a_window_is_end_question_separator_and_passage(characters):
  (found,) = features(characters, question('abcd', 'bc'), context=7)
  tokens = [characters.id_to_token(i) for i in found.tokens['inputs']]
  assert tokens == ['<|end|>', 'q', '<|sep|>', 'a', 'b', 'c', 'd']
  assert found.tokens['char_start'].tolist() == [0, 0, 0, 0, 1, 2, 3]
  assert found.tokens['char_stop'].tolist() == [0, 0, 0, 1, 2, 3, 4]
  assert found.values == {'start': 4, 'stop': 5, 'weights': 1}


def test_the_target_of_a_window_without_the_whole_answer_is_none(characters):
  found = features(characters, question('abcdefgh', 'def'), context=7, stride=2)
  assert [''.join(map(characters.id_to_token, f.tokens['inputs'][3:])) for f in found] == [
    'abcd',
    'cdef',
    'efgh',
  ]
  assert [(f.values['start'], f.values['stop']) for f in found] == [(0, 0), (4, 6), (0, 0)]
  assert [f.tokens['char_start'][3] for f in found] == [0, 2, 4]


def test_of_several_answers_a_window_has_the_first_that_it_holds(characters):
  found = features(characters, question('abcdefgh', 'gh', 'e', 'b'), context=7, stride=4)
  assert [(f.values['start'], f.values['stop']) for f in found] == [(4, 4), (5, 6)]
  found = features(characters, question('abcdefgh', 'e', 'gh'), context=7, stride=4)
  assert [(f.values['start'], f.values['stop']) for f in found] == [(0, 0), (3, 3)]


def test_a_question_without_an_answer_points_at_the_first_token(characters):
  (found,) = features(characters, question('abcd'))
  assert found.values == {'start': 0, 'stop': 0, 'weights': 1}


@pytest.mark.parametrize(
  ('start', 'stop', 'expected'),
  [(4, 9, (1, 1)), (5, 6, (1, 1)), (0, 9, (0, 1)), (8, 11, (1, 2)), (3, 4, None), (12, 14, None)],
)
def test_tokens_that_hold_a_character_of_an_answer(start, stop, expected):
  offsets = np.array([(0, 3), (4, 9), (10, 12)])  # 'the words in'
  assert token_span(offsets, start, stop) == expected


def test_the_best_span_is_that_of_trying_all():
  rng = np.random.default_rng(0)
  for longest in (1, 3, 30):
    start, stop = rng.normal(0, 2, (2, 12)).astype(np.float32)
    begins = np.array([0, 0, 0, *range(0, 18, 2)])
    piece = {'tokens/start': start, 'tokens/stop': stop, 'tokens/char_start': begins}
    piece['tokens/char_stop'] = begins + 2 * (np.arange(12) >= 3)
    every = [
      (float(start[i]) - start[0] + float(stop[j]) - stop[0], begins[i], begins[j] + 2)
      for i, j in itertools.product(range(3, 12), repeat=2)
      if i <= j < i + longest
    ]
    odds, *where = best_span(piece, longest)
    assert odds == pytest.approx(max(every)[0], rel=1e-5)
    assert tuple(where) == max(every)[1:]


def test_the_prediction_is_the_best_of_all_windows(characters):
  example = question('abcdefgh')
  first, second, third = features(characters, example, stride=2)
  read = spans(extraction(), stride=2).read
  pieces = [logits(first, 3, 4), logits(second, 5, 6, height=6), logits(third, 0, 0, height=9)]
  assert read((), example, pieces) == 'ef'
  assert read((), example, [logits(first, 3, 4), logits(third, 0, 0)]) == 'ab'
  assert read((), example, []) == ''


def test_the_threshold_is_of_the_odds_against_no_answer(characters):
  example = question('abcd')
  (found,) = features(characters, example)
  piece = logits(found, 3, 4)
  piece['tokens/start'][0] = piece['tokens/stop'][0] = 4  # the odds are 5 + 5 - 4 - 4
  for threshold, expected in ((1.9, 'ab'), (2.1, ''), (None, 'ab')):
    assert spans(extraction(), threshold=threshold).read((), example, [piece]) == expected
  piece['tokens/start'][0] = 100
  assert spans(extraction()).read((), example, [piece]) == ''
  assert spans(extraction(), threshold=None).read((), example, [piece]) == 'ab'


TEXT = 'Émile ate 3.5 apples — "très bons" — on 2 May. 那天下雨了。🎉 It rained: Ψ rain.'
ANSWERS = ['Émile', '3.5', 'très bons', '2 May', '下雨', '🎉', 'Ψ rain', 'It']


@pytest.mark.parametrize('context', [40, 200])
@pytest.mark.parametrize(
  ('make', 'arguments'),
  [
    ('bytes', {}),
    ('characters', {}),
    ('words', {'min_count': 1}),
    ('bpe', {'vocab_size': 260}),
    ('unigram', {'vocab_size': 260}),
    ('wordpiece', {'vocab_size': 69}),
  ],
)
def test_a_model_that_is_right_predicts_the_answer_letter_by_letter(make, arguments, context):
  trained = getattr(tokenizers, make)([TEXT] * 9, **arguments)
  tokenizer = tokenizers.with_specials(trained, [SEPARATOR])
  # Of a word that is one token there is no part.
  for answer in ANSWERS if make != 'words' else [*ANSWERS[:4], *ANSWERS[5:]]:
    example = question(TEXT, answer, question='What?')
    found = features(tokenizer, example, context=context, stride=10)
    assert all(len(f.tokens['inputs']) <= context for f in found)
    pieces = [logits(f, f.values['start'], f.values['stop']) for f in found]
    assert spans(extraction()).read((), example, pieces) == answer


@pytest.mark.skipif('LM_DATA' not in os.environ, reason='LM_DATA is not set')
def test_answers_of_cmrc_survive_the_windows():
  found = squad('dev', '$LM_DATA/cmrc2018/{split}.json')
  tokenizer = tokenizers.with_specials(
    tokenizers.characters([e['context'] + e['question'] for e in found]), [SEPARATOR]
  )
  converter = spans(extraction(), longest=100)
  convert = converter.features(tokenizer, (), 384)
  several = 0
  for example in itertools.islice(found, 200):
    windows = convert(example)
    several += len(windows) > 1
    pieces = [logits(f, f.values['start'], f.values['stop']) for f in windows]
    assert converter.read((), example, pieces) in extraction().reference(example)
  assert several > 50


def test_mistakes_are_told(characters):
  with pytest.raises(UserError, match='stride=0: it is at least one token'):
    spans(extraction(), stride=0)
  with pytest.raises(UserError, match='no answer that a head could point at'):
    spans(Task(lambda e: ['x'], lambda e: 'x', lambda e: 'x'))
  with pytest.raises(UserError, match=r"data.context=6: 'qqqq <.sep.>' takes 6 tokens .* raise it"):
    features(characters, question('abc', question='qqqq'), context=6)
  words = tokenizers.with_specials(tokenizers.words(['a b'] * 9), [SEPARATOR])
  with pytest.raises(UserError, match=r"no token for the answer ' ' at character 1 of 'a b'"):
    features(words, question('a b', ' '), context=9)


CONFIG = """
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder
from lm.config.base import base, encoder, evaluation

def get_config(arg=''):
  config = base()
  config.steps = 150
  config.data.source = "lm.data.sources:squad(files={file!r})"
  config.data.task = 'lm.tasks.questions:extraction'
  config.data.convert = 'lm.tasks.spans:spans(stride=4)'
  config.data.tokenizer = ConfigDict({{'fn': 'lm.text.tokenizers:words', 'min_count': 1}})
  config.data.context = 16
  config.model = encoder(depth=1, d_model=32, heads=4, context=16)
  config.model.update({{'init_std': 0.1, 'num_classes': 2, 'pooling': placeholder(str)}})
  config.model.position = 'lm.nn.position:rope'
  config.objective = ConfigDict({{'fn': 'lm.objectives.spans:spans'}})
  config.optim.learning_rate = 1e-2
  config.optim.warmup = 5
  config.eval.sets.validation = evaluation(
    'train', metrics=('lm.metrics.spans:spans',), scores=('lm.metrics.answers:squad',)
  )
  config.log.prompts = ()
  return config
"""


def test_a_model_learns_a_game_whole(tmp_path):
  """Windows, objective, metric, prediction and score together: what is in capitals is found.

  It takes more than 5 seconds, because it trains until everything is found.
  """
  rng = np.random.default_rng(0)
  lines = []
  for nth in range(40):
    words = rng.choice(['a', 'few', 'small', 'words', 'here'], 20)  # more than a row holds
    at = int(rng.integers(0, 19))
    words[at : at + 2] = rng.choice(['NO', 'ON'], 2)
    context, answer = ' '.join(words), ' '.join(words[at : at + 2])
    answers = [{'text': answer, 'answer_start': context.index(answer)}]
    if nth % 4 == 0:
      context, answers = context.lower().replace('on', 'a').replace('no', 'a'), []
    record = {'id': nth, 'context': context, 'question': 'What?', 'answers': answers}
    lines.append(json.dumps(record))
  (tmp_path / 'game.jsonl').write_text('\n'.join(lines))
  path = tmp_path / 'game.py'
  path.write_text(CONFIG.format(file=str(tmp_path / 'game.jsonl')))
  trainer.train(experiment.load(str(path)), str(path), tmp_path / 'run', Never())
  rows = [json.loads(line) for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()]
  last = next(row for row in reversed(rows) if 'eval/validation/f1' in row)
  assert last['eval/validation/accuracy'] == 1
  assert last['eval/validation/exact_match'] == last['eval/validation/f1'] == 100
