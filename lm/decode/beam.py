"""Beam search over a `step` of any model: the most probable continuations of each row.

At every step the `2 * beam` best continuations of a row are found among `beam * V`. Those that end
and are among the first `beam` move to a pool of finished hypotheses, which keeps the best `beam`;
the first `beam` that do not end run on. A row's results depend on its own logits and state alone.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.decode.constraints import IMPOSSIBLE, Adjust, Prefix, constrain
from lm.decode.generate import Step, check_max_tokens
from lm.errors import UserError
from lm.types import Array

# branch(state, parents_BM) -> state: the M hypotheses of row b, which are M rows of the state from
# b * M on, go on from hypotheses parents_BM[b] of that row. Before the first call there is one.
Branch = Callable[[Any, Array], Any]

# Logits of a row are searched and summed in windows of so many (see _top_k).
WINDOW = 32


class Hypotheses(NamedTuple):
  """Continuations of each row: finished ones before cut off ones, each in falling score.

  Where a row has fewer than N, the length is 0 and the score -inf.
  """

  tokens: Array  # (B, N, L) int32, then zeros; cut off at L if END is not among them
  lengths: Array  # (B, N) int32, END included
  scores: Array  # (B, N) float32, log p / penalty(length)


class Search(NamedTuple):
  """The hypotheses of B rows while they run."""

  length: Array  # () int32, of every running hypothesis
  tokens: Array  # (B, M, L) int32; M is 1 before the first token and `beam` after it
  log_p: Array  # (B, M) float32, falling; -inf where there is no hypothesis
  finished: Hypotheses  # `beam` a row
  done: Array  # (B,) bool


def check_beam(beam: int, vocab_size: int) -> None:
  """Raises UserError unless the first token can fill the beam with different hypotheses."""
  if not 1 <= beam <= vocab_size:
    raise UserError(f'--beam={beam} is not between 1 and {vocab_size}, the size of the vocabulary')


def beam_search(
  step: Step,
  branch: Branch,
  logits_BV: Array,
  state: Any,
  *,
  beam: int,
  max_tokens: int,
  end: int,
  length_penalty: float | Array = 0.6,
  n_best: int = 1,
  adjust: Sequence[Adjust] = (),
  prefix: Prefix | None = None,
  limits_B: Array | None = None,
  room: int | None = None,
  spare: int = 0,
) -> tuple[Hypotheses, Array]:
  """Returns the `n_best` continuations that the search finds for each row; for use in `jax.jit`.

  A hypothesis of n tokens, END and any prefix included, scores log p / ((5 + n) / 6)^alpha
  (Wu et al. 2016). Its log p is the model's own, less what constraints took off (see
  lm/decode/constraints.py). A row stops when no running hypothesis can reach the score of its
  n_best-th finished one any more, which changes no result: log p only falls, and the penalty
  divides it by no more than it does at one end of the lengths to come. What has not finished after
  `max_tokens`, or its limit, is scored as it stands, and fills places that finished hypotheses
  leave: it has not paid for its END, and would crowd out those that have. Of equal scores the one
  found first goes first, and among continuations the one of the better hypothesis, then of the
  lower token.

  With `beam=1` and no length penalty this is greedy decoding. A beam above the number of
  hypotheses that exist searches exhaustively.

  Args:
    step: the model, over `B * beam` rows.
    branch: moves and repeats the hypotheses of a row.
    logits_BV: float32, what follows the rows' prompts or sources.
    state: what the model remembers of them, B rows.
    beam: hypotheses that run on.
    max_tokens: the most tokens of a hypothesis, END included.
    end: the token that finishes a hypothesis.
    length_penalty: alpha; 0 compares log p, higher values prefer longer hypotheses.
    n_best: hypotheses to return, at most `beam`.
    adjust: constraints, as in `lm.decode.generate`.
    prefix: what all hypotheses of a row begin with.
    limits_B: int32, the most tokens of each row where that is less than `max_tokens`.
    room: stop after so many tokens, for which `state` has room; None for `max_tokens`.
    spare: stop when no more than so many rows have not stopped.

  Returns:
    The hypotheses, and (B,) whether those of a row are all that they would be without `room` and
    `spare`.

  Raises:
    UserError: `max_tokens` is below 1, or `n_best` not between 1 and `beam`.
  """
  check_max_tokens(max_tokens)
  if not 1 <= n_best <= beam:
    raise UserError(f'--n_best={n_best} is not between 1 and --beam={beam}')

  room = max_tokens if room is None else min(room, max_tokens)
  most_B = jnp.full(logits_BV.shape[0], max_tokens)
  most_B = most_B if limits_B is None else jnp.minimum(limits_B, most_B)

  advance = functools.partial(
    advanced,
    beam=beam,
    end=end,
    length_penalty=length_penalty,
    n_best=n_best,
    adjust=adjust,
    prefix=prefix,
    most_B=most_B,
  )

  def go_on(carry) -> Array:
    search, _ = carry
    return (search.length < room) & ((~search.done).sum() > spare)

  body = functools.partial(turn, step, branch, advance)
  search, parents_BM = advance(start(logits_BV.shape[0], beam, room), logits_BV)
  search, _ = jax.lax.while_loop(go_on, body, (search, branch(state, parents_BM)))
  return _answer(search, n_best, length_penalty, most_B), search.done


def turn(
  step: Step,
  branch: Branch,
  advance: Callable[[Search, Array], tuple[Search, Array]],
  carry: tuple[Search, Any],
) -> tuple[Search, Any]:
  """Adds a token to the hypotheses of (search, state), by `advanced` with all but two arguments."""
  search, state = carry
  latest_BM = jax.lax.dynamic_index_in_dim(search.tokens, search.length - 1, 2, keepdims=False)
  logits_RV, state = step(latest_BM.reshape(-1), state)
  search, parents_BM = advance(search, logits_RV)
  return search, branch(state, parents_BM)


def start(B: int, beam: int, room: int) -> Search:
  """Returns the search of B rows before their first token."""
  nothing = Hypotheses(
    tokens=jnp.zeros((B, beam, room), jnp.int32),
    lengths=jnp.zeros((B, beam), jnp.int32),
    scores=jnp.full((B, beam), -jnp.inf),
  )
  return Search(
    length=jnp.int32(0),
    tokens=jnp.zeros((B, 1, room), jnp.int32),
    log_p=jnp.zeros((B, 1)),
    finished=nothing,
    done=jnp.zeros(B, bool),
  )


def advanced(search, logits_RV, beam, end, length_penalty, n_best, adjust, prefix, most_B):
  """Adds a token; returns the search and (B, beam) the hypotheses that its own go on from."""
  B = search.log_p.shape[0]
  log_p_BC, parents_BC, tokens_BC = _best(search, logits_RV, 2 * beam, adjust, prefix)
  said_BCL = jnp.take_along_axis(search.tokens, parents_BC[:, :, None], axis=1)
  said_BCL = said_BCL.at[:, :, search.length].set(tokens_BC)
  length = search.length + 1

  ends_BC = tokens_BC == end
  # An END below the first `beam` is dropped: else a beam of 1 would not be greedy, and a hopeless
  # END of the first step would stay in the pool for want of others.
  # And a row that has stopped stays as it is, however long the others take.
  counts_BC = ends_BC & (jnp.arange(2 * beam) < beam)[None] & ~search.done[:, None]
  scores_BC = jnp.where(counts_BC, log_p_BC / _penalty(length, length_penalty), -jnp.inf)
  new = Hypotheses(said_BCL, jnp.full((B, 2 * beam), length), scores_BC)
  both = _beside(search.finished, new)
  finished = _rows(both, jax.lax.top_k(both.scores, beam)[1])

  log_p_BM, kept_BM = jax.lax.top_k(jnp.where(ends_BC, -jnp.inf, log_p_BC), beam)
  # Whichever sign alpha has, the penalty is largest at one end of the lengths to come.
  ahead = (_penalty(length + 1, length_penalty), _penalty(most_B, length_penalty))
  reachable_B = log_p_BM[:, 0] / jnp.maximum(*ahead)
  parents_BM = jnp.take_along_axis(parents_BC, kept_BM, axis=1)
  said_BML = jnp.take_along_axis(said_BCL, kept_BM[:, :, None], axis=1)
  search = Search(
    length=length,
    tokens=jnp.where(search.done[:, None, None], search.tokens, said_BML),
    log_p=jnp.where(search.done[:, None], search.log_p, log_p_BM),
    finished=finished,
    done=search.done | (reachable_B <= finished.scores[:, n_best - 1]) | (length >= most_B),
  )
  return search, parents_BM


def _best(search, logits_RV, count, adjust, prefix):
  """Returns log p, hypothesis and token, each (B, count), of each row's best continuations."""
  B, M, L = search.tokens.shape
  prefix = jax.tree.map(lambda x: jnp.repeat(x, M, axis=0), prefix)
  allowed_RV = constrain(logits_RV, search.tokens.reshape(B * M, L), search.length, adjust, prefix)
  width = min(count, logits_RV.shape[1])
  logits_RC, tokens_RC = _top_k(allowed_RV, width)
  log_p_RC = search.log_p.reshape(B * M, 1) + (logits_RC - _log_sum_exp(logits_RV)[:, None])
  log_p_RC = jnp.where(log_p_RC > IMPOSSIBLE, log_p_RC, -jnp.inf)
  missing = ((0, 0), (0, max(0, count - M * width)))
  log_p_BC = jnp.pad(log_p_RC.reshape(B, -1), missing, constant_values=-jnp.inf)
  tokens_BC = jnp.pad(tokens_RC.reshape(B, -1), missing)
  log_p_BC, index_BC = jax.lax.top_k(log_p_BC, count)
  parents_BC = jnp.minimum(index_BC // width, M - 1)
  return log_p_BC, parents_BC, jnp.take_along_axis(tokens_BC, index_BC, axis=1)


def _answer(
  search: Search, n_best: int, length_penalty: float | Array, most_B: Array
) -> Hypotheses:
  beam = search.tokens.shape[1]
  lengths_BM = jnp.repeat(jnp.minimum(search.length, most_B)[:, None], beam, axis=1)
  scores_BM = search.log_p / _penalty(lengths_BM, length_penalty)
  running = Hypotheses(search.tokens, lengths_BM, scores_BM)
  both = _beside(search.finished, running)
  finished_B = jnp.isfinite(search.finished.scores).sum(1)[:, None]
  place_N = jnp.arange(n_best)[None]
  first = _rows(both, jnp.where(place_N < finished_B, place_N, beam + place_N - finished_B))
  exists_BN = jnp.isfinite(first.scores)
  return Hypotheses(
    tokens=jnp.where(exists_BN[:, :, None], first.tokens, 0),
    lengths=jnp.where(exists_BN, first.lengths, 0),
    scores=first.scores,
  )


def _beside(left: Hypotheses, right: Hypotheses) -> Hypotheses:
  return Hypotheses(*(jnp.concatenate(pair, axis=1) for pair in zip(left, right, strict=True)))


def _rows(hypotheses: Hypotheses, index_BN: Array) -> Hypotheses:
  pick = jax.vmap(lambda x, index: x[index])
  return Hypotheses(*(pick(x, index_BN) for x in hypotheses))


def _penalty(length: Array, alpha: float | Array) -> Array:
  return ((5 + length) / 6) ** alpha


def _top_k(x_RV: Array, k: int) -> tuple[Array, Array]:
  """Does what `jax.lax.top_k` does, in a fifth to a third of its time on CPUs.

  The k highest lie in the k windows of highest maximum: a window left out comes after k others
  that each hold a higher value, or an equal one further left.
  """
  V = x_RV.shape[1]
  if k * WINDOW >= V:
    return jax.lax.top_k(x_RV, k)
  windows_RK = jax.lax.top_k(_windows(x_RV, -jnp.inf, jax.lax.max), k)[1]
  # From left to right, so that of equals the leftmost is found.
  starts_RK = jnp.sort(windows_RK, axis=1) * WINDOW
  index_RC = (starts_RK[:, :, None] + jnp.arange(WINDOW)[None, None]).reshape(-1, k * WINDOW)
  found_RC = jnp.take_along_axis(x_RV, jnp.minimum(index_RC, V - 1), axis=1)
  values_RK, at_RK = jax.lax.top_k(jnp.where(index_RC < V, found_RC, -jnp.inf), k)
  return values_RK, jnp.minimum(jnp.take_along_axis(index_RC, at_RK, axis=1), V - 1)


def _log_sum_exp(x_RV: Array) -> Array:
  # On CPUs half the time of jax.nn.logsumexp at V = 50,000, if half a millisecond more at 8,000.
  highest_R = x_RV.max(1)
  return highest_R + jnp.log(_windows(jnp.exp(x_RV - highest_R[:, None]), 0.0, jax.lax.add).sum(1))


def _windows(x_RV: Array, initial: float, combine: Callable) -> Array:
  """Combines every WINDOW neighbours of a row into one; does not copy to fill up the last."""
  window, missing = (1, WINDOW), ((0, 0), (0, -x_RV.shape[1] % WINDOW))
  return jax.lax.reduce_window(x_RV, initial, combine, window, window, missing)
