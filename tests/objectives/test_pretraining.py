"""Pretraining objectives on tiny models: masked positions, replaced tokens, and known answers."""

import json

import in_process
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from lm import components
from lm.bench import corruption
from lm.config.base import base, encoder
from lm.config.pretraining import masked, replaced_tokens
from lm.errors import UserError
from lm.metrics.tokens import detection, language_model
from lm.nn import losses
from lm.objectives.replaced_tokens import replace
from lm.types import EmbeddingTable, Output, OutputHead

B, T, M, V = 3, 16, 4, 24


def batch_of(seed=0):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(1, V, (B, T)).astype(np.int32)
  places = np.stack([rng.permutation(T)[:M] for _ in range(B)]).astype(np.int32)
  weights = np.ones((B, M), np.float32)
  weights[1, 2:] = 0
  places[1, 2:] = 0
  inputs = tokens.copy()
  np.put_along_axis(inputs, places, 0, axis=1)
  return {
    'inputs': jnp.asarray(inputs),
    'targets': jnp.asarray(np.take_along_axis(tokens, places, 1)),
    'weights': jnp.asarray(weights),
    'masked': jnp.asarray(places),
    'segments': jnp.ones((B, T), jnp.int32),
    'positions': jnp.tile(jnp.arange(T, dtype=jnp.int32), (B, 1)),
  }


def built(config):
  config.data.seq_len = config.model.context = T
  config.batch_size = config.eval.batch_size = B
  return components.build_components(config, V)


@pytest.fixture(scope='module')
def electra():
  config = base()
  config.model = encoder(depth=1, d_model=8, heads=2, context=T)
  return built(replaced_tokens(config, encoder(depth=1, d_model=4, heads=2, context=T)))


@pytest.mark.parametrize(
  ('shared', 'width', 'expected'),
  [
    (('embeding',), 8, "generator.shared: no parameter 'embeding' among embedding, encoder"),
    (('embedding',), 6, r"generator.shared: 'embedding' has \(24, 6\), and \(24, 8\) in the model"),
  ],
)
def test_parameters_that_cannot_be_shared_are_refused(shared, width, expected):
  config = base()
  config.model = encoder(depth=1, d_model=8, heads=2, context=T)
  replaced_tokens(config, encoder(depth=1, d_model=4, heads=2, context=T))
  config.models.generator.shared = shared
  with config.unlocked():
    config.models.generator.model.input_layer.width = width
  with pytest.raises(UserError, match=expected):
    built(config)


def test_logits_of_masked_tokens_are_those_of_all_tokens():
  config = base()
  config.model = encoder(depth=1, d_model=8, heads=2, context=T)
  functions = built(masked(config))
  batch = batch_of()
  shapes = {name: [x.dtype.name, *x.shape[1:]] for name, x in batch.items()}
  key = jax.random.key(0)
  params = meta.unbox(components.with_row(functions, config, shapes).init(key))
  some = functions.apply(params, batch)
  logits = some.head(some.hidden)
  assert logits.shape == (B, M, V)
  every = functions.apply(params, {k: x for k, x in batch.items() if k != 'masked'})
  expected = np.take_along_axis(
    np.asarray(every.head(every.hidden)), np.asarray(batch['masked'])[..., None], 1
  )
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
  sums = functions.objective.loss_sums(functions.apply, params, batch, None)
  nats = -np.take_along_axis(
    np.asarray(jax.nn.log_softmax(expected)), np.asarray(batch['targets'])[..., None], 2
  )[..., 0]
  np.testing.assert_allclose(sums['loss'], (nats * np.asarray(batch['weights'])).sum(), rtol=1e-5)


def test_samples_replace_masked_tokens_alone():
  batch = batch_of()
  # The generator is certain: the right token in row 0, token 5 elsewhere.
  wanted = jnp.where(jnp.arange(B)[:, None] == 0, batch['targets'], 5)
  logits = 1e4 * jax.nn.one_hot(wanted, V)
  new, differs = replace(batch, logits, jax.random.key(0))
  expected = np.asarray(batch['inputs']).copy()
  changed = np.zeros((B, T))
  for b in range(B):
    for m in range(M):
      if batch['weights'][b, m]:
        expected[b, batch['masked'][b, m]] = wanted[b, m]
        changed[b, batch['masked'][b, m]] = wanted[b, m] != batch['targets'][b, m]
  np.testing.assert_array_equal(new['inputs'], expected)
  np.testing.assert_array_equal(differs, changed)
  assert not differs[0].any()
  assert differs.any()
  assert 'masked' not in new


def test_generator_gets_its_embeddings_alone_from_the_model(electra):
  batch = batch_of()
  keys = jax.random.split(jax.random.key(0), 2)
  trees = electra.trees
  params = meta.unbox({'model': electra.init(keys[0]), **trees.fresh(keys[1])})
  assert 'embedding' not in params['generator']

  @jax.jit
  def norms(params):
    def sums(params):
      joined = trees.join(params, {})
      return electra.objective.loss_sums(trees.apply, joined, batch, jax.random.key(3))

    terms, pull = jax.vjp(sums, params)
    of = {name: pull({k: jnp.float32(k == name) for k in terms})[0] for name in terms}
    return jax.tree.map(lambda x: jnp.abs(x).sum(), of)

  found = norms(params)
  assert not any(jax.tree.leaves(found['detection']['generator']))
  assert any(jax.tree.leaves(found['detection']['model']['encoder']))
  assert any(jax.tree.leaves(found['loss']['generator']))
  of_model = found['loss']['model']
  assert of_model.pop('embedding') > 0
  assert not any(jax.tree.leaves(of_model))
  weights = electra.objective.normalizers(batch)
  assert (weights['loss'], weights['detection']) == (10, B * T)


def test_detection_metric_is_f1():
  rng = np.random.default_rng(0)
  logits, targets = rng.normal(size=(B, T)).astype(np.float32), rng.integers(0, 2, (B, T))
  weights = np.ones((B, T), np.float32)
  weights[0, 5:] = 0
  head = OutputHead(EmbeddingTable(jnp.ones((1, 1))))
  output = Output(jnp.asarray(logits)[..., None], head, {})
  terms = detection().terms(output, {'targets': targets, 'weights': jnp.asarray(weights)})
  real = weights > 0
  found = logits[real] > 0
  hits = (found & (targets[real] == 1)).sum()
  f1 = 2 * hits / (found.sum() + (targets[real] == 1).sum())
  assert float(terms['f1'][0] / terms['f1'][1]) == pytest.approx(f1, rel=1e-6)
  p = 1 / (1 + np.exp(-logits[real].astype(float)))
  nats = -np.log(np.where(targets[real] == 1, p, 1 - p)).mean()
  assert float(terms['loss'][0] / terms['loss'][1]) == pytest.approx(nats, rel=1e-5)


def test_bits_per_byte_are_refused_for_changed_targets():
  with pytest.raises(UserError, match=r'lm\.metrics\.tokens:targets'):
    language_model().terms(None, {'targets': None})


def test_targets_of_another_kind_of_model_are_refused():
  with pytest.raises(UserError, match=r'outputs of shape \(3, 16\) for targets of shape \(3, 4\)'):
    losses.token_statistics(jnp.zeros((B, T, 8)), None, jnp.zeros((B, M), jnp.int32))


def test_all_logits_of_the_benchmark_give_the_same_loss():
  batch = {name: np.asarray(x) for name, x in batch_of().items()}
  every = corruption.everywhere(batch)
  assert 'masked' not in every
  nats = np.random.default_rng(0).random((B, T, V))
  some = np.take_along_axis(nats, batch['masked'][..., None], 1)
  picked = [
    np.take_along_axis(x, y['targets'][..., None], 2)[..., 0] * y['weights']
    for x, y in ((some, batch), (nats, every))
  ]
  assert picked[0].sum() == pytest.approx(picked[1].sum())


RULE = """
import numpy as np
from ml_collections import ConfigDict
from lm.config.base import base, encoder
from lm.config.pretraining import masked

CYCLE = 'abcdefghijklmnopqrst'

def cycles(split):
  rng = np.random.default_rng(len(split))
  starts = rng.integers(0, len(CYCLE), 200)
  return [{'text': ' '.join((CYCLE[s:] + CYCLE[:s]) * 2)} for s in starts]

def get_config(arg=''):
  config = base()
  config.model = encoder(depth=2, d_model=64, heads=4, context=64)
  config.data.source = 'rule:cycles'
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:words', 'min_count': 1})
  config.data.seq_len, config.steps, config.eval.every = 64, 400, 400
  config.optim.learning_rate = 3e-3
  config.report = ''
  return masked(config)
"""


@pytest.mark.slow  # trains for 400 steps
def test_masked_tokens_that_follow_from_a_rule_are_found(tmp_path):
  (tmp_path / 'rule.py').write_text(RULE)
  run = ('--config', tmp_path / 'rule.py', '--workdir', tmp_path / 'run')
  assert in_process.run('train', *run).returncode == 0
  lines = [json.loads(line) for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()]
  assert [x['eval/validation/accuracy'] for x in lines if 'eval/validation/accuracy' in x][
    -1
  ] >= 0.99
