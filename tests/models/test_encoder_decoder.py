"""The encoder-decoder: targets attend to all of their source, and to earlier targets."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.nn.layers import Mlp, post_norm, pre_norm
from lm.objectives.supervised import cross_entropy
from lm.training.train_step import gradients
from lm.types import apply_of

T, S = 8, 10
# Two pairs in each row, and padding.
PACKED = np.array([[1] * 3 + [2] * 4 + [0], [1] * 5 + [2] * 3])
SOURCE = np.array([[1] * 6 + [2] * 3 + [0], [1] * 2 + [2] * 5 + [0] * 3])
ALONE = np.array([[1] * 7 + [0] * 3, [1] * 10])  # one source per row, of two lengths


def _softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def _vaswani(params, batch, norm_after, depths):
  """The Transformer by the formulas of Vaswani et al. 2017, in double precision.

  Sines come before cosines instead of alternating: equal up to the order of the dimensions.
  `norm_after` is the layout of the paper, a norm after each sublayer; otherwise it comes before.
  """
  width = params['embedding'].shape[1]

  def norm(p, x):
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return centred / deviation * p['scale'] + p['bias']

  def embedded(tokens):
    angles = np.arange(tokens.shape[1])[:, None] / 10000 ** (np.arange(0, width, 2) / width)
    sines = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return params['embedding'][tokens] * math.sqrt(width) + sines

  def attention(p, x, memory, seen):
    if 'qkv' in p:
      projected = np.einsum('btd,dhck->cbthk', x, p['qkv']['kernel'])
      q, k, v = projected + np.moveaxis(p['qkv']['bias'], 1, 0)[:, None, None]
    else:
      q = np.einsum('btd,dhk->bthk', x, p['q']['kernel'][:, :, 0]) + p['q']['bias'][:, 0]
      projected = np.einsum('bsd,dhck->cbshk', memory, p['kv']['kernel'])
      k, v = projected + np.moveaxis(p['kv']['bias'], 1, 0)[:, None, None]
    scores = np.einsum('bthk,bshk->bhts', q, k) / math.sqrt(q.shape[-1])
    weights = _softmax(np.where(seen[:, None], scores, -np.inf))
    o = np.einsum('bhts,bshk->bthk', weights, v)
    return np.einsum('bthk,hkd->btd', o, p['out']['kernel']) + p['out']['bias']

  def feed(p, x):
    hidden = np.maximum(x @ p['up']['kernel'] + p['up']['bias'], 0)
    return hidden @ p['down']['kernel'] + p['down']['bias']

  def stack(p, x, depth, seen, memory=None, seen_memory=None):
    for n in range(depth):
      layer = jax.tree.map(lambda leaf, n=n: leaf[n], p['layers']['layer_0'])
      sublayers = {
        'attention': lambda h, layer=layer: attention(layer['attention'], h, h, seen),
        'cross_attention': lambda h, layer=layer: attention(
          layer['cross_attention'], h, memory, seen_memory
        ),
        'mlp': lambda h, layer=layer: feed(layer['mlp'], h),
      }
      for name, f in sublayers.items():
        if name in layer:
          p_norm = layer[f'{name}_norm']
          x = norm(p_norm, x + f(x)) if norm_after else x + f(norm(p_norm, x))
    return x if norm_after else norm(p['final_norm'], x)

  there_BS = batch['source_segments'] > 0
  B, T = batch['inputs'].shape
  # Padding may attend to anything, but not to nothing.
  seen_BSS = there_BS[:, None, :] | np.eye(there_BS.shape[1], dtype=bool)
  memory = stack(params['encoder'], embedded(batch['source']), depths[0], seen_BSS)
  earlier_BTT = np.broadcast_to(np.tri(T, dtype=bool), (B, T, T))
  seen_BTS = np.broadcast_to(there_BS[:, None], (B, T, there_BS.shape[1]))
  target = embedded(batch['inputs'])
  x = stack(params['decoder'], target, depths[1], earlier_BTT, memory, seen_BTS)
  return x @ params['embedding'].T


@pytest.mark.parametrize('order', [post_norm, pre_norm])
def test_the_encoder_decoder_equals_the_transformer_of_the_paper(
  order, encoder_decoder, params_of, batch_of
):
  relu = functools.partial(Mlp, activation=jax.nn.relu)
  model = encoder_decoder(mlp=relu, block_layout=order, final_norm=order is pre_norm)
  params, batch = params_of(model), batch_of(T=T, source=ALONE)
  output = jax.jit(apply_of(model))(params, batch)
  wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  arrays = {name: np.asarray(values) for name, values in batch.items()}
  expected = _vaswani(wide, arrays, order is post_norm, depths=(1, 2))
  logits = output.head(output.hidden)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_source_embeddings_may_have_their_own_table(encoder_decoder, params_of, batch_of):
  model, batch = encoder_decoder(share_embeddings=False), batch_of(T=T, source=ALONE)
  params = params_of(model)
  assert params.keys() == params_of(encoder_decoder()).keys() | {'source_embedding'}
  # Swapping the first rows of the table equals swapping these tokens in the source.
  swapped = np.array([1, 0, *range(2, 37)], np.int32)
  other = params | {'source_embedding': np.asarray(params['source_embedding'])[swapped]}
  hidden = jax.jit(lambda *xs: apply_of(model)(*xs).hidden)
  expected = hidden(params, batch | {'source': swapped[np.asarray(batch['source'])]})
  np.testing.assert_array_equal(hidden(other, batch), expected)
  assert (expected != hidden(params, batch)).any()


@pytest.mark.slow
def test_targets_depend_on_earlier_targets_and_on_their_own_source(
  encoder_decoder, influence, batch_of
):
  model = encoder_decoder()
  batch = batch_of(B=1, T=T, segments=PACKED[:1], source=SOURCE[:1])
  own = np.equal.outer(PACKED[0], PACKED[0])
  of_target = influence(model, batch, 'decoder/embeddings')
  np.testing.assert_array_equal(of_target, own & np.tri(T, dtype=bool))
  of_source = influence(model, batch, 'encoder/embeddings')
  np.testing.assert_array_equal(of_source, np.equal.outer(PACKED[0], SOURCE[0]))


@pytest.mark.slow
def test_packed_pairs_equal_separate_ones(encoder_decoder, params_of, batch_of, alone):
  model = encoder_decoder('t5')
  params, batch = params_of(model), batch_of(T=T, segments=PACKED, source=SOURCE)

  @jax.jit
  def run(params, batch):
    output = apply_of(model)(params, batch)
    grads, _ = gradients(cross_entropy(), apply_of(model), params, batch, None)
    # The gradient of the sum, not of the mean, is additive over documents.
    grads = jax.tree.map(lambda g: g * batch['weights'].sum(), grads)
    return output.head(output.hidden), grads

  packed, packed_grads = run(params, batch)
  total = jax.tree.map(jnp.zeros_like, params)
  for document in (1, 2):
    separate, grads = run(params, alone(batch, document))
    total = jax.tree.map(jnp.add, total, grads)
    for row in range(2):
      own = PACKED[row] == document
      np.testing.assert_allclose(packed[row, own], separate[row, : own.sum()], atol=2e-5)
  for x, y in zip(jax.tree.leaves(packed_grads), jax.tree.leaves(total), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=5e-5)

  # A poison token in the second pair, source and target, changes no bit of the first one.
  poisoned = batch | {
    'inputs': jnp.where(PACKED == 2, 7, batch['inputs']),
    'source': jnp.where(SOURCE == 2, 7, batch['source']),
  }
  found, _ = run(params, poisoned)
  np.testing.assert_array_equal(found[PACKED == 1], packed[PACKED == 1])
  assert (found[PACKED == 2] != packed[PACKED == 2]).any()


def _part(batch, start, stop):
  names = ('inputs', 'segments', 'positions')
  return {name: np.asarray(batch[name])[:, start:stop] for name in names}


def _source(batch):
  return {name: values for name, values in batch.items() if name.startswith('source')}


def _stepwise(model):
  """Returns the jitted (params, batch, cache) -> (logits, cache) of a model."""

  @jax.jit
  def logits(params, batch, cache=None):
    output = apply_of(model)(params, batch, cache=cache)
    return output.head(output.hidden), output.cache

  return logits


def test_decoding_from_a_cache_equals_the_full_pass(encoder_decoder, params_of, batch_of):
  model = encoder_decoder()
  params, batch, logits = params_of(model), batch_of(T=T, source=ALONE), _stepwise(model)
  full, none = logits(params, batch)
  assert none is None
  # The source is encoded with the first four tokens, and not again.
  piece, cache = logits(params, _part(batch, 0, 4) | _source(batch), model.init_cache(2, T))
  found = [piece]
  for t in range(4, T):
    piece, cache = logits(params, _part(batch, t, t + 1), cache)
    found.append(piece)
  np.testing.assert_allclose(np.concatenate(found, axis=1), full, atol=1e-5, rtol=1e-5)
  assert cache['lengths'].tolist() == [T] * 2
