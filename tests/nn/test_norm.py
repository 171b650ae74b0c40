import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.nn.norm import LayerNorm, RMSNorm, layer_norm, rms_norm


def test_layer_norm_by_hand():
  # Mean 3 and variance 5: the deviations -3, -1, 1, 3 are divided by sqrt(5 + 4) = 3.
  x = jnp.asarray([[0.0, 2.0, 4.0, 6.0]])
  scale, bias = jnp.asarray([1.0, 3.0, 6.0, 2.0]), jnp.asarray([0.0, 0.5, 0.0, 1.0])
  found = layer_norm(x, scale, bias, epsilon=4.0)
  np.testing.assert_allclose(found, [[-1.0, -0.5, 2.0, 3.0]], rtol=1e-6)
  found = layer_norm(x, scale, None, epsilon=4.0)
  np.testing.assert_allclose(found, [[-1.0, -1.0, 2.0, 2.0]], rtol=1e-6)


def test_rms_norm_by_hand():
  # Mean square 12.5, and 3.5 more make 16: divided by 4.
  x = jnp.asarray([[3.0, 4.0]])
  found = rms_norm(x, jnp.asarray([4.0, 2.0]), epsilon=3.5)
  np.testing.assert_allclose(found, [[3.0, 2.0]], rtol=1e-6)


def test_norms_of_bfloat16_are_taken_in_float32():
  # The mean is much larger than the deviations, which bfloat16 arithmetic would lose.
  x = jnp.asarray([[256.0, 258.0, 260.0, 262.0]], jnp.bfloat16)
  found = layer_norm(x, jnp.ones(4), jnp.zeros(4))
  assert found.dtype == jnp.bfloat16
  exact = np.array([-3, -1, 1, 3]) / np.sqrt(5)
  np.testing.assert_allclose(found.astype(jnp.float32), exact[None], rtol=0.01)
  assert rms_norm(x, jnp.ones(4)).dtype == jnp.bfloat16


def test_modules_hold_the_parameters_of_the_functions():
  x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (2, 3, 4)), jnp.float32)

  def params(module):
    return nn.unbox(module.init(jax.random.key(0), x))['params']

  made = params(LayerNorm())
  assert jax.tree.map(jnp.shape, made) == {'scale': (4,), 'bias': (4,)}
  changed = {'scale': jnp.arange(4.0), 'bias': jnp.arange(4.0, 8.0)}
  found = LayerNorm(epsilon=0.1).apply({'params': changed}, x)
  np.testing.assert_array_equal(found, layer_norm(x, *changed.values(), epsilon=0.1))
  assert set(params(LayerNorm(bias=False))) == {'scale'}
  # One interface: a block asks for `bias`, and root-mean-square norms have none.
  made = params(RMSNorm(bias=True))
  assert jax.tree.map(jnp.shape, made) == {'scale': (4,)}
  found = RMSNorm(epsilon=0.1).apply({'params': {'scale': jnp.arange(4.0)}}, x)
  np.testing.assert_array_equal(found, rms_norm(x, jnp.arange(4.0), epsilon=0.1))
