"""Logits processors: pure functions `processor(logits_V, tokens_L, length) -> logits_V`.

`tokens_L` holds the tokens generated so far, then zeros, and `length` counts them. Greedy decoding,
sampling and beam search apply the same ones, in order (lm.decode.sampling.process_logits). Equal
arguments return the same function, since `jax.jit` compiles again for a new one.

A processor lowers logits, to -inf for a forbidden token, and never raises one. The probability it
removes is not given to the other tokens: a hypothesis keeps the cost of the token it would have
preferred. The best hypothesis under a constraint is thus the most probable one that meets it.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import tokenizers

from lm.decode.sampling import LogitsProcessor
from lm.errors import UserError
from lm.text.tokenizers import unknown_id
from lm.types import Array


@functools.cache
def no_repeat_ngram(n: int) -> LogitsProcessor:
  """Forbids to repeat any n tokens in the same order (Paulus et al. 2018).

  Raises:
    UserError: `n` is below 1.
  """
  if n < 1:
    raise UserError(f'no_repeat_ngram: n={n} is not 1 or more')

  def process(logits_V: Array, tokens_L: Array, length: Array) -> Array:
    (L,), (V,) = tokens_L.shape, logits_V.shape
    # ends_L[i]: the n - 1 tokens before position i equal the last n - 1 tokens.
    ends_L = (jnp.arange(L) >= n - 1) & (jnp.arange(L) < length)
    for back in range(1, n):
      ends_L &= jnp.roll(tokens_L, back) == tokens_L[length - back]
    return logits_V.at[jnp.where(ends_L, tokens_L, V)].set(-jnp.inf, mode='drop')

  return process


@functools.cache
def repetition_penalty(x: float) -> LogitsProcessor:
  """Divides the positive and multiplies the negative logits of earlier tokens by x.

  Keskar et al. 2019; they use 1.2.

  Raises:
    UserError: `x` is below 1 and would raise logits.
  """
  if not x >= 1:
    raise UserError(f'repetition_penalty: x={x} is not 1 or more')

  def process(logits_V: Array, tokens_L: Array, length: Array) -> Array:
    earlier_L = logits_V[tokens_L]
    lowered_L = jnp.where(earlier_L > 0, earlier_L / x, earlier_L * x)
    index_L = jnp.where(jnp.arange(tokens_L.shape[0]) < length, tokens_L, logits_V.shape[0])
    return logits_V.at[index_L].set(lowered_L, mode='drop')

  return process


@functools.cache
def minimum_length(n: int, end: int) -> LogitsProcessor:
  """Forbids the token `end` before n other tokens.

  Raises:
    UserError: `end` is not in the vocabulary.
  """
  mask_of = _mask_of('minimum_length', (end,))
  return lambda logits_V, tokens_L, length: jnp.where(
    mask_of(logits_V) & (length < n), -jnp.inf, logits_V
  )


@functools.cache
def allowed_tokens(ids: tuple[int, ...]) -> LogitsProcessor:
  """Forbids all tokens except these; the end token must be among them for a row to end.

  Raises:
    UserError: there are no ids, or one is not in the vocabulary (known at the first call).
  """
  mask_of = _mask_of('allowed_tokens', ids)
  return lambda logits_V, *_: jnp.where(mask_of(logits_V), logits_V, -jnp.inf)


@functools.cache
def forbidden_tokens(ids: tuple[int, ...]) -> LogitsProcessor:
  """Forbids these tokens.

  Raises:
    UserError: there are no ids, or one is not in the vocabulary (known at the first call).
  """
  mask_of = _mask_of('forbidden_tokens', ids)
  return lambda logits_V, *_: jnp.where(mask_of(logits_V), -jnp.inf, logits_V)


def ban_unknown_token(tokenizer: tokenizers.Tokenizer) -> tuple[LogitsProcessor, ...]:
  """Returns what forbids the unknown token, which has no text; () for a tokenizer without one."""
  unknown = unknown_id(tokenizer)
  return () if unknown is None else (forbidden_tokens((unknown,)),)


def _mask_of(name: str, ids: tuple[int, ...]) -> Callable[[Array], np.ndarray]:
  """Returns the function from logits (V,) to whether each token is one of the ids."""
  if not ids or min(ids) < 0:
    raise UserError(f'{name}: ids={ids} are not one or more token ids from 0')

  def mask_of(logits_V: Array) -> np.ndarray:
    (V,) = logits_V.shape
    if max(ids) >= V:
      raise UserError(f'{name}: id {max(ids)} is not below {V}, the size of the vocabulary')
    return np.isin(np.arange(V), ids)

  return mask_of
