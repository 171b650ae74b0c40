import itertools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.data.sources import squad
from lm.errors import UserError
from lm.parallel.host import Never
from lm.task import Task
from lm.tasks.extractive_qa import (
  best_span,
  converter,
  extraction,
  metric,
  objective,
  token_span,
  windows,
)
from lm.text import tokenizers
from lm.text.tokenizers import SEPARATOR
from lm.training import trainer
from lm.types import EmbeddingTable, Output, OutputHead
from lm.workdir import experiment


def question(context, *answers, question='q'):
  found = [{'text': text, 'start': context.index(text)} for text in answers]
  return {'id': '1', 'question': question, 'context': context, 'answers': found}


@pytest.fixture(scope='module')
def characters():
  """Characters are tokens, so that windows can be worked out by hand."""
  return tokenizers.with_special_tokens(tokenizers.characters(['abcdefghq ']), [SEPARATOR])


def features(tokenizer, example, context=7, **arguments):
  return converter(extraction(), **arguments).features(tokenizer, (), context)(example)


def logits(piece, start, stop, height=5.0):
  """Returns a piece of a batch with logits that say (start, stop), as predictions have it."""
  found = {f'tokens/{name}': values for name, values in piece.tokens.items()}
  for end, at in (('start', start), ('stop', stop)):
    found[f'tokens/{end}'] = np.zeros(len(piece.tokens['inputs']), np.float32)
    found[f'tokens/{end}'][at] = height
  return found


@pytest.mark.parametrize(
  ('length', 'size', 'stride', 'expected'),
  [
    (10, 4, 3, [(0, 4), (3, 7), (6, 10)]),
    (11, 4, 3, [(0, 4), (3, 7), (6, 10), (9, 11)]),
    (4, 4, 3, [(0, 4)]),
    (6, 4, 9, [(0, 4), (4, 6)]),  # a longer stride would leave tokens out
    (0, 4, 3, [(0, 0)]),
  ],
)
def test_windows_overlap_and_cover_everything(length, size, stride, expected):
  assert [w.indices(length)[:2] for w in windows(length, size, stride)] == expected


def test_window_is_end_question_separator_and_passage(characters):
  (found,) = features(characters, question('abcd', 'bc'), context=7)
  tokens = [characters.id_to_token(i) for i in found.tokens['inputs']]
  assert tokens == ['<|end|>', 'q', '<|sep|>', 'a', 'b', 'c', 'd']
  assert found.tokens['char_start'].tolist() == [0, 0, 0, 0, 1, 2, 3]
  assert found.tokens['char_stop'].tolist() == [0, 0, 0, 1, 2, 3, 4]
  assert found.values == {'start': 4, 'stop': 5, 'weights': 1}


def test_window_without_the_complete_answer_targets_no_answer(characters):
  found = features(characters, question('abcdefgh', 'def'), context=7, stride=2)
  assert [''.join(map(characters.id_to_token, f.tokens['inputs'][3:])) for f in found] == [
    'abcd',
    'cdef',
    'efgh',
  ]
  assert [(f.values['start'], f.values['stop']) for f in found] == [(0, 0), (4, 6), (0, 0)]
  assert [f.tokens['char_start'][3] for f in found] == [0, 2, 4]


def test_window_target_is_the_first_answer_that_it_contains(characters):
  found = features(characters, question('abcdefgh', 'gh', 'e', 'b'), context=7, stride=4)
  assert [(f.values['start'], f.values['stop']) for f in found] == [(4, 4), (5, 6)]
  found = features(characters, question('abcdefgh', 'e', 'gh'), context=7, stride=4)
  assert [(f.values['start'], f.values['stop']) for f in found] == [(0, 0), (3, 3)]


def test_question_without_answer_targets_the_first_token(characters):
  (found,) = features(characters, question('abcd'))
  assert found.values == {'start': 0, 'stop': 0, 'weights': 1}


@pytest.mark.parametrize(
  ('start', 'stop', 'expected'),
  [(4, 9, (1, 1)), (5, 6, (1, 1)), (0, 9, (0, 1)), (8, 11, (1, 2)), (3, 4, None), (12, 14, None)],
)
def test_token_span(start, stop, expected):
  offsets = np.array([(0, 3), (4, 9), (10, 12)])  # 'the words in'
  assert token_span(offsets, start, stop) == expected


def test_best_span_equals_brute_force():
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
    span = best_span(piece, longest)
    assert span.score - span.null_score == pytest.approx(max(every)[0], rel=1e-5)
    assert (span.start, span.stop) == max(every)[1:]


def test_prediction_is_the_best_span_of_all_windows(characters):
  example = question('abcdefgh')
  first, second, third = features(characters, example, stride=2)
  postprocess = converter(extraction(), stride=2).postprocess
  pieces = [logits(first, 3, 4), logits(second, 5, 6, height=6), logits(third, 0, 0, height=9)]

  def read(*arguments):
    return postprocess(*arguments)['answer']

  assert read((), example, pieces) == 'ef'
  assert read((), example, [logits(first, 3, 4), logits(third, 0, 0)]) == 'ab'
  assert read((), example, []) == ''


def test_threshold_is_compared_with_the_log_odds(characters):
  example = question('abcd')
  (found,) = features(characters, example)
  piece = logits(found, 3, 4)
  piece['tokens/start'][0] = piece['tokens/stop'][0] = 4  # the odds are 5 + 5 - 4 - 4
  for threshold, expected in ((1.9, 'ab'), (2.1, ''), (None, 'ab')):
    made = converter(extraction(), threshold=threshold)
    assert made.postprocess((), example, [piece])['answer'] == expected
  piece['tokens/start'][0] = 100
  assert converter(extraction()).postprocess((), example, [piece])['answer'] == ''
  assert converter(extraction(), threshold=None).postprocess((), example, [piece])['answer'] == 'ab'


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
def test_perfect_logits_give_the_exact_answer_text(make, arguments, context):
  trained = getattr(tokenizers, make)([TEXT] * 9, **arguments)
  tokenizer = tokenizers.with_special_tokens(trained, [SEPARATOR])
  # A word of one token has no parts.
  for answer in ANSWERS if make != 'words' else [*ANSWERS[:4], *ANSWERS[5:]]:
    example = question(TEXT, answer, question='What?')
    found = features(tokenizer, example, context=context, stride=10)
    assert all(len(f.tokens['inputs']) <= context for f in found)
    pieces = [logits(f, f.values['start'], f.values['stop']) for f in found]
    assert converter(extraction()).postprocess((), example, pieces)['answer'] == answer


@pytest.mark.skipif('LM_DATA' not in os.environ, reason='LM_DATA is not set')
def test_cmrc_answers_survive_the_windows():
  found = squad('dev', '$LM_DATA/cmrc2018/{split}.json')
  tokenizer = tokenizers.with_special_tokens(
    tokenizers.characters([e['context'] + e['question'] for e in found]), [SEPARATOR]
  )
  made = converter(extraction(), longest=100)
  convert = made.features(tokenizer, (), 384)
  several = 0
  for example in itertools.islice(found, 200):
    windows = convert(example)
    several += len(windows) > 1
    pieces = [logits(f, f.values['start'], f.values['stop']) for f in windows]
    assert made.postprocess((), example, pieces)['answer'] in extraction().reference(example)
  assert several > 50


def test_errors_name_key_and_value(characters):
  with pytest.raises(UserError, match='stride=0'):
    converter(extraction(), stride=0)
  with pytest.raises(UserError, match=r'data\.converter: .*extractive_qa:extraction'):
    converter(Task(lambda e: ['x'], lambda e: 'x', lambda e: 'x'))
  with pytest.raises(UserError, match=r"data.seq_len=6: 'qqqq <.sep.>' takes 6 tokens"):
    features(characters, question('abc', question='qqqq'), context=6)
  words = tokenizers.with_special_tokens(tokenizers.words(['a b'] * 9), [SEPARATOR])
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
  config.data.task = 'lm.tasks.extractive_qa:extraction'
  config.data.converter = 'lm.tasks.extractive_qa:converter(stride=4)'
  config.data.tokenizer = ConfigDict({{'fn': 'lm.text.tokenizers:words', 'min_count': 1}})
  config.data.seq_len = 16
  config.model = encoder(depth=1, d_model=32, heads=4, context=16)
  config.model.update({{'init_std': 0.1, 'num_classes': 2, 'pooling': placeholder(str)}})
  config.model.position = 'lm.nn.position:rope'
  config.objective = ConfigDict({{'fn': 'lm.tasks.extractive_qa:objective'}})
  config.optim.learning_rate = 1e-2
  config.optim.warmup_steps = 5
  config.eval.sets.validation = evaluation(
    'train', metrics=('lm.tasks.extractive_qa:metric',), scores=('lm.metrics.answers:squad',)
  )
  config.log.sample_prompts = ()
  return config
"""


def test_training_finds_all_answers(tmp_path):
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


# Two examples in the first row: END q | passage of 3, and END | passage of 1; then padding. One in
# the second row, with a slot to spare.
SEGMENTS = np.array([[1, 1, 1, 1, 1, 2, 2, 0], [1, 1, 1, 0, 0, 0, 0, 0]])
POSITIONS = np.array([[0, 1, 2, 3, 4, 0, 1, 0], [0, 1, 2, 0, 0, 0, 0, 0]])
STOPS = np.array([[0, 0, 2, 4, 6, 0, 3, 0], [0, 1, 2, 0, 0, 0, 0, 0]])
BATCH = {
  'segments': SEGMENTS,
  'positions': POSITIONS,
  'char_stop': STOPS,
  'start': np.array([[2, 0], [1, 0]]),
  'stop': np.array([[4, 0], [2, 0]]),
  'weights': np.float32([[1.0, 2.0], [0.5, 0.0]]),
}
# Where the candidates of each example are, and which of them is the target's start and stop.
CANDIDATES = {(0, 0): [0, 2, 3, 4], (0, 1): [5, 6], (1, 0): [0, 1, 2]}
TARGETS = {(0, 0): (2, 4), (0, 1): (5, 5), (1, 0): (1, 2)}
LOGITS = np.random.default_rng(0).normal(0, 2, (2, 8, 2)).astype(np.float32)


def model(params, batch, key=None, cache=None):
  return Output(params, OutputHead(EmbeddingTable(jnp.eye(params.shape[-1]))), {})


def _by_hand(logits_BTC):
  """Returns the weighted sum of -log p(start) - log p(stop), example by example."""
  total = 0
  for (row, slot), candidates in CANDIDATES.items():
    for end, target in enumerate(TARGETS[row, slot]):
      scores = logits_BTC[row, :, end]
      nats = np.log(np.exp(scores[candidates]).sum()) - scores[target]
      total += BATCH['weights'][row, slot] * nats
  return float(total)


@jax.jit
@jax.value_and_grad
def _loss(logits_BTC):
  return objective().loss_sums(model, logits_BTC, BATCH, None)['loss']


def test_loss_is_over_the_tokens_of_each_example():
  assert float(_loss(LOGITS)[0]) == pytest.approx(_by_hand(LOGITS), rel=1e-5)
  assert float(objective().normalizers(BATCH)['loss']) == 3.5


def test_only_candidates_have_gradients():
  gradient = np.asarray(_loss(LOGITS)[1])
  among = np.zeros((2, 8), bool)
  for (row, _), candidates in CANDIDATES.items():
    among[row, candidates] = True
  assert np.isfinite(gradient).all()
  assert (gradient[~among] == 0).all() and (gradient[among] != 0).all()


def test_metric_counts_spans_with_both_ends_right():
  logits = np.zeros((2, 8, 2))
  for (row, slot), ends in TARGETS.items():
    logits[row, list(ends), [0, 1]] = 5
    if (row, slot) == (1, 0):
      logits[row, 0, 1] = 6  # its stop is wrong
  logits[0, 1] = 9  # a token of the question is no candidate
  terms = jax.jit(lambda logits: metric().terms(model(logits, BATCH), BATCH))(np.float32(logits))
  assert [float(x) for x in terms['accuracy']] == [3.0, 3.5]
  assert float(terms['loss'][0]) == pytest.approx(_by_hand(logits), rel=1e-5)


@pytest.mark.parametrize('shape', [(2, 8, 3), (2, 2, 2)])
def test_model_without_two_logits_per_token_is_refused(shape):
  with pytest.raises(UserError, match=r'model\.num_classes=2 and leave model\.pooling empty'):
    objective().loss_sums(model, jnp.zeros(shape), BATCH, None)
