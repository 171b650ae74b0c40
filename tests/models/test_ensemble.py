"""An ensemble averages its members, and can replace a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.decode.batch import generate_batch
from lm.decode.loop import DecodeConfig
from lm.decode.sampling import sampler
from lm.metrics.tokens import language_model
from lm.models.ensemble import logits, make_ensemble, probabilities, stack_params
from lm.nn import losses
from lm.nn.layers import RMSNorm
from lm.task import Features
from lm.types import apply_of

END = 32


def _ensemble(models, params, mean=probabilities):
  model = make_ensemble(models, mean)
  return model, apply_of(model), stack_params(params)


def _jitted(apply):
  """Returns the jitted (params, batch, cache) -> (logits, cache)."""

  @jax.jit
  def run(params, batch, cache=None):
    output = apply(params, batch, cache=cache)
    return output.head(output.hidden), output.cache

  return run


def _logits(run, params, batch):
  return np.asarray(run(params, batch)[0], np.float64)


def _softmax(x):
  return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


@pytest.fixture(scope='module')
def pair(decoder, params_of):
  """Two decoders of different widths, norms and table padding, with their parameters."""
  models = [
    decoder('gpt2', context=32),
    decoder('alibi', context=24, d_model=24, depth=1, norm=RMSNorm),
  ]
  return models, [params_of(model, seed=i) for i, model in enumerate(models)]


@pytest.fixture(scope='module')
def of_pair(pair):
  """The ensemble of both: the model, its jitted function, and parameters."""
  model, apply, params = _ensemble(*pair)
  return model, _jitted(apply), params


@pytest.fixture(scope='module')
def llamas(decoder, params_of):
  """Jitted functions of a model and of an ensemble of three, and parameters for each."""
  model = decoder('llama')
  _, apply, _ = _ensemble([model] * 3, [])
  params = [params_of(model, seed=i) for i in range(3)]
  return _jitted(apply_of(model)), _jitted(apply), params


def test_probabilities_are_the_mean_of_those_of_the_members(pair, of_pair, batch_of):
  models, params = pair
  batch = batch_of()
  each = [
    _softmax(_logits(_jitted(apply_of(m)), p, batch)[..., :37])
    for m, p in zip(models, params, strict=True)
  ]
  _, run, own = of_pair
  found = _logits(run, own, batch)
  assert found.shape[-1] == 37
  np.testing.assert_allclose(np.exp(found), (each[0] + each[1]) / 2, atol=1e-6)
  _, apply, own = _ensemble(models, params, logits)
  product = np.sqrt(each[0] * each[1])
  product /= product.sum(-1, keepdims=True)
  np.testing.assert_allclose(_softmax(_logits(_jitted(apply), own, batch)), product, atol=1e-6)


@pytest.mark.parametrize(
  ('architecture', 'strategy'),
  [
    ('decoder', DecodeConfig(END, 6, batch_size=4)),
    ('decoder', DecodeConfig(END, 6, sample_fn=sampler(temperature=1.0), batch_size=4)),
    ('encoder_decoder', DecodeConfig(END, 6, beam_size=3, n_best=2, batch_size=4)),
  ],
)
def test_an_ensemble_of_one_member_equals_it_bit_for_bit(
  architecture, strategy, request, params_of
):
  build = request.getfixturevalue(architecture)
  model = build({'decoder': 'alibi', 'encoder_decoder': 't5'}[architecture], context=32, depth=1)
  params = params_of(model, seed=3)
  prompts = _prompts(architecture)
  alone = generate_batch(model, apply_of(model), params, prompts, strategy)
  assert generate_batch(*_ensemble([model], [params]), prompts, strategy) == alone
  assert len({tuple(texts[0].tokens) for texts in alone}) > 1


def _prompts(architecture):
  rng = np.random.default_rng(1)
  # Lengths that are padded to the same buffer length.
  read = [rng.integers(0, 37, length) for length in (3, 9, 2, 12, 7)]
  if architecture == 'decoder':
    return [Features({'inputs': x}, {}, {}) for x in read]
  return [Features({'inputs': np.array([0])}, {'source': x}, {}) for x in read]


def test_an_ensemble_of_equal_members_equals_one_of_them(llamas, batch_of):
  one, three, params = llamas
  batch = batch_of()
  expected = _softmax(_logits(one, params[0], batch))
  found = _logits(three, stack_params(params[:1] * 3), batch)
  np.testing.assert_allclose(np.exp(found), expected, atol=1e-6)


def test_members_of_one_architecture_have_separate_parameters(llamas, batch_of):
  one, three, params = llamas
  batch = batch_of()
  each = [_softmax(_logits(one, p, batch)) for p in params]
  found = _logits(three, stack_params(params), batch)
  np.testing.assert_allclose(np.exp(found), sum(each) / 3, atol=1e-6)
  assert np.abs(each[0] - each[1]).max() > 0.1


def test_cached_decoding_of_an_ensemble_equals_the_full_pass(of_pair, batch_of):
  model, run, params = of_pair
  batch = {name: np.asarray(x) for name, x in batch_of(T=12).items()}
  full = _logits(run, params, batch)
  cache, found = model.init_cache(2, 12), []
  for start, stop in ((0, 5), (5, 10), (10, 11), (11, 12)):
    part = {k: batch[k][:, start:stop] for k in ('inputs', 'segments', 'positions')}
    piece, cache = run(params, part, cache)
    found.append(piece)
  np.testing.assert_allclose(np.concatenate(found, axis=1), full, atol=1e-5)


@pytest.mark.slow
def test_beam_scores_are_the_probabilities_of_the_ensemble(of_pair):
  model, run, params = of_pair
  assert (model.context, model.vocab_size, model.continues_prompts) == (24, 37, True)
  prompts = _prompts('decoder')[:2]
  strategy = DecodeConfig(END, 6, beam_size=3, length_penalty=0.0)
  found = generate_batch(model, apply_of(model), params, prompts, strategy)
  for prompt, texts in zip(prompts, found, strict=True):
    tokens, score = texts[0]
    said = tokens if len(tokens) == 6 else [*tokens, END]
    full = np.concatenate([prompt.tokens['inputs'], said])[:-1]
    # Rows of one length, so that one compiled program suffices.
    inside = np.arange(16)[None] < len(full)
    batch = {
      'inputs': np.pad(full, (0, 16 - len(full)))[None],
      'segments': inside.astype(int),
      'positions': np.where(inside, np.arange(16)[None], 0),
    }
    log_p = _logits(run, params, batch)[0, len(full) - len(said) : len(full)]
    assert score == pytest.approx(log_p[np.arange(len(said)), said].sum(), abs=1e-4)


def test_metrics_compute_an_ensemble_in_chunks(of_pair, batch_of, monkeypatch):
  model, run, params = of_pair
  apply, batch = apply_of(model), batch_of()
  nats = -np.log(_softmax(_logits(run, params, batch)))
  picked = np.take_along_axis(nats, np.asarray(batch['targets'])[..., None], -1)
  monkeypatch.setattr(losses, 'CPU_LOGITS_BUDGET', 2 * 3 * (37 + 40))
  sizes = []

  @jax.jit
  def terms(params, batch):
    output = apply(params, batch)
    sizes.append(losses.chunk_size(2, 12, output.head.padded_vocab_size))
    return language_model().terms(output, batch)

  total, weight = terms(params, batch)['loss']
  assert sizes == [3]
  np.testing.assert_allclose(total / weight, picked.mean(), rtol=1e-5)


def test_a_token_that_is_impossible_for_one_member():
  ruled_out = jnp.asarray([[[[0.0, -1e9]]], [[[0.0, 0.0]]]])
  np.testing.assert_allclose(np.exp(probabilities(ruled_out))[0, 0], [0.75, 0.25], rtol=1e-6)
  np.testing.assert_allclose(jax.nn.softmax(logits(ruled_out))[0, 0], [1, 0])


def test_models_of_different_vocabularies_raise(decoder):
  with pytest.raises(ValueError, match=r'of one vocabulary, and these have \[37, 38\]'):
    make_ensemble([decoder(), decoder(vocab_size=38)])
