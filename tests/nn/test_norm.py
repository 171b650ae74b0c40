import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.nn.layers import LayerNorm, RMSNorm, layer_norm, rms_norm

LAYER = jax.jit(layer_norm, static_argnames='epsilon')
RMS = jax.jit(rms_norm, static_argnames='epsilon')


def _apply(module, params, x):
  return jax.jit(module.apply)({'params': params}, x)


def test_layer_norm_by_hand():
  # Mean 3 and variance 5: the deviations -3, -1, 1, 3 are divided by sqrt(5 + 4) = 3.
  x = np.float32([[0.0, 2.0, 4.0, 6.0]])
  scale, bias = np.float32([1.0, 3.0, 6.0, 2.0]), np.float32([0.0, 0.5, 0.0, 1.0])
  found = LAYER(x, scale, bias, epsilon=4.0)
  np.testing.assert_allclose(found, [[-1.0, -0.5, 2.0, 3.0]], rtol=1e-6)
  found = LAYER(x, scale, None, epsilon=4.0)
  np.testing.assert_allclose(found, [[-1.0, -1.0, 2.0, 2.0]], rtol=1e-6)


def test_rms_norm_by_hand():
  # The mean square 12.5 plus 3.5 is 16: divided by 4.
  found = RMS(np.float32([[3.0, 4.0]]), np.float32([4.0, 2.0]), epsilon=3.5)
  np.testing.assert_allclose(found, [[3.0, 2.0]], rtol=1e-6)


def test_norms_of_bfloat16_are_computed_in_float32():
  # bfloat16 arithmetic would lose the deviations, which are much smaller than the mean.
  x = np.array([[256.0, 258.0, 260.0, 262.0]], jnp.bfloat16)
  ones, zeros = np.ones(4, np.float32), np.zeros(4, np.float32)
  found = LAYER(x, ones, zeros)
  assert found.dtype == jnp.bfloat16
  exact = np.array([-3, -1, 1, 3]) / np.sqrt(5)
  np.testing.assert_allclose(np.asarray(found, np.float32), exact[None], rtol=0.01)
  assert jax.eval_shape(rms_norm, x, ones).dtype == jnp.bfloat16


def test_norm_modules_have_the_parameters_of_the_functions():
  x = np.random.default_rng(0).normal(2, 3, (2, 3, 4)).astype(np.float32)

  def params(module):
    return nn.unbox(jax.eval_shape(module.init, jax.random.key(0), x))['params']

  made = params(LayerNorm())
  assert jax.tree.map(jnp.shape, made) == {'scale': (4,), 'bias': (4,)}
  scale, bias = np.arange(8, dtype=np.float32).reshape(2, 4)
  found = _apply(LayerNorm(epsilon=0.1), {'scale': scale, 'bias': bias}, x)
  np.testing.assert_array_equal(found, LAYER(x, scale, bias, epsilon=0.1))
  assert set(params(LayerNorm(bias=False))) == {'scale'}
  # All norms have the field `bias`, although RMSNorm has no such parameter.
  made = params(RMSNorm(bias=True))
  assert jax.tree.map(jnp.shape, made) == {'scale': (4,)}
  found = _apply(RMSNorm(epsilon=0.1), {'scale': scale}, x)
  np.testing.assert_array_equal(found, RMS(x, scale, epsilon=0.1))
