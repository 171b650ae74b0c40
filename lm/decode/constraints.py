"""What a row may say next: pure functions `adjust(logits_V, tokens_L, length) -> logits_V`.

`tokens_L` is what the row has said since its prompt, padded with 0, and `length` how much that is.
Greedy decoding, sampling and beam search take the same ones, as a tuple applied in order; make
them once, since a function that is made anew is compiled anew.

An adjustment lowers logits, to -inf for what is forbidden, and never raises one. The
probability it takes away is lost and not shared among the other tokens: a hypothesis that would
rather have said what is forbidden keeps that against it, and the best of all hypotheses
under a constraint is the most probable one that meets it.

What differs from row to row is a `Prefix` that the rows must begin with.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from lm.errors import UserError
from lm.text.tokenizers import unknown_id
from lm.types import Array

Adjust = Callable[[Array, Array, Array], Array]

# No real token has so low a log probability; those that pad a vocabulary do (lm.types.OutputHead).
IMPOSSIBLE = -1e8


class Prefix(NamedTuple):
  """Tokens that each row must begin with; those of the padding are never read."""

  tokens: Array  # (B, P) int32
  lengths: Array  # (B,) int32; 0 for a row that is free


def constrain(
  logits_BV: Array,
  tokens_BL: Array,
  length: Array,
  adjust: Sequence[Adjust] = (),
  prefix: Prefix | None = None,
) -> Array:
  """Returns the logits (B, V) of what each row may say after its first `length` tokens.

  Where a prefix still has tokens, the next of them is all that may be said, whatever `adjust`
  holds of it, and keeps its own logit.
  """
  adjusted_BV = logits_BV
  for fn in adjust:
    adjusted_BV = jax.vmap(fn, in_axes=(0, 0, None))(adjusted_BV, tokens_BL, length)
  if prefix is None:
    return adjusted_BV
  # Behind the end of the prefixes this reads their last token, which then counts for no row.
  forced_B = jax.lax.dynamic_index_in_dim(prefix.tokens, length, axis=1, keepdims=False)
  is_forced_BV = jnp.arange(logits_BV.shape[1])[None] == forced_B[:, None]
  forced_BV = jnp.where(is_forced_BV, logits_BV, -jnp.inf)
  return jnp.where((length < prefix.lengths)[:, None], forced_BV, adjusted_BV)


def no_repeat_ngram(n: int) -> Adjust:
  """Forbids to say the same n tokens in the same order twice (Paulus et al. 2018).

  Raises:
    UserError: `n` is below 1.
  """
  if n < 1:
    raise UserError(f'no_repeat_ngram: n={n} is not 1 or more')

  def adjust(logits_V: Array, tokens_L: Array, length: Array) -> Array:
    (L,), (V,) = tokens_L.shape, logits_V.shape
    # ends_L[i]: the n - 1 tokens before position i are the row's last n - 1.
    ends_L = (jnp.arange(L) >= n - 1) & (jnp.arange(L) < length)
    for back in range(1, n):
      ends_L &= jnp.roll(tokens_L, back) == tokens_L[length - back]
    return logits_V.at[jnp.where(ends_L, tokens_L, V)].set(-jnp.inf, mode='drop')

  return adjust


def repetition_penalty(x: float) -> Adjust:
  """Divides the positive and multiplies the negative logits of tokens said before by x.

  Keskar et al. 2019; they use 1.2.

  Raises:
    UserError: `x` is below 1 and would raise logits.
  """
  if not x >= 1:
    raise UserError(f'repetition_penalty: x={x} is not 1 or more')

  def adjust(logits_V: Array, tokens_L: Array, length: Array) -> Array:
    said_L = logits_V[tokens_L]
    lowered_L = jnp.where(said_L > 0, said_L / x, said_L * x)
    index_L = jnp.where(jnp.arange(tokens_L.shape[0]) < length, tokens_L, logits_V.shape[0])
    return logits_V.at[index_L].set(lowered_L, mode='drop')

  return adjust


def minimum_length(n: int, end: int) -> Adjust:
  """Forbids the token `end` before the row has said n others.

  Raises:
    UserError: `end` is not in the vocabulary.
  """
  ids_C = _ids('minimum_length', (end,))

  def adjust(logits_V: Array, tokens_L: Array, length: Array) -> Array:
    del tokens_L
    banned_V = logits_V.at[_within('minimum_length', ids_C, logits_V)].set(-jnp.inf)
    return jnp.where(length < n, banned_V, logits_V)

  return adjust


def allowed_tokens(ids: Sequence[int]) -> Adjust:
  """Forbids all tokens but these; the end of the text must be among them for a row to end.

  Raises:
    UserError: there are no ids, or one is not in the vocabulary (known when it is first called).
  """
  ids_C = _ids('allowed_tokens', ids)

  def adjust(logits_V: Array, tokens_L: Array, length: Array) -> Array:
    del tokens_L, length
    allowed_V = np.zeros(logits_V.shape, bool)
    allowed_V[_within('allowed_tokens', ids_C, logits_V)] = True
    return jnp.where(allowed_V, logits_V, -jnp.inf)

  return adjust


def forbidden_tokens(ids: Sequence[int]) -> Adjust:
  """Forbids these tokens.

  Raises:
    UserError: there are no ids, or one is not in the vocabulary (known when it is first called).
  """
  ids_C = _ids('forbidden_tokens', ids)

  def adjust(logits_V: Array, tokens_L: Array, length: Array) -> Array:
    del tokens_L, length
    return logits_V.at[_within('forbidden_tokens', ids_C, logits_V)].set(-jnp.inf)

  return adjust


def known_words(tokenizer: tokenizers.Tokenizer) -> tuple[Adjust, ...]:
  """Returns what forbids the unknown word, which stands for no text; () where there is no such."""
  unknown = unknown_id(tokenizer)
  return () if unknown is None else (forbidden_tokens([unknown]),)


def _ids(name: str, ids: Sequence[int]) -> np.ndarray:
  if not len(ids) or min(ids) < 0:
    raise UserError(f'{name}: ids={tuple(ids)} are not one or more token ids from 0')
  return np.asarray(ids, np.int32)


def _within(name: str, ids_C: np.ndarray, logits_V: Array) -> np.ndarray:
  if ids_C.max() >= logits_V.shape[0]:
    raise UserError(
      f'{name}: id {ids_C.max()} is not below {logits_V.shape[0]}, the size of the vocabulary'
    )
  return ids_C
