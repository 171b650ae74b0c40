import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.nn import layers
from lm.nn.attention import dot_product
from lm.nn.layers import Attention, GatedMlp, Linear, Mlp, dropout, gelu
from lm.types import Mask


def _random(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(0, 1, shape), jnp.float32)


def _drawn(module, *args, seed=0):
  shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *args))['params']
  leaves, tree = jax.tree.flatten(shapes)
  return tree.unflatten([_random(*x.shape, seed=seed + i) for i, x in enumerate(leaves)])


def test_a_linear_layer_contracts_its_leading_axes():
  x = _random(2, 3, 4, 5)
  layer = Linear(shape=(4, 5, 6, 7), axes=(None,) * 4, inputs=2, bias=True)
  params = _drawn(layer, x)
  assert jax.tree.map(jnp.shape, params) == {'kernel': (4, 5, 6, 7), 'bias': (6, 7)}
  kernel, bias = (np.asarray(params[name], np.float64) for name in ('kernel', 'bias'))
  expected = np.einsum('btij,ijkl->btkl', np.asarray(x, np.float64), kernel) + bias
  np.testing.assert_allclose(layer.apply({'params': params}, x), expected, rtol=1e-5, atol=1e-5)


def test_compute_runs_in_the_given_type_and_parameters_stay_float32():
  x = _random(2, 3, 4)
  layer = Linear(shape=(4, 5), axes=(None, None), bias=True, dtype=jnp.bfloat16)
  params = nn.unbox(layer.init(jax.random.key(0), x))
  assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  assert layer.apply(params, x).dtype == jnp.bfloat16


@pytest.mark.parametrize(
  ('platform', 'wide', 'held'), [('tpu', 4, 2), ('tpu', 5, 0), ('cpu', 4, 0)]
)
def test_wide_products_are_held_apart_where_a_tpu_trains(platform, wide, held, monkeypatch):
  monkeypatch.setattr(layers, 'WIDE', wide)
  x = _random(2, 3, 4)
  layer = Linear(shape=(4, 5), axes=(None, None))
  params = _drawn(layer, x)

  def loss(params, x):
    return jnp.square(layer.apply({'params': params}, x)).sum()

  expected = jax.grad(loss, argnums=(0, 1))(params, x)
  monkeypatch.setattr(layers, 'platform', lambda: platform)
  assert str(jax.make_jaxpr(jax.grad(loss))(params, x)).count('optimization_barrier') == held
  assert 'optimization_barrier' not in str(jax.make_jaxpr(loss)(params, x))
  found = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


class Dropped(nn.Module):
  rate: float

  def __call__(self, x):
    return dropout(self, x, self.rate)


def test_dropout_keeps_the_mean_and_the_fraction():
  x = jnp.full((400, 100), 3.0)
  y = np.asarray(Dropped(0.25).apply({}, x, rngs={'dropout': jax.random.key(0)}))
  np.testing.assert_allclose(np.unique(y), [0, 4])
  # 40,000 draws: the standard error of the kept fraction is 0.002.
  assert abs((y > 0).mean() - 0.75) < 0.01
  assert abs(y.mean() - 3) < 0.04


def test_dropout_is_the_identity_without_a_key_or_a_rate():
  x = _random(4, 4)
  np.testing.assert_array_equal(Dropped(0.5).apply({}, x), x)
  np.testing.assert_array_equal(Dropped(0.0).apply({}, x, rngs={'dropout': jax.random.key(0)}), x)


def test_dropout_is_a_function_of_its_key():
  x, key = jnp.ones((8, 8)), jax.random.key(0)
  draw = [Dropped(0.5).apply({}, x, rngs={'dropout': k}) for k in (key, key, jax.random.key(1))]
  np.testing.assert_array_equal(draw[0], draw[1])
  assert (np.asarray(draw[0]) != np.asarray(draw[2])).any()


def test_feed_forward_layers_are_their_formulas():
  x = _random(2, 3, 4)
  mlp = Mlp(d_mlp=6, bias=True)
  params = _drawn(mlp, x)
  up = x @ params['up']['kernel'] + params['up']['bias'][None, None]
  expected = gelu(up) @ params['down']['kernel'] + params['down']['bias'][None, None]
  np.testing.assert_allclose(mlp.apply({'params': params}, x), expected, rtol=1e-4, atol=1e-5)

  gated = GatedMlp(d_mlp=6)
  params = _drawn(gated, x)
  assert set(params) == {'gate', 'up', 'down'}
  gate, up = params['gate']['kernel'], params['up']['kernel']
  expected = (jax.nn.silu(x @ gate) * (x @ up)) @ params['down']['kernel']
  np.testing.assert_allclose(gated.apply({'params': params}, x), expected, rtol=1e-4, atol=1e-5)


def test_gelu_is_the_tanh_form():
  # Hendrycks and Gimpel 2016: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
  x = np.linspace(-3, 3, 7)
  expected = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  np.testing.assert_allclose(gelu(jnp.asarray(x, jnp.float32)), expected, atol=1e-6)


def test_attention_projects_attends_and_projects_back():
  B, T, D, H, G, K = 2, 5, 8, 4, 2, 3
  x = _random(B, T, D)
  positions = jnp.broadcast_to(jnp.arange(T), (B, T))
  mask = Mask(positions, positions, ordered=True)
  layer = Attention(heads=H, kv_heads=G, head_dim=K, window=3)
  params = _drawn(layer, x, None, mask, None)
  qkv = jnp.einsum('btd,dgrk->btgrk', x, params['qkv']['kernel'])
  q_BTHK = qkv[:, :, :, : H // G].reshape(B, T, H, K)
  o_BTHK = dot_product(
    q_BTHK, qkv[:, :, :, H // G], qkv[:, :, :, H // G + 1], mask.replace(window=3)
  )
  expected = jnp.einsum('bthk,hkd->btd', o_BTHK, params['out']['kernel'])
  y, cache = layer.apply({'params': params}, x, None, mask, None)
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
  assert cache is None


def test_attention_to_a_memory_reads_keys_and_values_from_it():
  x, memory = _random(1, 2, 4), _random(1, 3, 4, seed=1)
  positions = jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 3), jnp.int32)
  mask = Mask(*positions, causal=False)
  layer = Attention(heads=2, kv_heads=2, head_dim=3)
  params = _drawn(layer, x, memory, mask, None)
  assert set(params) == {'q', 'kv', 'out'}
  q_BTHK = jnp.einsum('btd,dhk->bthk', x, params['q']['kernel'][:, :, 0])
  k_BSGK, v_BSGK = (
    jnp.einsum('bsd,dgk->bsgk', memory, params['kv']['kernel'][:, :, i]) for i in range(2)
  )
  o_BTHK = dot_product(q_BTHK, k_BSGK, v_BSGK, mask)
  expected = jnp.einsum('bthk,hkd->btd', o_BTHK, params['out']['kernel'])
  y, _ = layer.apply({'params': params}, x, memory, mask, None)
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('shape', 'inputs'), [((6, 2, 3), 1), ((2, 3, 5), 2)])
def test_products_on_tpus_are_those_of_other_machines(monkeypatch, shape, inputs):
  keys = jax.random.split(jax.random.key(0), 2)
  x = jax.random.normal(keys[0], (4, 7, *shape[:inputs]))
  kernel = jax.random.normal(keys[1], shape)

  def both(x, kernel):
    def total(x, kernel):
      y = layers._product(x, kernel, inputs)
      return jnp.sin(y).sum(), y

    return jax.grad(total, (0, 1), has_aux=True)(x, kernel)

  expected = both(x, kernel)
  monkeypatch.setattr(layers, 'platform', lambda: 'tpu')
  for one, other in zip(*map(jax.tree.leaves, (both(x, kernel), expected)), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
