"""Recurrent models: caches, beams, packed rows, and dependence on inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import components
from lm.components import init_of
from lm.config import recurrent as configs
from lm.config.base import base
from lm.decode.loop import make_decode_step, prefill
from lm.errors import UserError
from lm.models.convolutional import Convolutional
from lm.models.recurrent import Bidirectional, Decoder, Encoder, EncoderDecoder, Unidirectional
from lm.nn import pooling, recurrent
from lm.nn.recurrent import additive, multiplicative
from lm.parallel import mesh as meshes
from lm.types import apply_of

SIZES = {'vocab_size': 50, 'context': 12, 'd_model': 8}
CELLS = {'elman': recurrent.elman, 'lstm': recurrent.lstm, 'gru': recurrent.gru}
ENCODERS = {
  'both': functools.partial(Bidirectional, cell=recurrent.gru, d_hidden=5, depth=2),
  'one_way': functools.partial(Unidirectional, cell=recurrent.lstm, d_hidden=6, depth=2),
  'convolutional': functools.partial(Convolutional, d_hidden=6, depth=2, width=3),
}
# One layer compiles in half the time of two.
SHALLOW = {name: functools.partial(encoder, depth=1) for name, encoder in ENCODERS.items()}


def translator(**changes):
  fields = {'encoder': SHALLOW['both'], 'd_hidden': 6, 'depth': 2, 'attention_score': additive}
  return EncoderDecoder(**SIZES, **(fields | changes))


MODELS = {
  **{name: Decoder(**SIZES, cell=cell, d_hidden=6, depth=2) for name, cell in CELLS.items()},
  'untied': Decoder(**SIZES, d_hidden=6, tie_embeddings=False),
  'additive': translator(encoder=ENCODERS['both']),
  'multiplicative': translator(attention_score=multiplicative, cell=recurrent.gru),
  'without_feeding': translator(input_feeding=False),
  'fixed_vector': translator(
    attention_score=None, encoder=SHALLOW['one_way'], summary=pooling.last
  ),
  'pooled': translator(attention_score=None, summary=pooling.mean),
  'convolutional': translator(encoder=SHALLOW['convolutional'], summary=pooling.maximum),
}
# Rows that pack two or three documents, then padding.
SEGMENTS = [[1, 1, 1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 2, 2, 2, 2, 3, 3, 0, 0]]
SOURCES = [[1, 1, 1, 2, 2, 2, 2], [1, 1, 2, 3, 3, 3, 0]]
# One source per row, of two lengths. All tests have this width, so that a model compiles once.
ALONE = [[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]]
T, PROMPT = 10, 3


@pytest.fixture(scope='module')
def functions_of(params_of):
  """Returns a model by its name, its jitted function and parameters."""

  @functools.cache
  def of(name):
    model = MODELS[name]
    return model, jax.jit(apply_of(model)), params_of(model)

  return of


@pytest.fixture(scope='module', params=MODELS)
def functions(request, functions_of):
  return functions_of(request.param)


def batch_for(model, batch_of, segments, sources):
  batch = batch_of(B=len(segments), T=len(segments[0]), segments=segments, source=sources)
  batch = {name: np.array(x) for name, x in batch.items()}
  if isinstance(model, EncoderDecoder):
    return batch | {'examples': np.ones((len(segments), 3), np.int32)}
  return {name: x for name, x in batch.items() if not name.startswith('source')}


def part(batch, start, stop):
  return {name: batch[name][:, start:stop] for name in ('inputs', 'segments', 'positions')}


def source_of(batch):
  return {name: x for name, x in batch.items() if name.startswith('source')}


def logits_of(output):
  return np.asarray(output.head(output.hidden))


def test_packed_documents_equal_rows_of_their_own(functions, batch_of, alone):
  model, apply, params = functions
  packed = batch_for(model, batch_of, SEGMENTS, SOURCES)
  full = logits_of(apply(params, packed))
  for document in (1, 2, 3):
    rows = alone({k: v for k, v in packed.items() if k != 'examples'}, document)
    rows |= {k: packed[k] for k in packed if k == 'examples'}
    single = logits_of(apply(params, rows))
    for row in range(2):
      places = np.flatnonzero(packed['segments'][row] == document)
      np.testing.assert_allclose(full[row, places], single[row, : len(places)], atol=1e-5)


def test_pieces_and_single_steps_equal_the_full_pass(functions, batch_of):
  model, apply, params = functions
  batch = batch_for(model, batch_of, np.ones((2, T), int), ALONE)
  full, cache, found = logits_of(apply(params, batch)), model.init_cache(2, T), []
  for start, stop in ((0, PROMPT), (PROMPT, 6), (6, 7), (7, 8), (8, 9), (9, 10)):
    piece = part(batch, start, stop) | (source_of(batch) if start == 0 else {})
    output = apply(params, piece, cache=cache)
    cache = output.cache
    found.append(logits_of(output))
  np.testing.assert_allclose(np.concatenate(found, axis=1), full, atol=1e-5)


def test_beams_equal_rows_of_their_own(functions, batch_of):
  model, apply, params = functions
  batch = batch_for(model, batch_of, [[1, 1, 1], [1, 1, 0]], ALONE)
  rng, M = np.random.default_rng(0), 3
  prompt = part(batch, 0, PROMPT) | source_of(batch)
  _, positions, cache = prefill(apply, params, prompt, model.init_cache(2, 9))
  step = make_decode_step(apply, params)
  texts = [[row[:n].tolist()] for row, n in zip(batch['inputs'], (3, 2), strict=True)]
  for n in range(3):
    parents = rng.integers(0, len(texts[0]), (2, M))
    tokens = rng.integers(0, model.vocab_size, (2, M))
    cache = model.reorder_cache(cache, jnp.asarray(parents))
    logits, cache = step(jnp.asarray(tokens.reshape(-1)), jnp.repeat(positions + n, M), cache)
    texts = [[texts[b][parents[b, m]] + [int(tokens[b, m])] for m in range(M)] for b in range(2)]
  for m in range(M):
    lengths = [len(texts[b][m]) for b in range(2)]
    rows = batch_for(model, batch_of, [[1] * n + [0] * (T - n) for n in lengths], ALONE)
    for b, n in enumerate(lengths):
      rows['inputs'][b, :n] = texts[b][m]
    expected = logits_of(apply(params, rows | source_of(batch)))
    for b, n in enumerate(lengths):
      np.testing.assert_allclose(logits[b * M + m], expected[b, n - 1], atol=1e-5)


def test_outputs_do_not_depend_on_later_tokens(functions, batch_of):
  model, apply, params = functions
  batch = batch_for(model, batch_of, np.ones((2, T), int), ALONE)
  before = logits_of(apply(params, batch))
  for t in (0, 4, T - 1):
    inputs = batch['inputs'].copy()
    inputs[:, t] = (inputs[:, t] + 1) % model.vocab_size
    moved = np.abs(logits_of(apply(params, batch | {'inputs': inputs})) - before).max(-1) > 0
    np.testing.assert_array_equal(moved, np.tile(np.arange(T) >= t, (2, 1)))


def test_gradients_reach_the_source_and_earlier_tokens_alone(params_of, batch_of):
  model = translator(depth=1)
  params = params_of(model)
  batch = batch_for(model, batch_of, np.ones((1, 6), int), [[1, 1, 1]])

  def output(table, inputs):
    output = apply_of(model)(params | {'embedding': table}, batch | {'inputs': inputs})
    return output.hidden[0, 2].sum()

  slope = jax.jit(jax.grad(output))(params['embedding'], np.asarray([[1, 2, 3, 4, 5, 6]]))
  moved = np.abs(np.asarray(slope)).sum(1)
  source = set(batch['source'].ravel().tolist())
  assert all(moved[token] > 0 for token in {1, 2, 3} | source)
  assert all(moved[token] == 0 for token in {4, 5, 6} - source)


def test_without_attention_the_cache_has_the_summary_of_the_source_alone(functions_of, batch_of):
  model, apply, params = functions_of('fixed_vector')
  for source in ([[1, 1, 1]], [[1] * 7]):
    batch = batch_for(model, batch_of, np.ones((1, 5), int), source)
    _, _, cache = jax.eval_shape(
      functools.partial(prefill, apply), params, batch, model.init_cache(1, 5)
    )
    assert set(cache) == {'layers'}
    # The size of the cache does not depend on the length of the source.
    assert sum(x.size for x in jax.tree.leaves(cache)) == 2 * 2 * 6


@pytest.mark.parametrize('name', ENCODERS)
def test_an_encoder_classifies_packed_texts(name, params_of, batch_of, alone):
  model = Encoder(
    **SIZES, encoder=ENCODERS[name], num_classes=3, pooling=pooling.bidirectional_final_states
  )
  params, apply = params_of(model), jax.jit(apply_of(model))
  tokens, examples = batch_of(T=10, segments=SEGMENTS), {'examples': np.ones((2, 3), np.int32)}
  found = logits_of(apply(params, tokens | examples))
  assert found.shape == (2, 3, 3)
  for document in (1, 2):
    single = logits_of(apply(params, alone(tokens, document) | examples))
    np.testing.assert_allclose(found[:, document - 1], single[:, 0], atol=1e-5)


def test_final_states_are_those_of_the_last_and_first_tokens():
  hidden = jnp.arange(24.0).reshape(1, 6, 4)
  found = pooling.bidirectional_final_states(hidden, jnp.asarray([[1, 1, 1, 2, 2, 0]]), 2)
  np.testing.assert_array_equal(found[0, 0], [8, 9, 2, 3])
  np.testing.assert_array_equal(found[0, 1], [16, 17, 14, 15])


def test_a_width_that_does_not_divide_over_the_mesh_raises():
  config = base()
  with config.unlocked():
    config.model = configs.recurrent(8, 6, depth=1, context=128)
  mesh = jax.sharding.AbstractMesh((1, 1, 4), meshes.AXES)
  boxed = jax.eval_shape(init_of(components.model(config, 50), 8), jax.random.key(0))
  with pytest.raises(UserError) as raised:
    meshes.shardings(boxed, mesh, meshes.RULES)
  assert "axis 'mlp' of size 6 is not divisible by mesh.tensor=4" in str(raised.value)


@pytest.mark.parametrize(
  ('sizes', 'message'),
  [
    ({'width': 4}, 'model.encoder.width=4 is even'),
    ({'d_hidden': 5}, 'model.encoder.d_hidden=5 is odd'),
  ],
)
def test_sizes_of_convolutions_that_do_not_fit_raise(sizes, message, params_of):
  encoder = functools.partial(Convolutional, **({'d_hidden': 6, 'depth': 1} | sizes))
  with pytest.raises(UserError, match=message):
    params_of(translator(encoder=encoder))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'cell': additive}, 'model.cell: the function makes a AttentionScore and not a Cell'),
    (
      {'attention_score': recurrent.gru},
      'model.attention_score: the function makes a Cell and not a AttentionScore',
    ),
    (
      {'cell': recurrent.step_cell},
      'model.cell: lm.nn.recurrent:step_cell: missing a required argu',
    ),
  ],
)
def test_functions_of_another_kind_raise(changes, message, params_of):
  with pytest.raises(UserError) as raised:
    params_of(translator(**changes))
  assert message in str(raised.value)
