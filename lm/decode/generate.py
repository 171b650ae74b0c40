"""Greedy decoding and sampling, one token a row at a time, over a `step` of any model."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.decode.constraints import IMPOSSIBLE, Adjust, Prefix, constrain
from lm.decode.sampling import Choose
from lm.errors import UserError
from lm.types import Array

# step(tokens_R, state) -> (logits_RV float32, state): what follows one more token of R rows. The
# state is any pytree; rows are independent in it.
Step = Callable[[Array, Any], tuple[Array, Any]]


class _Said(NamedTuple):
  length: Array  # () int32: positions filled in the rows that have not ended
  tokens: Array  # (B, L) int32
  lengths: Array  # (B,) int32
  log_p: Array  # (B,) float32
  ended: Array  # (B,) bool


def generate(
  step: Step,
  logits_BV: Array,
  state: Any,
  choose: Choose,
  keys_B: Array,
  *,
  max_tokens: int,
  end: int,
  adjust: Sequence[Adjust] = (),
  prefix: Prefix | None = None,
  limits_B: Array | None = None,
  room: int | None = None,
  spare: int = 0,
) -> tuple[Array, Array, Array, Array]:
  """Continues each row until it says `end`, or `max_tokens` tokens; for use inside `jax.jit`.

  A row's tokens depend on its own logits, state and key alone. A row that is allowed no token at
  all stops there, and its log probability is -inf.

  Args:
    step: the model, over as many rows as `state` has.
    logits_BV: float32, what follows the rows' prompts.
    state: what the model remembers of the prompts.
    choose: `lm.decode.sampling.greedy` or a `sampler`, applied to the logits that are left.
    keys_B: a key a row; position n of the row draws with the key folded with n.
    max_tokens: the most tokens of a row, `end` included.
    end: the token that ends a row.
    adjust: constraints, see lm/decode/constraints.py.
    prefix: what each row begins with.
    limits_B: int32, the most tokens of each row where that is less than `max_tokens`.
    room: stop after so many tokens, for which `state` has room; None for `max_tokens`.
    spare: stop when no more than so many rows have not ended.

  Returns:
    tokens: (B, room) int32, `end` included, then zeros.
    lengths: (B,) int32, `end` included. A row that was cut off has no `end`.
    log_probabilities: (B,) float32, in nats: the model's own, at temperature 1, less what the
      constraints took off.
    complete: (B,) whether a row is all that it would be without `room` and `spare`.

  Raises:
    UserError: `max_tokens` is below 1.
  """
  check_max_tokens(max_tokens)
  room = max_tokens if room is None else min(room, max_tokens)
  most_B = jnp.full(logits_BV.shape[0], max_tokens)
  most_B = most_B if limits_B is None else jnp.minimum(limits_B, most_B)

  def advance(said: _Said, logits_BV: Array) -> tuple[_Said, Array]:
    allowed_BV = constrain(logits_BV, said.tokens, said.length, adjust, prefix)
    step_keys_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, said.length)
    tokens_B = jax.vmap(choose)(allowed_BV, step_keys_B).astype(jnp.int32)
    logits_B = jnp.take_along_axis(allowed_BV, tokens_B[:, None], axis=1)[:, 0]
    log_p_B = logits_B - jax.nn.logsumexp(logits_BV, axis=1)
    says_B = ~said.ended & (log_p_B > IMPOSSIBLE)
    said = _Said(
      length=said.length + 1,
      tokens=said.tokens.at[:, said.length].set(jnp.where(says_B, tokens_B, 0)),
      lengths=said.lengths + says_B,
      log_p=said.log_p + jnp.where(said.ended, 0.0, jnp.where(says_B, log_p_B, -jnp.inf)),
      ended=~says_B | (tokens_B == end) | (said.length + 1 >= most_B),
    )
    return said, tokens_B

  def go_on(carry) -> Array:
    said = carry[0]
    return (said.length < room) & ((~said.ended).sum() > spare)

  def body(carry):
    said, tokens_B, state = carry
    logits_BV, state = step(tokens_B, state)
    return *advance(said, logits_BV), state

  B = logits_BV.shape[0]
  nothing = _Said(
    length=jnp.int32(0),
    tokens=jnp.zeros((B, room), jnp.int32),
    lengths=jnp.zeros(B, jnp.int32),
    log_p=jnp.zeros(B, jnp.float32),
    ended=jnp.zeros(B, bool),
  )
  said, _, _ = jax.lax.while_loop(go_on, body, (*advance(nothing, logits_BV), state))
  return said.tokens, said.lengths, said.log_p, said.ended


def check_max_tokens(max_tokens: int) -> None:
  """Raises UserError where there is no room for a token."""
  if max_tokens < 1:
    raise UserError(f'--max_tokens={max_tokens} is not 1 or more')
