"""Heads `(model, hidden_BTD, table) -> (hidden, OutputHead)` of published models, by import path.

`hidden_BTD` has the states of all tokens, or those that the model's pooling selects. `model` is the
module of the model: heads make their parameters in it, and read its fields.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.nn.layers import ClassifierHead, LayerNorm, Linear, dropout
from lm.parallel.mesh import with_logical_partitioning
from lm.types import Array, EmbeddingTable, OutputHead


def none(model: Any, hidden_BTD: Array, table: EmbeddingTable) -> tuple[Array, OutputHead]:
  """No head: the hidden states are the result, and there are no logits, (B, T, 0)."""
  nothing = EmbeddingTable(jnp.zeros((0, hidden_BTD.shape[-1]), hidden_BTD.dtype))
  return hidden_BTD, OutputHead(nothing, axes=(None, 'embed'))


def pooler(model: Any, hidden_BTD: Array, table: EmbeddingTable) -> tuple[Array, OutputHead]:
  """No head, with the parameters of BERT's pooler, from which `pooled` starts in fine-tuning."""
  _dense(model, 'pooler', hidden_BTD.shape[-1], hidden_BTD)  # XLA removes its unused result
  return none(model, hidden_BTD, table)


def pooled(
  model: Any,
  hidden_BTD: Array,
  table: EmbeddingTable,
  activation: Callable[[Array], Array] = jnp.tanh,
) -> tuple[Array, OutputHead]:
  """A dense layer and its activation before the linear layer to C classes (Devlin et al. 2019).

  Without pooling, the discriminator of ELECTRA is this head with C = 1 (Clark et al. 2020).
  """
  width = hidden_BTD.shape[-1]
  x = activation(_dense(model, 'pooler', width, hidden_BTD))
  return linear(model, x, table)


def linear(model: Any, hidden_BTD: Array, table: EmbeddingTable) -> tuple[Array, OutputHead]:
  """Dropout and a linear layer to C classes."""
  x = dropout(model, hidden_BTD, model.dropout)
  return x, ClassifierHead(model.num_classes, x.shape[-1], model.init_std, name='head')()


def masked(
  model: Any,
  hidden_BTD: Array,
  table: EmbeddingTable,
  activation: Callable[[Array], Array] = jax.nn.gelu,
  norm: Callable[..., nn.Module] = LayerNorm,
  bias: bool = True,
) -> tuple[Array, OutputHead]:
  """The head of masked language models: dense, activation, norm, and logits of the vocabulary.

  Source: Devlin et al. 2019, and its code. Logits are matmuls with the embedding table, or with
  that of `unembedding`, plus a bias for each token.
  """
  width = table.vectors_VD.shape[1]
  x = _transform(model, hidden_BTD, width, activation, norm, bias)
  head = model.output_head(table)
  return x, head.replace(bias_V=_token_bias(model, head))


def scaled(
  model: Any, hidden_BTD: Array, table: EmbeddingTable, by: float
) -> tuple[Array, OutputHead]:
  """Logits of the vocabulary from scaled hidden states; the scale is 1 / sqrt(D) in T5 1.0."""
  return hidden_BTD * by, model.output_head(table)


def biased(model: Any, hidden_BTD: Array, table: EmbeddingTable) -> tuple[Array, OutputHead]:
  """Logits of the vocabulary with a bias for each token, as in Marian (Junczys-Dowmunt 2018)."""
  head = model.output_head(table)
  return hidden_BTD, head.replace(bias_V=_token_bias(model, head))


def _token_bias(model: Any, head: OutputHead) -> Array:
  zeros = with_logical_partitioning(nn.initializers.zeros, 'vocab')
  return model.param('head_bias', zeros, (head.padded_vocab_size,))


def transformed(
  model: Any,
  hidden_BTD: Array,
  table: EmbeddingTable,
  activation: Callable[[Array], Array] = jax.nn.gelu,
  norm: Callable[..., nn.Module] = LayerNorm,
  bias: bool = True,
) -> tuple[Array, OutputHead]:
  """Dense, activation and norm, as in `masked`, before a linear layer to C classes (ModernBERT)."""
  x = _transform(model, hidden_BTD, hidden_BTD.shape[-1], activation, norm, bias)
  return linear(model, x, table)


def _transform(
  model: Any,
  x: Array,
  width: int,
  activation: Callable[[Array], Array],
  norm: Callable[..., nn.Module],
  bias: bool,
) -> Array:
  return norm(name='transform_norm')(activation(_dense(model, 'transform', width, x, bias)))


def _dense(model: Any, name: str, width: int, x: Array, bias: bool = True) -> Array:
  init = nn.initializers.normal(model.init_std)
  shape, axes = (x.shape[-1], width), ('embed', None)
  return Linear(shape, axes, 1, bias, jnp.dtype(model.dtype), init, name=name)(x)
