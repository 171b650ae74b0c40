"""Word vectors alone: what Word2Vec and GloVe learn, before any sequence model."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.parallel.mesh import with_logical_partitioning
from lm.types import Array, Batch, EmbeddingTable, Output, OutputHead


def small_uniform(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
  """Initializes vectors as word2vec and GloVe do: each element within 0.5 / D of 0."""
  half = 0.5 / shape[-1]
  return jax.random.uniform(key, shape, dtype, -half, half)


class Embeddings(nn.Module):
  """A vector for each word as itself, and one for each as a neighbour: `(batch) -> Output`.

  `hidden` holds the vectors (B, T, D) of `inputs`, from the parameter `embedding`; `unembed` has
  those of neighbours, from `unembedding`. With `biases` the logits are w_i c_j + b_i + b_j as in
  GloVe: `hidden` has b_i as one more element, where the kernel of `unembed` has 1.
  """

  vocab_size: int
  d_model: int
  context: int  # longest row; nothing here depends on it
  output_init: Callable[..., Array] = nn.initializers.zeros
  biases: bool = False
  vocab_multiple: int = 1  # rows of the tables are rounded up to this
  dtype: str = 'float32'

  continues_prompts = False
  reads_on = False

  @nn.compact
  def __call__(self, batch: Batch, cache: Any = None) -> Output:
    del cache
    table_VD = self._table('embedding', small_uniform)
    kernel_VD = self._table('unembedding', self.output_init)
    hidden_BTD, bias_V = jnp.take(table_VD, batch['inputs'], axis=0, mode='clip'), None
    if self.biases:
      own_V1, bias_V1 = (self._bias(name) for name in ('bias', 'unembedding_bias'))
      own_BT1 = jnp.take(own_V1, batch['inputs'], axis=0, mode='clip')
      hidden_BTD = jnp.concatenate([hidden_BTD, own_BT1], axis=-1)
      kernel_VD = jnp.concatenate([kernel_VD, jnp.ones_like(bias_V1)], axis=-1)
      bias_V = bias_V1[:, 0]
    return Output(hidden_BTD, OutputHead(EmbeddingTable(kernel_VD), bias_V, self.vocab_size), {})

  def _table(self, name: str, init: Callable[..., Array]) -> Array:
    return self._rows(name, with_logical_partitioning(init, 'vocab', 'embed'), self.d_model)

  def _bias(self, name: str) -> Array:
    return self._rows(name, with_logical_partitioning(nn.initializers.zeros, 'vocab', None), 1)

  def _rows(self, name: str, init: Callable[..., Array], width: int) -> Array:
    if self.has_variable('params', name):
      # Not by `param`, which checks the shape: the table may have only the rows of a batch.
      return self.get_variable('params', name)
    rows = -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple
    return self.param(name, init, (rows, width), self.dtype)
