import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from lm.preflight import kernel
from lm.preflight.products import products
from lm.types import Mask


def array(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def test_a_product_and_its_gradients_are_three():
  def loss(w, x):
    return jnp.sum(jnp.sin(x @ w))

  w, x = array(5, 7), array(3, 5)
  assert products(loss, w, x) == {4: 2 * 3 * 5 * 7}
  assert products(jax.grad(loss, argnums=(0, 1)), w, x) == {4: 3 * 2 * 3 * 5 * 7}


def test_products_count_by_the_numbers_that_are_multiplied():
  half, whole = array(4, 4, dtype=jnp.bfloat16), array(4, 4)

  def two(a, b):
    mixed = jax.lax.dot_general(a, b, (((1,), (0,)), ((), ())))
    return a @ a, mixed

  assert products(two, half, whole) == {2: 128, 4: 128}


def test_what_is_computed_again_counts_again():
  def loss(x, again):
    def body(x, _):
      return jnp.sin(x @ x), None

    return jnp.sum(jax.lax.scan(jax.checkpoint(body) if again else body, x, length=3)[0])

  one = 2 * 8**3
  x = array(8, 8)
  assert products(lambda x: loss(x, False), x) == {4: 3 * one}
  assert products(jax.grad(lambda x: loss(x, False)), x) == {4: 9 * one}
  assert products(jax.grad(lambda x: loss(x, True)), x) == {4: 12 * one}


def test_of_branches_that_counts_which_does_the_most():
  def either(x):
    return jax.lax.cond(x[0, 0] > 0, lambda x: x, lambda x: x @ x @ x, x)

  assert products(either, array(8, 8)) == {4: 2 * 2 * 8**3}


def test_what_one_device_does_counts_for_all_that_do_it():
  mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ('data', 'tensor'))
  split = PartitionSpec('data')
  part = jax.shard_map(
    lambda x, w: x @ w, mesh=mesh, in_specs=(split, PartitionSpec()), out_specs=split
  )
  assert products(part, array(4, 8), array(8, 2)) == {4: 2 * 4 * 8 * 2}


def test_convolutions_count():
  def conv(x, k):
    return jax.lax.conv_general_dilated(x, k, (1,), 'SAME', dimension_numbers=('NWC', 'WIO', 'NWC'))

  assert products(conv, array(2, 10, 3), array(5, 3, 7)) == {4: 2 * (2 * 10 * 7) * (5 * 3)}


B, T, H, G, K = 2, 16, 4, 2, 8
Q = array(B, T, H, K, dtype=jnp.bfloat16)
KEYS = array(B, T, G, K, dtype=jnp.bfloat16)


def mask(segments=False, window=None):
  positions = jnp.broadcast_to(jnp.arange(T), (B, T))
  kinds = (jnp.ones_like(positions),) * 2 if segments else (None, None)
  return Mask(positions, positions, *kinds, window=window, ordered=True)


@pytest.mark.parametrize(
  ('known', 'seen'), [(mask(), T // 2), (mask(segments=True), T // 2), (mask(window=4), 4)]
)
def test_attention_of_gpus_does_two_products_and_five_backward(known, seen):
  one = 2 * B * H * T * seen * K

  def attend(q, k, v):
    return kernel.attention(q, k, v, known)

  def loss(q, k, v):
    return jnp.sum(attend(q, k, v).astype(jnp.float32))

  assert products(attend, Q, KEYS, KEYS) == {2: 2 * one}
  assert products(jax.grad(loss, argnums=(0, 1, 2)), Q, KEYS, KEYS) == {2: 7 * one}
  found = jax.eval_shape(jax.grad(loss, argnums=(0, 1, 2)), Q, KEYS, KEYS)
  assert [x.shape for x in found] == [Q.shape, KEYS.shape, KEYS.shape]


@pytest.mark.parametrize('segments', [False, True])
def test_attention_of_gpus_keeps_what_its_kernel_keeps(segments):
  def kept(q, k, v):
    return jax.vjp(lambda q, k, v: kernel.attention(q, k, v, mask(segments)), q, k, v)[1]

  found = sum(
    x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(kept, Q, KEYS, KEYS))
  )
  # Queries, output, keys, values; a number of four bytes each; and a bias that says who sees whom.
  bias = 2 * B * T * T if segments else 0
  assert found == 2 * (2 * B * T * H * K + 2 * B * T * G * K) + 4 * B * T * H + bias
