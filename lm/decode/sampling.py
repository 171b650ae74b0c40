"""The next token of a row from its logits: logits processors, then a sampling function.

Both are pure. A sampling function is `sample_fn(logits_V, key) -> token`; a logits processor is
`processor(logits_V, tokens_L, length) -> logits_V`, where `tokens_L` holds the tokens generated so
far, then zeros, and `length` counts them. Greedy decoding, sampling and beam search apply the same
processors, in order. The builders below return the same function for equal arguments, since
`jax.jit` compiles again for a new one. A config names builders in `decode.sampler` and
`decode.logits_processors`.

A processor lowers logits, to -inf for a forbidden token, and never raises one. The score of a
token is its processed logit minus the log-sum-exp of the logits before processing: the other tokens
do not gain the probability that a processor removes. The best hypothesis under a constraint is thus
the most probable one that meets it.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from lm.errors import UserError, check_range
from lm.text.tokenizers import unknown_id
from lm.types import Array

SampleFn = Callable[[Array, Array], Array]
LogitsProcessor = Callable[[Array, Array, Array], Array]

# No real token has such a low log probability; vocabulary padding has (lm.types.OutputHead).
IMPOSSIBLE = -1e8


def row_keys(seed: Array, indices_B: Array) -> Array:
  """Returns the key of each row, (B,): the key of the seed, folded with the index of the row.

  Seeds share no keys: seed + index would give row 1 of seed 0 the key of row 0 of seed 1.
  """
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), indices_B)


def process_logits(
  logits_BV: Array,
  tokens_BL: Array,
  lengths_B: Array,
  processors: Sequence[LogitsProcessor] = (),
  prefix_BP: Array | None = None,
) -> Array:
  """Returns the logits (B, V) after the processors, for the token after `lengths_B` tokens.

  Within the prefix of a text, only its next token is allowed. That token keeps its logit,
  unprocessed.

  Args:
    logits_BV: float32.
    tokens_BL: int32, the tokens generated so far, then zeros.
    lengths_B: int32, the count of tokens generated so far.
    processors: applied in order.
    prefix_BP: int32, what each text must begin with, then at least one -1.
  """
  processed_BV = logits_BV
  for processor in processors:
    processed_BV = jax.vmap(processor)(processed_BV, tokens_BL, lengths_B)
  if prefix_BP is None:
    return processed_BV
  index_B = jnp.minimum(lengths_B, prefix_BP.shape[1] - 1)
  forced_B1 = jnp.take_along_axis(prefix_BP, index_B[:, None], axis=1)
  is_forced_BV = jnp.arange(logits_BV.shape[1])[None] == forced_B1
  forced_BV = jnp.where(is_forced_BV, logits_BV, -jnp.inf)
  return jnp.where(forced_B1 >= 0, forced_BV, processed_BV)


def greedy(logits_V: Array, key: Array) -> Array:
  """Returns the token with the highest logit."""
  del key
  return logits_V.argmax()


@functools.cache
def sampler(
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
  key: str = '--',
) -> SampleFn:
  """Returns a function that samples from the softmax of the logits; arguments apply in this order.

  Args:
    temperature: divides the logits; 0 is `greedy`.
    top_k: keeps the k highest logits (Fan et al. 2018); 0 for all.
    top_p: keeps the fewest tokens whose probability sums to p (Holtzman et al. 2020); 1 for all.
    min_p: keeps tokens with at least this share of the highest probability (Nguyen et al. 2024);
      0 for all.
    key: precedes the names of these arguments in errors: the dashes of a flag, or a config section.

  Raises:
    UserError: a value is out of its range.
  """
  check_range(f'{key}temperature', temperature, 0)
  check_range(f'{key}top_k', top_k, 0)
  check_range(f'{key}top_p', top_p, 0, 1)
  check_range(f'{key}min_p', min_p, 0, 1)
  if temperature == 0:
    return greedy

  def sample(logits_V: Array, key: Array) -> Array:
    logits_V = logits_V.astype(jnp.float32) / temperature
    logits_V = keep_top_k(logits_V, top_k) if top_k else logits_V
    logits_V = keep_top_p(logits_V, top_p) if top_p < 1 else logits_V
    logits_V = keep_min_p(logits_V, min_p) if min_p else logits_V
    return jax.random.categorical(key, logits_V)

  return sample


def keep_top_k(logits_V: Array, k: int) -> Array:
  """Sets all but the k highest logits to -inf; logits equal to the k-th stay."""
  kth = jax.lax.top_k(logits_V, min(k, logits_V.shape[-1]))[0][-1]
  return jnp.where(logits_V < kth, -jnp.inf, logits_V)


def keep_top_p(logits_V: Array, p: float) -> Array:
  """Sets to -inf the tokens outside the smallest set whose probability reaches p."""
  descending_V = jnp.sort(logits_V, descending=True)
  probabilities_V = jax.nn.softmax(descending_V)
  before_V = jnp.cumsum(probabilities_V) - probabilities_V
  # The highest token always stays, even at p = 0.
  kept_V = (before_V < p).at[0].set(True)
  lowest = jnp.min(jnp.where(kept_V, descending_V, jnp.inf))
  return jnp.where(logits_V < lowest, -jnp.inf, logits_V)


def keep_min_p(logits_V: Array, p: float) -> Array:
  """Sets to -inf the tokens less probable than p times the most probable one."""
  return jnp.where(logits_V < logits_V.max() + jnp.log(p), -jnp.inf, logits_V)


@functools.cache
def no_repeat_ngram(n: int) -> LogitsProcessor:
  """Forbids to repeat any n tokens in the same order (Paulus et al. 2018).

  Raises:
    UserError: `n` is below 1.
  """
  check_range('no_repeat_ngram: n', n, 1)

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
  check_range('repetition_penalty: x', x, 1)

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
  return _masked('minimum_length', (end,), lambda is_end_V, length: is_end_V & (length < n))


@functools.cache
def allowed_tokens(ids: tuple[int, ...]) -> LogitsProcessor:
  """Forbids all tokens except these; the end token must be among them for a row to end.

  Raises:
    UserError: there are no ids, or one is not in the vocabulary (known at the first call).
  """
  return _masked('allowed_tokens', ids, lambda is_allowed_V, length: ~is_allowed_V)


@functools.cache
def forbidden_tokens(ids: tuple[int, ...]) -> LogitsProcessor:
  """Forbids these tokens.

  Raises:
    UserError: there are no ids, or one is not in the vocabulary (known at the first call).
  """
  return _masked('forbidden_tokens', ids, lambda is_forbidden_V, length: is_forbidden_V)


def ban_unknown_token(tokenizer: tokenizers.Tokenizer) -> tuple[LogitsProcessor, ...]:
  """Returns the processors that forbid the unknown token, which has no text: one, or none."""
  unknown = unknown_id(tokenizer)
  return () if unknown is None else (forbidden_tokens((unknown,)),)


def _masked(
  name: str, ids: tuple[int, ...], forbidden: Callable[[np.ndarray, Array], Array | np.ndarray]
) -> LogitsProcessor:
  """Returns the processor that forbids tokens.

  Args:
    name: of the processor, in errors.
    ids: token ids.
    forbidden: a function of a mask (V,) of the tokens in `ids`, and of the number of tokens so
      far. It returns the mask (V,) of forbidden tokens.
  """
  if not ids or min(ids) < 0:
    raise UserError(f'{name}: ids={ids} are not one or more token ids from 0')

  def process(logits_V: Array, tokens_L: Array, length: Array) -> Array:
    (V,) = logits_V.shape
    if max(ids) >= V:
      raise UserError(f'{name}: id {max(ids)} is not below {V}, the size of the vocabulary')
    return jnp.where(forbidden(np.isin(np.arange(V), ids), length), -jnp.inf, logits_V)

  return process
