"""An ensemble says what its members say together, and is a model as any other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.decode.sampling import sampler
from lm.decode.write import Strategy, write
from lm.metrics.tokens import language_model
from lm.models.ensemble import logits, params_together, probabilities, together
from lm.nn import losses
from lm.nn.norm import RMSNorm
from lm.run.build import apply_of
from lm.task import Features

END = 32


def _ensemble(models, params, mean=probabilities):
  model = together(models, mean)
  return model, apply_of(model), params_together(params)


def _logits(apply, params, batch):
  output = jax.jit(lambda p, b: apply(p, b))(params, batch)
  return np.asarray(output.unembed(output.hidden), np.float64)


def _softmax(x):
  return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


@pytest.fixture(scope='module')
def pair(decoder, params_of):
  """Two decoders of different widths, norms and paddings of the table, with their parameters."""
  models = [
    decoder('gpt2', context=32),
    decoder('alibi', context=24, d_model=24, depth=1, norm=RMSNorm),
  ]
  return models, [params_of(model, seed=i) for i, model in enumerate(models)]


def test_probabilities_are_the_mean_of_those_of_the_members(pair, batch_of):
  models, params = pair
  batch = batch_of()
  each = [
    _softmax(_logits(apply_of(m), p, batch)[..., :37]) for m, p in zip(models, params, strict=True)
  ]
  _, apply, own = _ensemble(models, params)
  found = _logits(apply, own, batch)
  assert found.shape[-1] == 37
  np.testing.assert_allclose(np.exp(found), (each[0] + each[1]) / 2, atol=1e-6)
  _, apply, own = _ensemble(models, params, logits)
  product = np.sqrt(each[0] * each[1])
  product /= product.sum(-1, keepdims=True)
  np.testing.assert_allclose(_softmax(_logits(apply, own, batch)), product, atol=1e-6)


@pytest.mark.parametrize(
  ('architecture', 'strategy'),
  [
    ('decoder', Strategy(END, 6, batch_size=4)),
    ('decoder', Strategy(END, 6, choose=sampler(temperature=1.0), batch_size=4)),
    ('encoder_decoder', Strategy(END, 6, beam=3, n_best=2, batch_size=4)),
  ],
)
def test_one_member_writes_the_same_bit_for_bit(architecture, strategy, request, params_of):
  build = request.getfixturevalue(architecture)
  model = build({'decoder': 'alibi', 'encoder_decoder': 't5'}[architecture], context=32, depth=1)
  params = params_of(model, seed=3)
  prompts = _prompts(architecture)
  alone = write(model, apply_of(model), params, prompts, strategy)
  assert write(*_ensemble([model], [params]), prompts, strategy) == alone
  assert len({tuple(texts[0].tokens) for texts in alone}) > 1


def _prompts(architecture):
  rng = np.random.default_rng(1)
  read = [rng.integers(0, 37, length) for length in (3, 9, 1, 12, 7)]
  if architecture == 'decoder':
    return [Features({'inputs': x}, {}, {}) for x in read]
  return [Features({'inputs': np.array([0])}, {'source': x}, {}) for x in read]


def test_equal_members_say_what_one_says(decoder, params_of, batch_of):
  model = decoder('llama')
  params, batch = params_of(model), batch_of()
  expected = _softmax(_logits(apply_of(model), params, batch))
  _, apply, own = _ensemble([model, model, model], [params] * 3)
  np.testing.assert_allclose(np.exp(_logits(apply, own, batch)), expected, atol=1e-6)


def test_members_of_one_form_have_parameters_of_their_own(decoder, params_of, batch_of):
  model, batch = decoder('llama'), batch_of()
  params = [params_of(model, seed=0), params_of(model, seed=1)]
  each = [_softmax(_logits(apply_of(model), p, batch)) for p in params]
  _, apply, own = _ensemble([model, model], params)
  np.testing.assert_allclose(np.exp(_logits(apply, own, batch)), sum(each) / 2, atol=1e-6)
  assert np.abs(each[0] - each[1]).max() > 0.1


def test_from_a_cache_it_says_what_the_full_pass_says(pair, batch_of):
  model, apply, params = _ensemble(*pair)
  batch = batch_of(T=10)
  whole = _logits(apply, params, batch)

  @jax.jit
  def step(params, batch, cache):
    output = apply(params, batch, cache=cache)
    return output.unembed(output.hidden), output.cache

  cache, found = model.init_cache(2, 10), []
  for start, stop in ((0, 4), (4, 9), (9, 10)):
    part = {k: batch[k][:, start:stop] for k in ('inputs', 'segments', 'positions')}
    piece, cache = step(params, part, cache)
    found.append(piece)
  np.testing.assert_allclose(jnp.concatenate(found, axis=1), whole, atol=1e-5)


@pytest.mark.slow
def test_beams_of_an_ensemble_score_by_its_own_probabilities(pair):
  model, apply, params = functions = _ensemble(*pair)
  assert (model.context, model.vocab_size, model.continues_prompts) == (24, 37, True)
  prompts = _prompts('decoder')[:2]
  found = write(*functions, prompts, Strategy(END, 6, beam=3, length_penalty=0.0))
  for prompt, texts in zip(prompts, found, strict=True):
    tokens, score = texts[0]
    said = tokens if len(tokens) == 6 else [*tokens, END]
    whole = np.concatenate([prompt.tokens['inputs'], said])[:-1]
    batch = {
      'inputs': jnp.asarray(whole)[None],
      'segments': jnp.ones((1, len(whole)), int),
      'positions': jnp.arange(len(whole))[None],
    }
    log_p = _logits(apply, params, batch)[0, -len(said) :]
    assert score == pytest.approx(log_p[np.arange(len(said)), said].sum(), abs=1e-4)


def test_metrics_take_an_ensemble_in_chunks(pair, batch_of, monkeypatch):
  _, apply, params = _ensemble(*pair)
  batch = batch_of()
  nats = -np.log(_softmax(_logits(apply, params, batch)))
  picked = np.take_along_axis(nats, np.asarray(batch['targets'])[..., None], -1)
  monkeypatch.setattr(losses, 'CPU_LOGITS_BUDGET', 2 * 3 * (37 + 40))
  sizes = []

  @jax.jit
  def terms(params, batch):
    output = apply(params, batch)
    sizes.append(losses.chunk_size(2, 12, output.unembed.entries))
    return language_model().terms(output, batch)

  total, weight = terms(params, batch)['loss']
  assert sizes == [3]
  np.testing.assert_allclose(total / weight, picked.mean(), rtol=1e-5)


def test_a_token_that_one_member_rules_out():
  ruled_out = jnp.asarray([[[[0.0, -1e9]]], [[[0.0, 0.0]]]])
  np.testing.assert_allclose(np.exp(probabilities(ruled_out))[0, 0], [0.75, 0.25], rtol=1e-6)
  np.testing.assert_allclose(jax.nn.softmax(logits(ruled_out))[0, 0], [1, 0])


def test_models_of_different_vocabularies_are_told(decoder):
  with pytest.raises(ValueError, match=r'of one vocabulary, and these have \[37, 38\]'):
    together([decoder(), decoder(vocab_size=38)])
