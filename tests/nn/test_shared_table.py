"""Lookup in gathered tables on one device; tests/multi_device has several devices."""

import jax
import jax.numpy as jnp
import numpy as np

from lm.nn import embedding
from lm.parallel import mesh
from lm.types import EmbeddingTable


def test_gradients_of_one_token_are_summed_in_float32():
  table_VD = np.ones((3, 2), jnp.bfloat16)
  ids_BT = np.array([[1] * 1000 + [2]])

  def total(table_VD):
    taken_BTD = embedding._lookup(table_VD, ids_BT, table_VD.dtype, table_VD.shape)
    assert taken_BTD.dtype == jnp.float32
    return taken_BTD.sum()

  found = jax.jit(jax.grad(total))(table_VD)
  # In bfloat16 a sum of ones stops at 256.
  np.testing.assert_array_equal(np.asarray(found, np.float32), [[0, 0], [1000, 1000], [1, 1]])


def test_on_one_device_the_table_is_not_gathered():
  vectors_VD = jnp.arange(6.0).reshape(3, 2)
  ids_BT = jnp.asarray([[2, 0]])
  with mesh.set_mesh(mesh.make_mesh({'fsdp': 1}, jax.devices()[:1]), mesh.RULES):
    table = embedding.gather_for_tied(vectors_VD, ids_BT, jnp.bfloat16)
    assert table.gathered is None and table == EmbeddingTable(vectors_VD)
    np.testing.assert_array_equal(embedding.embedding_lookup(table, ids_BT), [[[4, 5], [0, 1]]])
