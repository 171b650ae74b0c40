"""Scores of minimal pairs are sums of log-probabilities, whatever the company of a sentence."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import processors

from lm.config import base as configs
from lm.errors import UserError
from lm.evaluation import pairs
from lm.evaluation.pairs import Pair, Score, Scored, figures, read_pairs, score_pairs
from lm.models.ensemble import make_ensemble
from lm.text.tokenizers import characters, with_special_tokens, words
from lm.types import apply_of

TEXTS = [('abc', 'acb'), ('deadbeef', 'dead beef'), ('a é', 'é'), ('abcabcab', 'ab'), ('gg', 'hh')]
PAIRS = [Pair('u', 't', good, bad, f'pair {i}') for i, (good, bad) in enumerate(TEXTS)]
MASK = '<|mask|>'


def log_p(logits):
  logits = np.asarray(logits, np.float64)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def ids_of(run, text):
  return run.tokenizer.encode(text).ids


def padded(rows, size=16):
  return np.array([np.pad(row, (0, size - len(row))) for row in rows])


def left_to_right(run, text):
  ids = ids_of(run, text)
  logits = run.logits(padded([[0, *ids]]), padded([np.ones(1 + len(ids), int)]))
  return log_p(logits)[0, np.arange(len(ids)), ids].sum(), len(ids)


def pseudo(run, text):
  ids = np.array([0, *ids_of(run, text)])
  copies = np.tile(ids, (len(ids) - 1, 1))
  np.fill_diagonal(copies[:, 1:], run.tokenizer.token_to_id(MASK))
  copies, real = (padded(x, 16) for x in (copies, np.ones_like(copies)))
  copies, real = (np.concatenate([x, x[:1].repeat(16 - len(x), 0)]) for x in (copies, real))
  nth = np.arange(len(ids) - 1)
  return log_p(run.logits(copies, real))[nth, nth + 1, ids[1:]].sum(), len(nth)


def original(run, text):
  ids = [0, *ids_of(run, text)]
  row, real = padded([ids]), padded([np.ones(len(ids), int)])
  logits = np.asarray(run.logits(row, real), np.float64)[0, 1 : len(ids), 0]
  return np.log(1 / (1 + np.exp(logits))).sum(), len(ids) - 1


def after_nothing(run, text):
  ids = ids_of(run, text)
  logits = run.logits([[0]], None, padded([[0, *ids]]))
  return log_p(logits)[0, np.arange(len(ids)), ids].sum(), len(ids)


@pytest.fixture(scope='module')
def decoder(asked):
  return asked(None, None, configs.gpt2)


@pytest.fixture(scope='module')
def encoder(asked):
  return asked(None, None, special=(MASK,), **{'model.pooling': None})


@pytest.fixture(scope='module')
def detector(asked):
  return asked(None, None, **{'model.pooling': None, 'model.num_classes': 1})


@pytest.fixture(scope='module')
def encoder_decoder(asked):
  make = 'lm.tasks.seq2seq:encoder_decoder'
  return asked('lm.tasks.text:text_to_text', make, configs.encoder_decoder)


# More than 5 seconds: three models are compiled, two for several shapes.
def test_scores_are_sums_of_log_probabilities_in_any_company(
  decoder, encoder, detector, encoder_decoder
):
  for run, reference in (
    (decoder, left_to_right),
    (encoder, pseudo),
    (detector, original),
    (encoder_decoder, after_nothing),
  ):
    together = score_pairs(run, PAIRS, batch_size=1)
    for each in together:
      for found, text in ((each.good, each.pair.good), (each.bad, each.pair.bad)):
        nats, tokens = reference(run, text)
        assert found.tokens == tokens
        assert found.nats == pytest.approx(nats, abs=1e-4)
    assert len({each.good.nats for each in together}) == len(PAIRS)
    if run is decoder or run is encoder:
      (alone,) = score_pairs(run, PAIRS[1:2], batch_size=1)
      assert alone.good.nats == pytest.approx(together[1].good.nats, abs=1e-5)
      assert alone.bad.nats == pytest.approx(together[1].bad.nats, abs=1e-5)


def test_an_ensemble_of_equal_members_scores_as_one(encoder_decoder):
  model = make_ensemble([encoder_decoder.model] * 2)
  params = dict.fromkeys(('members_0', 'members_1'), encoder_decoder.params)
  both = dataclasses.replace(encoder_decoder, model=model, params=params, apply=apply_of(model))
  for one, two in zip(
    *(score_pairs(run, PAIRS, batch_size=1) for run in (encoder_decoder, both)), strict=True
  ):
    assert two.good.nats == pytest.approx(one.good.nats, abs=1e-4)


def test_pairs_with_unknown_tokens_are_counted(encoder_decoder, decoder, encoder):
  for run in (encoder_decoder, decoder, encoder):
    run = dataclasses.replace(run, tokenizer=characters(['abcdefgh'] * 2))
    if run.model is encoder.model:
      run = dataclasses.replace(run, tokenizer=with_special_tokens(run.tokenizer, [MASK]))
    found = figures(score_pairs(run, [Pair('u', 't', 'ab?', 'ab!', ''), *PAIRS[:2]], batch_size=1))
    assert (found['unknown_tokens'], found['ties']) == (2, 1)  # a space is unknown too


def test_constant_logits_give_one_half(decoder):
  constant = dataclasses.replace(decoder, params=jax.tree.map(jnp.zeros_like, decoder.params))
  equal = [pair for pair in PAIRS if len(pair.good) == len(pair.bad)]
  found = figures(score_pairs(constant, equal, batch_size=1))
  assert (found['accuracy'], found['macro_accuracy'], found['ties']) == (0.5, 0.5, len(equal))
  found = figures(score_pairs(constant, PAIRS, batch_size=1))
  assert found['normalized_accuracy'] == 0.5 and found['unequal_lengths'] == 3
  assert found['accuracy'] == (0.5 * 2 + 1) / 5  # otherwise the shorter sentence wins


def test_the_mask_is_where_a_text_would(encoder_decoder):
  config = encoder_decoder.config.copy_and_resolve_references()
  config.data.converter += "(special_tokens='template')"
  tokenizer = with_special_tokens(encoder_decoder.tokenizer, ['<s>', '</s>', '<extra_id_0>'])
  ids = {name: tokenizer.token_to_id(name) for name in ('<s>', '</s>', '<extra_id_0>')}
  tokenizer.post_processor = processors.TemplateProcessing(
    single='<s> $A </s>', special_tokens=[(name, ids[name]) for name in ('<s>', '</s>')]
  )
  run = dataclasses.replace(encoder_decoder, config=config, tokenizer=tokenizer)
  (empty,) = pairs._after_source(run, False)('ab')
  (masked,) = pairs._after_source(run, '<extra_id_0>')('ab')
  assert empty.source['source'].tolist() == [ids['<s>'], ids['</s>']]
  assert masked.source['source'].tolist() == [ids['<s>'], ids['<extra_id_0>'], ids['</s>']]
  a, b = ids_of(run, 'a')[1], ids_of(run, 'b')[1]
  end = empty.tokens['inputs'][0]
  assert masked.tokens['inputs'].tolist() == [end, ids['<extra_id_0>'], a]
  assert masked.tokens['targets'].tolist() == [ids['<extra_id_0>'], a, b]
  assert masked.tokens['weights'].tolist() == [0, 1, 1]


def test_figures_are_means_of_credits_with_the_interval_of_wilson():
  def scored(uid, term, good, bad, bad_tokens=2):
    return Scored(Pair(uid, term, 'x', 'y', ''), Score(good, 2), Score(bad, bad_tokens))

  rows = [scored('a', 't', -1, -2)] * 7 + [scored('a', 't', -2, -1)] * 2
  rows += [scored('b', 't', -3, -3)] + [scored('c', 's', -4, -3, 1)] * 2
  found = figures(rows)
  assert found['pairs'] == 12 and found['accuracy'] == pytest.approx(7.5 / 12)
  assert found['uids'] == {'a': pytest.approx(7 / 9), 'b': 0.5, 'c': 0}
  assert found['macro_accuracy'] == pytest.approx((7 / 9 + 0.5) / 3)
  assert found['normalized_accuracy'] == pytest.approx(9.5 / 12)  # -2 a token beats -3
  assert found['unequal_lengths'] == 2 and found['ties'] == 1
  assert [term['pairs'] for term in found['terms'].values()] == [2, 10]
  for each in (found, *found['terms'].values()):
    n, p = each['pairs'], each['accuracy']
    for end in each['interval']:  # where a two-sided test of 5 % turns
      if 0 < end < 1 and abs(p - end) > 1e-9:
        assert abs(p - end) / math.sqrt(end * (1 - end) / n) == pytest.approx(1.96, abs=1e-3)
    assert 0 <= each['interval'][0] <= p <= each['interval'][1] <= 1


def test_files_and_folders_of_both_formats_are_read(tmp_path):
  (tmp_path / 'a.tsv').write_text(
    'uid\tterm\tfield\tgood\tbad\nu\tt\tx\tA b.\tA c.\nu\tt\tx\tB\tC\n'
  )
  row = {
    'sentence_good': 'D',
    'sentence_bad': 'E',
    'UID': 'v',
    'linguistics_term': 's',
    'lexically_identical': True,
  }
  (tmp_path / 'b.jsonl').write_text(json.dumps(row) + '\n')
  (tmp_path / 'notes.txt').write_text('no pairs')
  found = read_pairs(str(tmp_path))
  assert [pair[:4] for pair in found] == [
    ('u', 't', 'A b.', 'A c.'),
    ('u', 't', 'B', 'C'),
    ('v', 's', 'D', 'E'),
  ]
  assert [pair.good for pair in read_pairs(str(tmp_path), per_uid=1)] == ['A b.', 'D']


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('a.tsv', 'uid\tterm\tgood\nu\tt\tx', r"a\.tsv, line 2: no text under 'bad' or 'sentence_bad'"),
    ('a.tsv', 'uid\tterm\tgood\tbad\nu\tt\tx\ty\nu\tt\t \ty', r"a\.tsv, line 3: 'good' is empty"),
    ('a.tsv', 'uid\tterm\tgood\tbad\nu\tt\tx\tx', r"a\.tsv, line 2: 'good' and 'bad' are equal"),
    ('a.tsv', 'uid\tterm\tgood\tbad\n', r'a\.tsv: no row'),
    ('a.jsonl', '{"good": 3, "bad": "x", "uid": "u", "term": "t"', r'a\.jsonl, line 1'),
    ('a.csv', 'x', r'--pairs=.*a\.csv: its name must end in \.tsv or \.jsonl'),
    ('b/a.txt', 'x', r'--pairs=.*a\.tsv: no such file'),
  ],
)
def test_a_wrong_file_is_one_line_with_its_row(name, content, message, tmp_path):
  place = tmp_path / name
  place.parent.mkdir(exist_ok=True)
  place.write_text(content)
  with pytest.raises(UserError, match=message):
    read_pairs(str(place if place.suffix != '.txt' else tmp_path / 'a.tsv'))


def test_a_folder_without_pairs_is_refused(tmp_path):
  with pytest.raises(UserError, match=r'no \.tsv or \.jsonl in this folder'):
    read_pairs(str(tmp_path))


def test_what_cannot_score_is_refused(asked, decoder, encoder):
  labels = {'data.labels': ('x', 'y', 'z')}
  make = ('lm.tasks.text:classification', 'lm.tasks.classification:classifier')
  for run, message in (
    (asked(*make, **labels), 'gives sentences no probability'),
    (
      dataclasses.replace(encoder, tokenizer=decoder.tokenizer),
      'data.tokenizer has no mask',
    ),
  ):
    with pytest.raises(UserError, match=message):
      score_pairs(run, PAIRS)
  with pytest.raises(UserError, match=r'--source_mask=x: model\.fn=.* reads no source'):
    score_pairs(decoder, PAIRS, source_mask='x')
  with pytest.raises(UserError, match=r'x: 25 tokens, and the model reads 24'):
    score_pairs(decoder, [Pair('u', 't', 'a', 'a' * 25, 'x')])
  letters = dataclasses.replace(decoder, tokenizer=words(['a b'], 1, pattern='[a-z]'))
  with pytest.raises(UserError, match=r"x: '\?' has no tokens"):
    score_pairs(letters, [Pair('u', 't', 'a', '?', 'x')])
