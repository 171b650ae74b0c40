"""The model of word2vec and GloVe: an input vector and an output vector for each word."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.parallel.mesh import with_logical_partitioning
from lm.types import Array, Batch, EmbeddingTable, Output, OutputHead


def small_uniform(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
  """Initializes vectors as word2vec and GloVe do: uniformly within 0.5 / D of 0."""
  half = 0.5 / shape[-1]
  return jax.random.uniform(key, shape, dtype, -half, half)


class Embeddings(nn.Module):
  """Input and output vectors of words: `(batch) -> Output`.

  `hidden` has the input vectors (B, T, D) of `inputs`, from the parameter `embedding`. The kernel
  of `head` has the output vectors, the parameter `unembedding`. With `biases` the logits are
  w_i c_j + b_i + b_j as in GloVe: `hidden` has one more element, b_i, and the kernel has 1 there.
  """

  vocab_size: int
  d_model: int
  context: int  # longest row; has no effect
  output_init: Callable[..., Array] = nn.initializers.zeros
  biases: bool = False
  vocab_multiple: int = 1  # the tables have a multiple of this number of rows
  dtype: str = 'float32'

  continues_prompts = False
  reads_on = False

  @nn.compact
  def __call__(self, batch: Batch, cache: Any = None) -> Output:
    table_VD = self._param('embedding', small_uniform, self.d_model, 'embed')
    kernel_VD = self._param('unembedding', self.output_init, self.d_model, 'embed')
    hidden_BTD, bias_V = jnp.take(table_VD, batch['inputs'], axis=0, mode='clip'), None
    if self.biases:
      names = ('bias', 'unembedding_bias')
      own_V1, bias_V1 = (self._param(name, nn.initializers.zeros, 1, None) for name in names)
      own_BT1 = jnp.take(own_V1, batch['inputs'], axis=0, mode='clip')
      hidden_BTD = jnp.concatenate([hidden_BTD, own_BT1], axis=-1)
      kernel_VD = jnp.concatenate([kernel_VD, jnp.ones_like(bias_V1)], axis=-1)
      bias_V = bias_V1[:, 0]
    return Output(hidden_BTD, OutputHead(EmbeddingTable(kernel_VD), bias_V, self.vocab_size), {})

  def _param(self, name: str, init: Callable[..., Array], width: int, axis: str | None) -> Array:
    if self.has_variable('params', name):
      # `param` would check the shape, but in sparse updates the table has only rows of the batch.
      return self.get_variable('params', name)
    rows = -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple
    init = with_logical_partitioning(init, 'vocab', axis)
    return self.param(name, init, (rows, width), self.dtype)
