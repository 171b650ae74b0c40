"""Attention of recurrent networks: which tokens of a source a state is aligned with.

A score is a pure function of queries and keys that were projected to one width A.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.nn.attention import MASKED
from lm.types import Array


class Score(NamedTuple):
  """How well queries (B, T, A) and keys (B, S, A) go together: `of(q, k, vector_A) -> (B, T, S)`.

  `vector` says whether the score learns the vector that it is given.
  """

  of: Callable[[Array, Array, Array | None], Array]
  vector: bool


def additive() -> Score:
  """v tanh(W q + U k) (Bahdanau et al. 2015, appendix A.1.2); q and k are projected already."""

  def of(q_BTA: Array, k_BSA: Array, vector_A: Array | None) -> Array:
    assert vector_A is not None

    # The sums of all queries with all keys are too many to hold, and to keep for the gradient.
    @jax.checkpoint
    def of_one(q_BA: Array) -> Array:
      return jnp.tanh(q_BA[:, None] + k_BSA) @ vector_A

    return jax.lax.map(of_one, q_BTA.swapaxes(0, 1)).swapaxes(0, 1)

  return Score(of, vector=True)


def multiplicative() -> Score:
  """q k, which is Luong et al. 2015's `general` score where both are projected."""

  def of(q_BTA: Array, k_BSA: Array, vector_A: Array | None) -> Array:
    del vector_A
    return jnp.einsum('bta,bsa->bts', q_BTA, k_BSA)

  return Score(of, vector=False)


def align(
  score: Score,
  q_BTA: Array,
  k_BSA: Array,
  vector_A: Array | None,
  values_BSM: Array,
  visible_BTS: Array,
) -> tuple[Array, Array]:
  """Returns the values mixed for each query (B, T, M), and the weights (B, T, S) float32.

  A query that sees no key at all (padding) gets finite values that nobody reads.
  """
  scores_BTS = score.of(q_BTA, k_BSA, vector_A).astype(jnp.float32)
  weights_BTS = jax.nn.softmax(jnp.where(visible_BTS, scores_BTS, MASKED), axis=-1)
  mixed_BTM = jnp.einsum('bts,bsm->btm', weights_BTS.astype(values_BSM.dtype), values_BSM)
  return mixed_BTM, weights_BTS
