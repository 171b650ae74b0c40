"""Word vectors alone: what Word2Vec and GloVe learn, before any sequence model."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.mesh import named
from lm.types import Array, Batch, Output, Unembed


def small_uniform(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
  """Draws vectors as word2vec and GloVe do: each number within 0.5 / D of 0."""
  half = 0.5 / shape[-1]
  return jax.random.uniform(key, shape, dtype, -half, half)


class Embeddings(nn.Module):
  """A vector for each word as itself, and one for each as a neighbour: `(batch) -> Output`.

  `hidden` holds the vectors (B, T, D) of `inputs`, from the parameter `embedding`; `unembed` has
  those of neighbours, from `unembedding`. With `biases` the logits are w_i c_j + b_i + b_j as in
  GloVe: `hidden` has b_i as a number more, where the kernel of `unembed` has 1.
  """

  vocab_size: int
  d_model: int
  context: int  # longest row; nothing here depends on it
  outputs: int | None = None  # rows of `unembedding`; None for one a word
  output_init: Callable[..., Array] = nn.initializers.zeros
  biases: bool = False
  vocab_multiple: int = 1  # rows of the tables are rounded up to this
  dtype: str = 'float32'

  continues_prompts = False

  @nn.compact
  def __call__(self, batch: Batch, cache: Any = None) -> Output:
    del cache
    outputs = self.outputs or self.vocab_size
    table_VD = self._table('embedding', self.vocab_size, small_uniform)
    kernel_VD = self._table('unembedding', outputs, self.output_init)
    hidden_BTD, bias_V = jnp.take(table_VD, batch['inputs'], axis=0), None
    if self.biases:
      own_V1, bias_V1 = (self._bias(name, len(table_VD)) for name in ('bias', 'unembedding_bias'))
      own_BT1 = jnp.take(own_V1, batch['inputs'], axis=0)
      hidden_BTD = jnp.concatenate([hidden_BTD, own_BT1], axis=-1)
      kernel_VD = jnp.concatenate([kernel_VD, jnp.ones_like(bias_V1)], axis=-1)
      bias_V = bias_V1[:, 0]
    return Output(hidden_BTD, Unembed(kernel_VD, bias_V, outputs), {})

  def _table(self, name: str, size: int, init: Callable[..., Array]) -> Array:
    rows = -(-size // self.vocab_multiple) * self.vocab_multiple
    return self.param(name, named(init, 'vocab', 'embed'), (rows, self.d_model), self.dtype)

  def _bias(self, name: str, rows: int) -> Array:
    return self.param(name, named(nn.initializers.zeros, 'vocab', None), (rows, 1), self.dtype)
