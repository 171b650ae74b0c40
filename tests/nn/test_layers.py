import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import UserError
from lm.nn import layers
from lm.nn.attention import dot_product
from lm.nn.layers import Attention, FusedGatedMlp, GatedMlp, Linear, Mlp, dropout, gelu
from lm.types import Mask


def _random(*shape, seed=0):
  return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def _drawn(module, *args, seed=0):
  shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *args))['params']
  leaves, tree = jax.tree.flatten(shapes)
  return tree.unflatten([_random(*x.shape, seed=seed + i) for i, x in enumerate(leaves)])


def _apply(module, params, *args):
  return jax.jit(lambda params, *args: module.apply({'params': params}, *args))(params, *args)


def test_a_linear_layer_contracts_its_leading_axes():
  x = _random(2, 3, 4, 5)
  layer = Linear(shape=(4, 5, 6, 7), axes=(None,) * 4, inputs=2, bias=True)
  params = _drawn(layer, x)
  assert jax.tree.map(jnp.shape, params) == {'kernel': (4, 5, 6, 7), 'bias': (6, 7)}
  kernel, bias = (np.asarray(params[name], np.float64) for name in ('kernel', 'bias'))
  expected = np.einsum('btij,ijkl->btkl', np.asarray(x, np.float64), kernel) + bias
  np.testing.assert_allclose(_apply(layer, params, x), expected, rtol=1e-5, atol=1e-5)


def test_layers_compute_in_dtype_and_parameters_stay_float32():
  x = _random(2, 3, 4)
  layer = Linear(shape=(4, 5), axes=(None, None), bias=True, dtype=jnp.bfloat16)
  params = nn.unbox(jax.eval_shape(layer.init, jax.random.key(0), x))
  assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  assert jax.eval_shape(layer.apply, params, x).dtype == jnp.bfloat16


@pytest.mark.parametrize(
  ('platform', 'wide', 'held'), [('tpu', 4, 2), ('tpu', 5, 0), ('cpu', 4, 0)]
)
def test_wide_matmuls_have_barriers_on_tpus(platform, wide, held, monkeypatch):
  monkeypatch.setattr(layers, 'MIN_BARRIER_DIM', wide)
  x = _random(2, 3, 4)
  layer = Linear(shape=(4, 5), axes=(None, None))
  params = _drawn(layer, x)

  def loss(params, x):
    return jnp.square(layer.apply({'params': params}, x)).sum()

  expected = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)
  monkeypatch.setattr(layers, 'platform', lambda: platform)
  assert str(jax.make_jaxpr(jax.grad(loss))(params, x)).count('optimization_barrier') == held
  assert 'optimization_barrier' not in str(jax.make_jaxpr(loss)(params, x))
  found = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


class Dropped(nn.Module):
  rate: float

  def __call__(self, x):
    return dropout(self, x, self.rate)


@functools.partial(jax.jit, static_argnums=0)
def _dropped(rate, x, key):
  return Dropped(rate).apply({}, x, rngs={} if key is None else {'dropout': key})


def test_dropout_keeps_the_mean_and_the_fraction():
  x = np.full((400, 100), 3.0, np.float32)
  y = np.asarray(_dropped(0.25, x, jax.random.key(0)))
  np.testing.assert_allclose(np.unique(y), [0, 4])
  # 40,000 draws: the standard error of the kept fraction is 0.002.
  assert abs((y > 0).mean() - 0.75) < 0.01
  assert abs(y.mean() - 3) < 0.04


def test_dropout_is_the_identity_without_a_key_or_a_rate():
  x = _random(4, 4)
  np.testing.assert_array_equal(_dropped(0.5, x, None), x)
  np.testing.assert_array_equal(_dropped(0.0, x, jax.random.key(0)), x)


@pytest.mark.parametrize('rate', [-0.1, 1.0])
def test_a_rate_of_dropout_that_is_no_share_is_refused(rate):
  with pytest.raises(UserError, match=f'dropout={rate} of Dropped is not at least 0 and below 1'):
    _dropped(rate, np.ones((2, 2), np.float32), jax.random.key(0))


def test_dropout_is_a_function_of_its_key():
  x, key = np.ones((8, 8), np.float32), jax.random.key(0)
  draw = [np.asarray(_dropped(0.5, x, k)) for k in (key, key, jax.random.key(1))]
  np.testing.assert_array_equal(draw[0], draw[1])
  assert (draw[0] != draw[2]).any()


def _attended(key=None, **options):
  q, k = _random(2, 20, 4, 50), _random(2, 50, 2, 50)
  eye_BSGK = np.broadcast_to(np.eye(50, dtype=np.float32)[None, :, None], (2, 50, 2, 50))
  rngs = {} if key is None else {'dropout': key}
  layer = Attention(heads=4, kv_heads=2, head_dim=50, **options)
  mask = Mask(q_positions=np.arange(20)[None], k_positions=np.arange(50)[None], causal=False)
  return layer.apply({}, q, k, eye_BSGK, mask, rngs=rngs, method='attended')


def test_dropout_of_attention_zeroes_weights_and_scales_up_the_rest():
  # The values are unit vectors, so that outputs are weights (B, T, H, S).
  weights, found = _attended(), _attended(jax.random.key(0), dropout=0.25)
  kept = found != 0
  assert abs(kept.mean() - 0.75) < 0.02  # 8,000 draws
  np.testing.assert_allclose(found, np.where(kept, weights / 0.75, 0), rtol=1e-5)
  np.testing.assert_array_equal(_attended(dropout=0.25), weights)
  capped = functools.partial(dot_product, cap=0.5)
  weights, found = (
    _attended(k, dropout=0.25, attention_fn=capped) for k in (None, jax.random.key(0))
  )
  np.testing.assert_allclose(found, np.where(found != 0, weights / 0.75, 0), rtol=1e-5)


def test_dropout_of_attention_needs_the_weights_of_softmax():
  function = lambda q, k, v, mask: q  # noqa: E731
  _attended(dropout=0.1, attention_fn=function)
  with pytest.raises(UserError, match=r'dropout=0\.1 needs the weights of softmax'):
    _attended(jax.random.key(0), dropout=0.1, attention_fn=function)


def test_feed_forward_layers_equal_their_formulas():
  x = _random(2, 3, 4)
  mlp = Mlp(d_mlp=6, bias=True)
  params = _drawn(mlp, x)
  up = x @ params['up']['kernel'] + params['up']['bias'][None, None]
  expected = _gelu(up) @ params['down']['kernel'] + params['down']['bias'][None, None]
  np.testing.assert_allclose(_apply(mlp, params, x), expected, rtol=1e-4, atol=1e-5)

  gated = GatedMlp(d_mlp=6)
  params = _drawn(gated, x)
  assert set(params) == {'gate', 'up', 'down'}
  gate, up = params['gate']['kernel'], params['up']['kernel']
  silu = x @ gate / (1 + np.exp(-(x @ gate)))
  expected = silu * (x @ up) @ params['down']['kernel']
  np.testing.assert_allclose(_apply(gated, params, x), expected, rtol=1e-4, atol=1e-5)

  fused = FusedGatedMlp(d_mlp=6, activation=jax.nn.silu)
  params = {'up': {'kernel': np.stack([gate, up], 1)}, 'down': params['down']}
  np.testing.assert_allclose(_apply(fused, params, x), expected, rtol=1e-4, atol=1e-5)


def _gelu(x):
  # Hendrycks and Gimpel 2016: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_gelu_is_the_tanh_form():
  x = np.linspace(-3, 3, 7)
  np.testing.assert_allclose(jax.jit(gelu)(x.astype(np.float32)), _gelu(x), atol=1e-6)


def test_attention_projects_attends_and_projects_back():
  B, T, D, H, G, K = 2, 5, 8, 4, 2, 3
  x = _random(B, T, D)
  positions = np.broadcast_to(np.arange(T), (B, T))
  mask = Mask(positions, positions, ordered=True)
  layer = Attention(heads=H, kv_heads=G, head_dim=K, window=3)
  params = _drawn(layer, x, None, mask, None)
  qkv = np.einsum('btd,dgrk->btgrk', x, params['qkv']['kernel'])
  q_BTHK = qkv[:, :, :, : H // G].reshape(B, T, H, K)
  o_BTHK = jax.jit(dot_product)(
    q_BTHK, qkv[:, :, :, H // G], qkv[:, :, :, H // G + 1], mask.replace(window=3)
  )
  expected = np.einsum('bthk,hkd->btd', o_BTHK, params['out']['kernel'])
  y, cache = _apply(layer, params, x, None, mask, None)
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
  assert cache is None


def test_cross_attention_takes_keys_and_values_from_the_encoder_output():
  x, memory = _random(1, 2, 4), _random(1, 3, 4, seed=1)
  positions = np.zeros((1, 2), np.int32), np.zeros((1, 3), np.int32)
  mask = Mask(*positions, causal=False)
  layer = Attention(heads=2, kv_heads=2, head_dim=3)
  params = _drawn(layer, x, memory, mask, None)
  assert set(params) == {'q', 'kv', 'out'}
  q_BTHK = np.einsum('btd,dhk->bthk', x, params['q']['kernel'][:, :, 0])
  k_BSGK, v_BSGK = (
    np.einsum('bsd,dgk->bsgk', memory, params['kv']['kernel'][:, :, i]) for i in range(2)
  )
  o_BTHK = jax.jit(dot_product)(q_BTHK, k_BSGK, v_BSGK, mask)
  expected = np.einsum('bthk,hkd->btd', o_BTHK, params['out']['kernel'])
  y, _ = _apply(layer, params, x, memory, mask, None)
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('shape', 'inputs'), [((6, 2, 3), 1), ((2, 3, 5), 2)])
def test_matmuls_on_tpus_equal_those_of_other_platforms(monkeypatch, shape, inputs):
  x, kernel = _random(4, 7, *shape[:inputs]), _random(*shape, seed=1)

  def both(x, kernel):
    def total(x, kernel):
      y = layers._matmul(x, kernel, inputs)
      return jnp.sin(y).sum(), y

    return jax.grad(total, (0, 1), has_aux=True)(x, kernel)

  def run():  # a new function each time, because JAX caches the trace of the first platform
    return jax.tree.leaves(jax.jit(lambda *args: both(*args))(x, kernel))

  expected = run()
  monkeypatch.setattr(layers, 'platform', lambda: 'tpu')
  for one, other in zip(run(), expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
