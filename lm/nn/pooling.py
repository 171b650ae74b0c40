"""Pooling: one state for each example of a row, from the hidden states of its tokens.

A pooling is a pure function `(hidden_BTD, segments_BT, count) -> (B, P, D)` with P = count. Example
p is segment p + 1 of the row. A segment that does not exist gives zeros.
"""

import jax
import jax.numpy as jnp

from lm.types import Array


def first(hidden_BTD: Array, segments_BT: Array, count: int) -> Array:
  """The state of an example's first token, as BERT takes it (Devlin et al. 2019)."""
  before_BT = jnp.pad(segments_BT, ((0, 0), (1, 0)))[:, :-1]
  of_BTP = _segment_mask(jnp.where(segments_BT != before_BT, segments_BT, 0), count)
  return jnp.einsum('btp,btd->bpd', of_BTP.astype(hidden_BTD.dtype), hidden_BTD)


def mean(hidden_BTD: Array, segments_BT: Array, count: int) -> Array:
  """The mean over an example's tokens."""
  of_BTP = _segment_mask(segments_BT, count).astype(jnp.float32)
  weights_BTP = of_BTP / jnp.maximum(of_BTP.sum(1, keepdims=True), 1)
  return jnp.einsum('btp,btd->bpd', weights_BTP.astype(hidden_BTD.dtype), hidden_BTD)


def maximum(hidden_BTD: Array, segments_BT: Array, count: int) -> Array:
  """The largest value over an example's tokens, by feature (Collobert et al. 2011)."""

  def one(example: Array) -> Array:
    inside_BT1 = (segments_BT == example)[..., None]
    highest_BD = jnp.where(inside_BT1, hidden_BTD, -jnp.inf).max(1)
    return jnp.where(inside_BT1.any(1), highest_BD, 0)

  return jax.lax.map(one, jnp.arange(1, count + 1)).swapaxes(0, 1)


def last(hidden_BTD: Array, segments_BT: Array, count: int) -> Array:
  """The state of an example's last token: the final state of a left-to-right network."""
  after_BT = jnp.pad(segments_BT, ((0, 0), (0, 1)))[:, 1:]
  of_BTP = _segment_mask(jnp.where(segments_BT != after_BT, segments_BT, 0), count)
  return jnp.einsum('btp,btd->bpd', of_BTP.astype(hidden_BTD.dtype), hidden_BTD)


def bidirectional_final_states(hidden_BTD: Array, segments_BT: Array, count: int) -> Array:
  """The final states of both directions of a bidirectional network, concatenated.

  The first half of the features reads left to right and ends at the last token; the second half
  reads right to left and ends at the first token.
  """
  middle = hidden_BTD.shape[-1] // 2
  right = last(hidden_BTD[..., :middle], segments_BT, count)
  return jnp.concatenate([right, first(hidden_BTD[..., middle:], segments_BT, count)], axis=-1)


def _segment_mask(segments_BT: Array, count: int) -> Array:
  return segments_BT[:, :, None] == jnp.arange(1, count + 1)[None, None]
