"""Choosing a token: pure functions `choose(logits_V, key) -> token`, one row at a time."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lm.errors import UserError
from lm.types import Array

Choose = Callable[[Array, Array], Array]


def keys_of(seed: Array, draws_B: Array) -> Array:
  """Returns the key of each row, (B,): that of the seed, folded with the index of the draw.

  Seeds share no keys: seed + index would give draw 1 of seed 0 the key of draw 0 of seed 1.
  """
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), draws_B)


def greedy(logits_V: Array, key: Array) -> Array:
  """Returns the token of the highest logit."""
  del key
  return logits_V.argmax()


def sampler(
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
  key: str = '--',
) -> Choose:
  """Returns a function that draws from the softmax of the logits, cut down in this order.

  Args:
    temperature: divides the logits; 0 is `greedy`.
    top_k: only the k highest may be drawn (Fan et al. 2018); 0 for all.
    top_p: only the fewest whose probability sums to p (Holtzman et al. 2020); 1 for all.
    min_p: only those with this share of the highest probability (Nguyen et al. 2024); 0 for all.
    key: what the names of these have before them where they were given, for errors.

  Raises:
    UserError: a value is out of its range.
  """
  for name, value, low, high in (
    ('temperature', temperature, 0, float('inf')),
    ('top_k', top_k, 0, float('inf')),
    ('top_p', top_p, 0, 1),
    ('min_p', min_p, 0, 1),
  ):
    if not low <= value <= high:
      raise UserError(f'{key}{name}={value} is not between {low} and {high}')
  if temperature == 0:
    return greedy

  def choose(logits_V: Array, key: Array) -> Array:
    logits_V = logits_V.astype(jnp.float32) / temperature
    logits_V = keep_top_k(logits_V, top_k) if top_k else logits_V
    logits_V = keep_top_p(logits_V, top_p) if top_p < 1 else logits_V
    logits_V = keep_min_p(logits_V, min_p) if min_p else logits_V
    return jax.random.categorical(key, logits_V)

  return choose


@functools.cache
def without(choose: Choose, token: int) -> Choose:
  """Returns the function that chooses among all tokens but one, always the same of the two.

  A function that is made anew is compiled anew.
  """
  return lambda logits_V, key: choose(logits_V.at[token].set(-jnp.inf), key)


def keep_top_k(logits_V: Array, k: int) -> Array:
  """Sets all but the k highest logits to -inf; those equal to the k-th stay."""
  kth = jax.lax.top_k(logits_V, min(k, logits_V.shape[-1]))[0][-1]
  return jnp.where(logits_V < kth, -jnp.inf, logits_V)


def keep_top_p(logits_V: Array, p: float) -> Array:
  """Sets to -inf what is outside the smallest set of tokens whose probability reaches p."""
  descending_V = jnp.sort(logits_V, descending=True)
  probabilities_V = jax.nn.softmax(descending_V)
  before_V = jnp.cumsum(probabilities_V) - probabilities_V
  # The highest token always stays, even at p = 0.
  kept_V = (before_V < p).at[0].set(True)
  lowest = jnp.min(jnp.where(kept_V, descending_V, jnp.inf))
  return jnp.where(logits_V < lowest, -jnp.inf, logits_V)


def keep_min_p(logits_V: Array, p: float) -> Array:
  """Sets to -inf what is less probable than p times the most probable token."""
  return jnp.where(logits_V < logits_V.max() + jnp.log(p), -jnp.inf, logits_V)
