"""n-gram models against dictionaries of tuples, and as runs that all programs read."""

import collections
import dataclasses
import json
import math
import pathlib

import jax
import numpy as np
import pytest
from in_process import mistake, run

import lm
from lm import components
from lm.errors import UserError
from lm.models.ensemble import make_ensemble, stack_params
from lm.models.ngram import Ngram
from lm.objectives.ngram import count, kneser_ney
from lm.parallel.host import Never
from lm.training import trainer, warm_start
from lm.training.train_step import abstract_state
from lm.types import apply_of
from lm.workdir import experiment

V, N, FALLBACK = 14, 4, (0.5, 1.0, 1.5)
EXPERIMENT = str(pathlib.Path(__file__).parents[2] / 'experiments/ngram.py')


def documents(number, seed):
  """Returns documents of Zipf's law whose tokens repeat, each with END, which is 0."""
  rng = np.random.default_rng(seed)
  odds = 1 / np.arange(1, V - 2)  # the last two tokens never occur
  drawn = (rng.choice(V - 3, rng.integers(1, 12), p=odds / odds.sum()) + 1 for _ in range(number))
  return [[*np.repeat(x, rng.integers(1, 3, len(x))).tolist(), 0] for x in drawn]


class Dictionary:
  """Modified Kneser-Ney by the formulas, for one context and token at a time."""

  def __init__(self, docs, order=N, vocab_size=V):
    self.order, self.vocab_size = order, vocab_size
    seen = collections.Counter()
    opening = set()
    for doc in docs:
      row = [0, *doc]
      for stop in range(2, len(row) + 1):  # the n-grams whose last token is a target
        for start in range(max(0, stop - order), stop):
          seen[tuple(row[start:stop])] += 1
          if not start:
            opening.add(tuple(row[:stop]))
    left = collections.defaultdict(set)
    for gram in seen:
      left[gram[1:]].add(gram[0])
    self.counts = collections.defaultdict(collections.Counter)
    of_order = collections.defaultdict(collections.Counter)
    for gram, times in seen.items():
      raw = len(gram) == order or gram in opening
      c = times if raw else len(left[gram])
      self.counts[gram[:-1]][gram[-1]] = c
      of_order[len(gram)][c] += 1
    self.discounts, self.exact = {}, []
    for n, k in of_order.items():
      self.discounts[n] = FALLBACK
      if all(k[i] for i in (1, 2, 3, 4)):
        y = k[1] / (k[1] + 2 * k[2])
        d = 1 - 2 * y * k[2] / k[1], 2 - 3 * y * k[3] / k[2], 3 - 4 * y * k[4] / k[3]
        if min(d) >= 0:
          self.discounts[n] = d
          self.exact.append(n)

  def p(self, context, token):
    context = tuple(context[max(0, len(context) - self.order + 1) :])
    below = self.p(context[1:], token) if context else 1 / self.vocab_size
    if context not in self.counts:
      return below
    counts, d = self.counts[context], self.discounts[len(context) + 1]
    taken = {w: d[min(c, 3) - 1] for w, c in counts.items()}
    own = counts[token] - taken[token] if token in counts else 0
    return (own + sum(taken.values()) * below) / sum(counts.values())


DOCS = documents(300, seed=0)


@pytest.fixture(scope='module')
def dictionary():
  found = Dictionary(DOCS)
  assert len(found.exact) == 3  # both ways to discounts are checked
  return found


CORPUS = np.concatenate(DOCS).astype(np.uint16), np.cumsum([len(doc) for doc in DOCS])


@pytest.fixture(scope='module')
def params():
  shapes = jax.eval_shape(
    lambda: Ngram(V, 12, N, 2**12).init(jax.random.key(0), batch([[0]]))['params']
  )
  found = kneser_ney(N, FALLBACK, CORPUS).initial(shapes)
  return jax.tree.map(jax.numpy.asarray, found)


def batch(rows, segments=None, positions=None):
  rows = np.array(rows)
  ones, places = np.ones_like(rows), np.broadcast_to(np.arange(rows.shape[1]), rows.shape)
  return {
    'inputs': rows,
    'segments': ones if segments is None else np.array(segments),
    'positions': places if positions is None else np.array(positions),
  }


@jax.jit
def probabilities(params, batch):
  """Returns the probabilities of all tokens, and the loss of targets that follow the inputs."""
  apply = apply_of(Ngram(V, 12, N, 2**12))
  output = apply(params, batch)
  batch |= {'targets': batch['inputs'][:, 1:], 'weights': jax.numpy.ones((16, 9))}
  batch |= {name: batch[name][:, :-1] for name in ('inputs', 'segments', 'positions')}
  sums = kneser_ney(N).loss_sums(apply, params, batch, None)
  return jax.numpy.exp(output.head(output.hidden)), sums['loss']


def test_probabilities_are_those_of_the_formulas_and_sum_to_one(dictionary, params):
  rng = np.random.default_rng(1)
  rows = [[0, *doc][:10] for doc in documents(60, seed=2) if len(doc) > 9][
    :8
  ]  # some occur, some not
  rows += rng.integers(0, V, (8, 10)).tolist()
  found, loss = jax.device_get(probabilities(params, batch(rows)))
  pairs = [(row[:t], row[t]) for row in rows for t in range(1, 10)]
  assert loss == pytest.approx(-sum(math.log(dictionary.p(*pair)) for pair in pairs), rel=1e-4)
  assert found.shape == (16, 10, V)
  assert np.allclose(found.sum(-1), 1, atol=1e-5) and found.min() > 0
  for row, of_row in zip(rows, found, strict=True):
    for t, p_V in enumerate(of_row):
      expected = [dictionary.p(row[: t + 1], token) for token in range(V)]
      assert np.allclose(p_V, expected, rtol=1e-4)
  deepest = [row[t - 2 : t + 1] for row in rows for t in range(3, 10)]
  share = np.mean([tuple(context) in dictionary.counts for context in deepest])
  assert 0.1 < share < 0.9


def test_segments_of_a_row_and_padding_do_not_reach_each_other(dictionary, params):
  one, other = [0, *DOCS[0]][:4], [0, *DOCS[1]][:3]
  row = [[*one, *other, 5, 5, 5]] * 16
  segments = [[1] * 4 + [2] * 3 + [0] * 3] * 16
  positions = [[0, 1, 2, 3, 0, 1, 2, 0, 0, 0]] * 16
  found = np.asarray(probabilities(params, batch(row, segments, positions))[0])[3]
  for t, context in ((3, one), (6, other)):
    expected = [dictionary.p(context, token) for token in range(V)]
    assert np.allclose(found[t], expected, rtol=1e-4)


def test_an_ensemble_averages_its_probabilities(dictionary, params):
  both = make_ensemble([Ngram(V, 12, N, 2**12), Ngram(V, 12, 2, 1)])
  tables = {'token': 1, 'first': 2, 'added': 1, 'backoff': 1}
  uniform = {name: np.zeros(size, params[name].dtype) for name, size in tables.items()}
  uniform['unigram'] = np.full(V, 1 / V, np.float32)
  both_params = jax.tree.map(jax.numpy.asarray, stack_params([params, uniform]))
  row = [0, *DOCS[5]][:4]
  output = jax.jit(apply_of(both))(both_params, batch([row]))
  logits_TV = output.head(output.hidden)[0]
  expected = [(dictionary.p(row, token) + 1 / V) / 2 for token in range(V)]
  assert np.allclose(np.exp(logits_TV[3]), expected, rtol=1e-4)


def test_a_cache_continues_the_row(params):
  model = Ngram(V, 12, N, 2**12)
  row = batch([[0, *DOCS[3]][:6], [0, *DOCS[4]][:6]])
  walk = jax.jit(lambda batch, cache=None: model.apply({'params': params}, batch, cache))
  full = walk(row).hidden
  cache, found = model.init_cache(2, 0), []
  for start, stop in ((0, 3), (3, 6)):
    piece = {name: x[:, start:stop] for name, x in row.items()}
    nodes, _, _, cache = walk(piece, cache)
    found.append(nodes)
  assert np.array_equal(np.concatenate(found, axis=1), full)
  beams = model.reorder_cache(cache, np.array([[0, 0], [0, 0]]))['nodes']
  assert np.array_equal(beams, np.repeat(full[:, -1], 2, axis=0))


def test_what_does_not_fit_is_refused():
  tokens, ends = np.array([1, 2, 1, 0]), np.array([4])
  with pytest.raises(
    UserError, match=r'objective\.fallback=None: \[\d, \d, \d, \d\] n-grams of order 1'
  ):
    count(tokens, ends, 3, 3)
  tables = count(tokens, ends, 3, 3, FALLBACK)
  # The root, three tokens, 01 12 21 10, and 012 121 210.
  assert len(tables.token) == 1 + 3 + 4 + 3
  small = {'token': np.zeros(10, np.int32), 'unigram': np.zeros(3)}
  with pytest.raises(UserError, match=r'model\.size=10: the corpus has 11 n-grams'):
    kneser_ney(3, FALLBACK, (tokens, ends)).initial(small)
  with pytest.raises(UserError, match=r'model\.size=20000000 is not between'):
    Ngram(V, 12, N, 20_000_000)


@pytest.mark.parametrize(
  'fallback',
  [(2.0, 1.0, 1.0), (0.0, 0.0, 0.0), (0.5, 1.0), 0.75, (0.5, 1.0, 1.5, 2.0), ('a', 1, 1)],
)
def test_discounts_that_are_no_probabilities_are_refused(fallback):
  with pytest.raises(UserError, match=r'objective\.fallback='):
    kneser_ney(3, fallback)


def test_training_starts_from_the_tables_and_a_step_keeps_them(params):
  config = experiment.load(f'{EXPERIMENT}:smoke')
  config.model.order, config.model.size = N, 2**12
  functions = components.build_components(config, V)
  functions = dataclasses.replace(functions, objective=kneser_ney(N, FALLBACK, CORPUS))
  abstract, _ = abstract_state(functions)
  state, _ = warm_start.initial_state(config, functions, None, abstract)
  row = batch(np.zeros((8, 4), int)) | {'targets': np.ones((8, 4), int), 'weights': np.ones((8, 4))}
  traced = jax.eval_shape(functions.train_step(functions, 0, 1), state, row)
  assert jax.tree.map(lambda x: x.shape, traced[0]) == jax.tree.map(lambda x: x.shape, state)
  for name, table in params.items():
    assert np.array_equal(state.params[name], table), name


def test_a_corpus_of_several_sources_is_refused():
  config = experiment.load(EXPERIMENT)
  with pytest.raises(
    UserError, match=r"objective\.fn='lm\.objectives\.ngram:kneser_ney' needs one"
  ):
    components.pass_corpus(None, config, None, None)


LINES = [f'{n} bottles of beer on the wall, {n - 1} left' for n in range(60, 0, -1)]


def lines(split):
  """Returns lines as documents; every fifth is held out."""
  return [{'text': x} for i, x in enumerate(LINES) if (i % 5 == 0) == (split == 'validation')]


@pytest.mark.slow  # trains and evaluates a run, which three programs read
def test_a_run_has_the_perplexity_of_the_dictionary_and_all_programs_read_it(tmp_path):
  config = experiment.load(f'{EXPERIMENT}:smoke')
  config.steps, config.model.order, config.model.size = 1, 3, 4096
  config.data.source = 'test_ngram:lines'
  config.data.tokenizer = {'fn': 'lm.text.tokenizers:bytes'}
  config.log.sample_prompts = ()
  config.batch_size, config.data.seq_len, config.model.context = 1, 640, 640  # no document is cut
  trainer.train(config, f'{EXPERIMENT}:smoke', tmp_path / 'run', Never())
  docs = {
    s: [[*(b + 1 for b in x['text'].encode()), 0] for x in lines(s)]
    for s in ('train', 'validation')
  }
  reference = Dictionary(docs['train'], 3, 257)
  nats = [
    -math.log(reference.p([0, *doc[:t]], token))
    for doc in docs['validation']
    for t, token in enumerate(doc)
  ]
  result = run('evaluate', f'--workdir={tmp_path / "run"}')
  found = json.loads(result.stdout)
  assert found['eval/validation/loss'] == pytest.approx(np.mean(nats), rel=1e-4)
  size = sum(len(doc) - 1 for doc in docs['validation'])
  assert found['eval/validation/bits_per_byte'] == pytest.approx(
    sum(nats) / size / math.log(2), rel=1e-4
  )
  (tmp_path / 'a.tsv').write_text(
    'uid\tterm\tgood\tbad\nu\tt\t6 bottles of beer\t6 bottles of bear\n'
  )
  result = run('evaluate', f'--workdir={tmp_path / "run"}', f'--pairs={tmp_path}')
  assert json.loads(result.stdout)['accuracy'] == 1
  loaded = lm.load(tmp_path / 'run')
  row = [0, *(b + 1 for b in b'12 bottles of')]
  for _ in range(8):
    row.append(max(range(257), key=lambda token: reference.p(row, token)))
  (text,) = loaded.generate(['12 bottles of'], 8)
  assert text.encode() == bytes(token - 1 for token in row[-8:])
  with pytest.raises(UserError, match='has no vectors as hidden states'):
    loaded.embed(['a'])
  assert 'no word vectors' in mistake('vectors', 'nearest', f'--workdir={tmp_path / "run"}', 'a')
