import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.nn.pooling import first, last, maximum, mean

# The second row lacks the third example, and both rows lack the fourth.
SEGMENTS = np.array([[1, 1, 2, 3, 3, 3, 0], [1, 2, 2, 2, 0, 0, 0]])
HIDDEN = np.random.default_rng(0).normal(-2, 1, (2, 7, 5)).astype(np.float32)
OF_ONE = {
  first: lambda tokens: tokens[0],
  mean: lambda tokens: tokens.mean(0),
  maximum: lambda tokens: tokens.max(0),
  last: lambda tokens: tokens[-1],
}


@pytest.mark.parametrize('pool', OF_ONE)
def test_the_state_of_an_example_depends_on_its_own_tokens(pool):
  found = jax.jit(pool, static_argnums=2)(HIDDEN, SEGMENTS, 4)
  assert found.shape == (2, 4, 5)
  for row, example in np.ndindex(2, 4):
    tokens = HIDDEN[row, SEGMENTS[row] == example + 1]
    expected = OF_ONE[pool](tokens) if len(tokens) else np.zeros(5)
    np.testing.assert_allclose(found[row, example], expected, rtol=1e-6)


@pytest.mark.parametrize('pool', OF_ONE)
def test_gradients_are_finite_and_zero_outside_the_examples(pool):
  def total(hidden):
    return jnp.sum(jnp.square(pool(hidden, jnp.asarray(SEGMENTS), 4)))

  gradient = np.asarray(jax.jit(jax.grad(total))(HIDDEN))
  assert np.isfinite(gradient).all()
  reached = (gradient != 0).any(-1)
  assert not reached[SEGMENTS == 0].any()
  assert all(reached[row, SEGMENTS[row] == 1].any() for row in range(2))


@pytest.mark.parametrize('pool', OF_ONE)
def test_pooling_keeps_the_dtype_of_the_hidden_states(pool):
  hidden = jax.ShapeDtypeStruct((2, 7, 5), jnp.bfloat16)
  segments = jax.ShapeDtypeStruct((2, 7), jnp.int32)
  found = jax.eval_shape(lambda h, s: pool(h, s, 4), hidden, segments)
  assert (found.shape, found.dtype) == ((2, 4, 5), jnp.bfloat16)
