import functools
import math
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import UserError
from lm.nn import attention
from lm.nn.attention import blockwise, cudnn, dot_product, fused, splash, weighted_values, weights
from lm.nn.hooks import with_hooks
from lm.nn.layers import Attention
from lm.nn.position import alibi, rope
from lm.types import Mask

T = 9
BLOCKS_OF_4 = jax.jit(functools.partial(blockwise, block=4))
SEGMENTS = ([1] * 4 + [2] * 2 + [3] * 3, [1] * 2 + [2] * 6 + [0] * 1)


def _inputs(B=2, T=T, H=4, G=2, K=6, seed=0):
  rng = np.random.default_rng(seed)
  shapes = ((B, T, H, K), (B, T, G, K), (B, T, G, K))
  return tuple(rng.normal(0, 1, shape).astype(np.float32) for shape in shapes)


@jax.jit
def _whole(q, k, v, mask):
  """Returns dot_product, its weights, the weighted values, and the visible keys."""
  found = weights(q, k, mask)
  return dot_product(q, k, v, mask), found, weighted_values(found, v), mask.dense()


def _plain(q, k, v, mask):
  return np.asarray(_whole(q, k, v, mask)[0])


def _mask(B=2, T=T, segments=None, **fields):
  """Returns the mask of rows of one segment, or of packed rows whose positions restart."""
  if segments is None:
    positions = np.broadcast_to(np.arange(T), (B, T))
    return Mask(positions, positions, ordered=True, **fields)
  positions = [[row[:t].count(row[t]) if row[t] else 0 for t in range(T)] for row in segments]
  positions, segments = np.array(positions), np.array(segments)
  return Mask(positions, positions, segments, segments, ordered=True, **fields)


def _reference(q_BTHK, k_BSGK, v_BSGK, mask):
  """Softmax of scaled scores over the visible keys, one query of one head at a time."""
  q_BTHK, k_BSGK, v_BSGK = (np.asarray(x, np.float64) for x in (q_BTHK, k_BSGK, v_BSGK))
  B, T, H, K = q_BTHK.shape
  S, G = k_BSGK.shape[1:3]
  bias_BHTS = None if mask.bias is None else np.asarray(jax.jit(Mask.dense_bias)(mask))
  o_BTHK = np.zeros_like(q_BTHK)
  for b, t, h in np.ndindex(B, T, H):
    q_position, keys, scores = int(mask.q_positions[b, t]), [], []
    for s in range(S):
      k_position = int(mask.k_positions[b, s])
      distance = q_position - k_position
      visible = not (mask.causal and distance < 0)
      visible &= mask.window is None or abs(distance) < mask.window
      if mask.q_segments is not None:
        visible &= int(mask.q_segments[b, t]) == int(mask.k_segments[b, s])
      if visible:
        keys.append(v_BSGK[b, s, h * G // H])
        score = q_BTHK[b, t, h] @ k_BSGK[b, s, h * G // H] / math.sqrt(K)
        scores.append(score + (0 if bias_BHTS is None else float(bias_BHTS[b, h, t, s])))
    weights = np.exp(np.array(scores) - max(scores))
    o_BTHK[b, t, h] = weights @ np.array(keys) / weights.sum()
  return o_BTHK


MASKS = {
  'causal': {},
  'everything': {'causal': False},
  'window': {'window': 3},
  'window both ways': {'window': 3, 'causal': False},
  'segments': {'segments': SEGMENTS},
  'segments and window': {'segments': SEGMENTS, 'window': 2},
  'bias': {'bias': alibi().bias(None, 4, True)},
  'bias and segments': {'bias': alibi().bias(None, 4, True), 'segments': SEGMENTS},
}


@pytest.mark.parametrize(
  ('fields', 'groups'),
  [*((name, 2) for name in MASKS), ('bias and segments', 1), ('bias and segments', 4)],
)
def test_dot_product_equals_the_formula(fields, groups):
  q, k, v = _inputs(G=groups)
  mask = _mask(**MASKS[fields])
  found, expected = _plain(q, k, v, mask), _reference(q, k, v, mask)
  np.testing.assert_allclose(found, expected, atol=2e-6)


def test_keys_may_have_another_length_than_queries():
  q, _, _ = _inputs(T=3)
  _, k, v = _inputs(T=7, seed=1)
  mask = Mask(np.array([[4, 5, 6], [0, 3, 1]]), np.broadcast_to(np.arange(7), (2, 7)))
  np.testing.assert_allclose(_plain(q, k, v, mask), _reference(q, k, v, mask), atol=2e-6)


@pytest.mark.parametrize('attend', [dot_product, blockwise])
def test_queries_without_visible_keys_are_finite(attend):
  q, k, v = _inputs()
  mask = _mask().replace(
    q_segments=np.zeros((2, T), np.int32), k_segments=np.ones((2, T), np.int32)
  )

  @functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
  def total(q, k, v):
    return attend(q, k, v, mask).sum()

  value, gradients = jax.jit(total)(q, k, v)
  assert all(np.isfinite(x).all() for x in (value, *gradients))


@functools.cache
def _scored(attend):
  """Returns a compiled function: the weighted sum of outputs, the outputs, and gradients."""

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
  def score(q, k, v, mask, real_BT, weights_BTHK):
    o_BTHK = attend(q, k, v, mask) * real_BT[:, :, None, None]
    return jnp.sum(o_BTHK * weights_BTHK), o_BTHK

  return score


@pytest.mark.parametrize(
  ('fields', 'block'),
  [
    ('causal', 4),
    ('segments', 3),
    ('segments and window', 4),
    ('segments and window', 2),
    ('bias and segments', 4),
    ('bias and segments', 64),
  ],
)
def test_blockwise_equals_dot_product_with_gradients(fields, block):
  q, k, v = _inputs()
  mask = _mask(**MASKS[fields])
  real_BT = np.ones((2, T)) if mask.q_segments is None else mask.q_segments > 0
  args = q, k, v, mask, real_BT.astype(np.float32), _inputs(seed=3)[0]
  found = _scored(functools.partial(blockwise, block=block))(*args)
  expected = _scored(dot_product)(*args)
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(x, y, atol=2e-5)


@pytest.mark.parametrize(
  ('window', 'unseen', 'clean'),
  [
    (None, slice(8, None), slice(None, 8)),
    (3, slice(None, 2), slice(4, None)),
  ],
)
def test_blockwise_does_not_read_invisible_keys(window, unseen, clean):
  q, k, v = _inputs()
  mask = _mask(window=window)
  spoilt = v.copy()
  spoilt[:, unseen] = np.nan
  o_BTHK = np.asarray(BLOCKS_OF_4(q, k, spoilt, mask))
  np.testing.assert_allclose(o_BTHK[:, clean], _plain(q, k, v, mask)[:, clean], atol=2e-6)


@pytest.mark.parametrize('fields', [{'causal': False}, {'ordered': False}])
def test_blockwise_skips_nothing_without_ordered_keys(fields):
  q, k, v = _inputs()
  # Positions decrease, so that the last key is visible to all queries.
  backwards = np.broadcast_to(np.arange(T)[::-1], (2, T))
  mask = Mask(backwards, backwards, ordered=True).replace(**fields)
  found = BLOCKS_OF_4(q, k, v, mask)
  np.testing.assert_allclose(found, _reference(q, k, v, mask), atol=2e-6)


@pytest.mark.parametrize('attend', [dot_product, blockwise])
def test_bfloat16_is_close_to_float32_and_stays_bfloat16(attend):
  q, k, v = _inputs(T=70)
  mask = _mask(T=70)
  found = jax.jit(attend)(*(x.astype(jnp.bfloat16) for x in (q, k, v)), mask)
  assert found.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(found, np.float32), _plain(q, k, v, mask), atol=0.05)


def test_cudnn_raises_for_unsupported_inputs():
  q, k, v = _inputs()
  with pytest.raises(UserError, match=r"bfloat16 or float16, not float32.*model.dtype='bfloat16'"):
    cudnn(q, k, v, _mask())
  half = [x.astype(jnp.bfloat16) for x in (q, k, v)]
  with pytest.raises(UserError, match=r'cannot honor Mask\.bias'):
    cudnn(*half, _mask(bias=alibi().bias(None, 4, True)))


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='of kernels on another device')
def test_kernels_of_other_devices_are_refused():
  half = [x.astype(jnp.bfloat16) for x in _inputs(T=128)]
  with pytest.raises(UserError, match='attention:cudnn needs a GPU, and this is a CPU; use'):
    cudnn(*half, _mask(T=128))
  with pytest.raises(UserError, match='attention:splash needs a TPU, and this is a CPU; use'):
    splash(*half, _mask(T=128))


@pytest.mark.skipif(jax.default_backend() == 'gpu', reason='takes cuDNN on a GPU')
def test_fused_is_blockwise_on_cpus():
  q, k, v = _inputs(T=70)
  mask = _mask(T=70, window=9)
  np.testing.assert_array_equal(jax.jit(fused)(q, k, v, mask), jax.jit(blockwise)(q, k, v, mask))


@pytest.mark.parametrize(
  ('fields', 'dtype', 'K', 'T', 'does'),
  [
    ({}, jnp.bfloat16, 64, 8, True),
    ({'causal': False}, jnp.float16, 128, 8, True),
    ({'window': 3}, jnp.bfloat16, 64, 8, True),
    ({}, jnp.bfloat16, 64, 1, True),
    ({}, jnp.float32, 64, 8, False),
    ({}, jnp.bfloat16, 20, 8, False),
    ({}, jnp.bfloat16, 256, 8, False),
    ({}, jnp.bfloat16, 64, 7, False),
    ({'window': 3, 'causal': False}, jnp.bfloat16, 64, 8, True),
    ({'window': 3, 'causal': False, 'segments': [[1] * 8] * 2}, jnp.bfloat16, 64, 8, True),
    ({'bias': alibi().bias(None, 4, True)}, jnp.bfloat16, 64, 8, False),
  ],
)
def test_fused_is_blockwise_on_gpus_where_cudnn_does_not_support_the_inputs(
  fields, dtype, K, T, does, monkeypatch
):
  # As jax.nn.dot_product_attention(implementation='cudnn') refuses it in training, jax 0.10, on
  # the GPUs that take least.
  monkeypatch.setattr(attention, 'platform', lambda: 'gpu')
  monkeypatch.setattr(attention, 'cudnn', lambda *_: 'cudnn')
  q, k, v = (jax.ShapeDtypeStruct((2, T, 4, K), dtype) for _ in range(3))
  attend = functools.partial(fused, mask=_mask(T=T, **fields))
  assert attend(q, k, v) == 'cudnn' if does else jax.eval_shape(attend, q, k, v).shape == q.shape


# A prefix of three tokens in each row.
WITH_PREFIX = MASKS | {'prefix': {'k_prefix': np.broadcast_to(np.arange(T) < 3, (2, T))}}


@pytest.mark.parametrize('fields', WITH_PREFIX)
def test_weights_sum_to_1_over_visible_keys_and_give_the_output(fields):
  q, k, v = _inputs()
  mask = _mask(**WITH_PREFIX[fields])
  plain, found, mixture, visible = jax.device_get(_whole(q, k, v, mask))
  assert (found.shape, found.dtype) == ((2, 4, T, T), np.float32)
  np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)
  if visible is not None:
    assert (found[~np.broadcast_to(visible, found.shape)] == 0).all()
  # Query head h attends to the values of head h // R.
  per_head = np.repeat(np.asarray(v, np.float64), 2, axis=2)
  expected = np.einsum('bhts,bshk->bthk', found, per_head)
  np.testing.assert_allclose(mixture, expected, atol=2e-6)
  np.testing.assert_allclose(plain, expected, atol=2e-6)


@pytest.mark.parametrize('attend', [dot_product, BLOCKS_OF_4])
@pytest.mark.parametrize('memory', [None, 7])
def test_hook_points_of_a_layer_have_the_weights_and_values_of_its_heads(attend, memory):
  rng = np.random.default_rng(0)
  x, y = (rng.normal(0, 1, (2, t, 16)).astype(np.float32) for t in (T, memory or T))
  rotate = rope().rotate if memory is None else None
  layer = Attention(4, 2, 6, attention_fn=attend, rotate=rotate, window=None if memory else 5)
  mask = _mask(segments=SEGMENTS)
  if memory is not None:
    k_segments = np.ones((2, memory), np.int32)
    mask = Mask(mask.q_positions, 0 * k_segments, mask.q_segments, k_segments, causal=False)
  args = (x, None if memory is None else y, mask, None)
  shapes = nn.unbox(jax.eval_shape(layer.init, jax.random.key(1), *args))['params']
  sampled = jax.tree.map(lambda p: rng.normal(0, 5, p.shape).astype(np.float32), shapes)

  @jax.jit
  def run(params, x, memory, mask):
    def apply(variables, batch, rngs, mutable):
      return layer.apply(variables, x, memory, mask, None, mutable=mutable)

    _, sites = with_hooks(types.SimpleNamespace(apply=apply))(params, None)
    return sites, weighted_values(sites['weights'], sites['values'])

  sites, expected = jax.device_get(run(sampled, *args[:3]))
  assert sites['weights'].shape == (2, 4, T, memory or T)
  real = mask.q_segments > 0 if memory is None else mask.q_segments == 1
  np.testing.assert_allclose(sites['heads'][real], expected[real], rtol=1e-5, atol=1e-5)
  # Large weights, so that rotation, window and segments matter.
  assert sites['weights'][0, :, 3].max() > 0.5


class _Alone(nn.Module):
  """A model that is one attention layer."""

  @nn.compact
  def __call__(self, batch):
    blocks = functools.partial(blockwise, block=4)
    layer = Attention(4, 4, 6, attention_fn=blocks, name='layer')
    return layer(batch['x'], None, _mask(), None)[0]


def test_edited_weights_determine_the_output():
  batch = {'x': _inputs()[0].reshape(2, T, -1)}
  shapes = nn.unbox(jax.eval_shape(_Alone().init, jax.random.key(1), batch))['params']
  rng = np.random.default_rng(2)
  params = jax.tree.map(lambda p: rng.normal(0, 0.2, p.shape).astype(np.float32), shapes)
  identity = jnp.broadcast_to(jnp.eye(T), (2, 4, T, T))
  run = with_hooks(_Alone())

  @jax.jit
  def both(params, batch):
    return run(params, batch)[1], run(params, batch, edits={'*/weights': lambda _: identity})[1]

  plain, edited = jax.device_get(both(params, batch))
  # Each token attends to itself alone.
  np.testing.assert_allclose(edited['layer/heads'], edited['layer/values'], atol=1e-6)
  assert np.abs(plain['layer/heads'] - edited['layer/heads']).max() > 1e-3
