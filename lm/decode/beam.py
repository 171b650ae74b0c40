"""Beam search: the most probable continuations of each row.

Each step finds the `2 * beam_size` best continuations of a row among `beam_size * V`. Those that
end, and are among the first `beam_size`, move to the finished hypotheses, of which the best
`beam_size` are kept. The first `beam_size` that do not end stay running. A row's results depend on
its own logits and cache alone.

A hypothesis of n tokens, the end token and any prefix included, scores log p / ((5 + n) / 6)^alpha
(Wu et al. 2016). Its log p is the model's, lowered by the logits processors. A row is done when no
running hypothesis can exceed the score of its n_best-th finished one. Stopping then changes no
result: log p only falls, and the bound uses the largest penalty of all remaining lengths.

Hypotheses that are cut off at the limit come after all finished ones. They would otherwise displace
finished hypotheses, as their log p does not include an end token. Among equal scores, the earlier
hypothesis comes first. Equal continuations are ordered by the rank of their hypothesis, then by
token id.

With one beam and no length penalty this is greedy decoding. With as many beams as hypotheses exist
the search is exhaustive.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.decode.loop import DecodeConfig, Step
from lm.decode.sampling import IMPOSSIBLE, process_logits
from lm.errors import UserError
from lm.types import Array

# reorder(cache, parents_BM) -> cache with M beams per row. Beam m of row b is row b * M + m of a
# step; it continues beam parents_BM[b, m]. Before the first call each row has one beam.
Reorder = Callable[[Any, Array], Any]

# _top_k and _log_sum_exp reduce the logits of a row in windows of this size.
WINDOW = 32


class Hypotheses(NamedTuple):
  """The N best texts of each row: finished texts, then those cut off, each by descending score.

  A missing text has length 0 and score -inf.
  """

  tokens: Array  # (B, N, L) int32, then zeros; without an end token for a text that is cut off
  lengths: Array  # (B, N) int32, end token included
  scores: Array  # (B, N) float32, log p / penalty(length)


class BeamState(NamedTuple):
  """The hypotheses of B rows in the course of a search; see lm.decode.loop.DecodeState."""

  lengths: Array  # () int32, of all running hypotheses
  tokens: Array  # (B, M, L) int32; M is 1 before the first token, then the beam size
  log_p: Array  # (B, M) float32, descending; -inf for a missing hypothesis
  finished: Hypotheses  # `beam_size` per row
  done: Array  # (B,) bool
  positions: Array  # (B,) int32
  limits: Array  # (B,) int32
  prefix: Array | None  # (B, P) int32
  cache: Any


def check_beam_size(beam_size: int, vocab_size: int) -> None:
  """Raises UserError unless the first token can fill the beams with different hypotheses."""
  if not 1 <= beam_size <= vocab_size:
    raise UserError(
      f'--beam_size={beam_size} is not between 1 and {vocab_size}, the size of the vocabulary'
    )


def init_beam(
  config: DecodeConfig,
  reorder: Reorder,
  logits_BV: Array,
  positions_B: Array,
  cache: Any,
  limits_B: Array,
  buffer_len: int,
  prefix_BP: Array | None = None,
) -> BeamState:
  """Returns the state with the first tokens; the logits are those of lm.decode.loop.prefill."""
  B, M = logits_BV.shape[0], config.beam_size
  none = Hypotheses(
    tokens=jnp.zeros((B, M, buffer_len), jnp.int32),
    lengths=jnp.zeros((B, M), jnp.int32),
    scores=jnp.full((B, M), -jnp.inf),
  )
  empty = BeamState(
    lengths=jnp.int32(0),
    tokens=none.tokens[:, :1],
    log_p=jnp.zeros((B, 1)),
    finished=none,
    done=jnp.zeros(B, bool),
    positions=positions_B,
    limits=limits_B,
    prefix=prefix_BP,
    cache=cache,
  )
  return _update(config, reorder, empty, logits_BV)


def beam_step(step: Step, reorder: Reorder, config: DecodeConfig, state: BeamState) -> BeamState:
  """Adds a token to the running hypotheses of all rows that are not done."""
  last_BM = jax.lax.dynamic_index_in_dim(state.tokens, state.lengths - 1, 2, keepdims=False)
  positions_R = jnp.repeat(state.positions, last_BM.shape[1])
  logits_RV, cache = step(last_BM.reshape(-1), positions_R, state.cache)
  state = state._replace(positions=state.positions + 1, cache=cache)
  return _update(config, reorder, state, logits_RV)


def _update(
  config: DecodeConfig, reorder: Reorder, state: BeamState, logits_RV: Array
) -> BeamState:
  B, beam = state.log_p.shape[0], config.beam_size
  log_p_BC, parents_BC, tokens_BC = _best_continuations(config, state, logits_RV)
  texts_BCL = jnp.take_along_axis(state.tokens, parents_BC[:, :, None], axis=1)
  texts_BCL = texts_BCL.at[:, :, state.lengths].set(tokens_BC)
  lengths = state.lengths + 1

  ends_BC = tokens_BC == config.end
  # Only the first `beam` continuations can become finished hypotheses. Otherwise a search with one
  # beam would not be greedy. At the first step, while few hypotheses exist, an improbable end token
  # would also count as a finished text. A row that is done does not change while other rows
  # continue.
  counts_BC = ends_BC & (jnp.arange(2 * beam) < beam)[None] & ~state.done[:, None]
  scores_BC = jnp.where(counts_BC, log_p_BC / _penalty(config, lengths), -jnp.inf)
  new = Hypotheses(texts_BCL, jnp.full((B, 2 * beam), lengths), scores_BC)
  both = _concat_beams(state.finished, new)
  finished = _gather_beams(both, jax.lax.top_k(both.scores, beam)[1])

  log_p_BM, kept_BM = jax.lax.top_k(jnp.where(ends_BC, -jnp.inf, log_p_BC), beam)
  # For either sign of alpha the penalty is largest at one end of the remaining lengths.
  ahead = _penalty(config, lengths + 1), _penalty(config, state.limits)
  reachable_B = log_p_BM[:, 0] / jnp.maximum(*ahead)
  parents_BM = jnp.take_along_axis(parents_BC, kept_BM, axis=1)
  texts_BML = jnp.take_along_axis(texts_BCL, kept_BM[:, :, None], axis=1)
  is_beaten_B = reachable_B <= finished.scores[:, config.n_best - 1]
  return state._replace(
    lengths=lengths,
    tokens=jnp.where(state.done[:, None, None], state.tokens, texts_BML),
    log_p=jnp.where(state.done[:, None], state.log_p, log_p_BM),
    finished=finished,
    done=state.done | is_beaten_B | (lengths >= state.limits),
    cache=reorder(state.cache, parents_BM),
  )


def _best_continuations(
  config: DecodeConfig, state: BeamState, logits_RV: Array
) -> tuple[Array, Array, Array]:
  """Returns log p, parent and token, each (B, 2 * beam_size), of each row's best continuations."""
  B, M, L = state.tokens.shape
  count = 2 * config.beam_size
  prefix_RP = None if state.prefix is None else jnp.repeat(state.prefix, M, axis=0)
  lengths_R = jnp.full(B * M, state.lengths)
  texts_RL = state.tokens.reshape(B * M, L)
  allowed_RV = process_logits(logits_RV, texts_RL, lengths_R, config.logits_processors, prefix_RP)
  width = min(count, logits_RV.shape[1])
  logits_RC, tokens_RC = _top_k(allowed_RV, width)
  log_p_RC = state.log_p.reshape(B * M, 1) + (logits_RC - _log_sum_exp(logits_RV)[:, None])
  log_p_RC = jnp.where(log_p_RC > IMPOSSIBLE, log_p_RC, -jnp.inf)
  missing = ((0, 0), (0, max(0, count - M * width)))
  log_p_BC = jnp.pad(log_p_RC.reshape(B, -1), missing, constant_values=-jnp.inf)
  tokens_BC = jnp.pad(tokens_RC.reshape(B, -1), missing)
  log_p_BC, index_BC = jax.lax.top_k(log_p_BC, count)
  parents_BC = jnp.minimum(index_BC // width, M - 1)
  return log_p_BC, parents_BC, jnp.take_along_axis(tokens_BC, index_BC, axis=1)


def best_hypotheses(config: DecodeConfig, state: BeamState) -> Hypotheses:
  """Returns the `n_best` hypotheses of each row."""
  beam = config.beam_size
  lengths_BM = jnp.repeat(jnp.minimum(state.lengths, state.limits)[:, None], beam, axis=1)
  running = Hypotheses(state.tokens, lengths_BM, state.log_p / _penalty(config, lengths_BM))
  finished_B1 = jnp.isfinite(state.finished.scores).sum(1)[:, None]
  place_N = jnp.arange(config.n_best)[None]
  index_BN = jnp.where(place_N < finished_B1, place_N, beam + place_N - finished_B1)
  best = _gather_beams(_concat_beams(state.finished, running), index_BN)
  exists_BN = jnp.isfinite(best.scores)
  return Hypotheses(
    tokens=jnp.where(exists_BN[:, :, None], best.tokens, 0),
    lengths=jnp.where(exists_BN, best.lengths, 0),
    scores=best.scores,
  )


def _concat_beams(left: Hypotheses, right: Hypotheses) -> Hypotheses:
  return Hypotheses(*(jnp.concatenate(pair, axis=1) for pair in zip(left, right, strict=True)))


def _gather_beams(hypotheses: Hypotheses, index_BN: Array) -> Hypotheses:
  gather = jax.vmap(lambda x, index: x[index])
  return Hypotheses(*(gather(x, index_BN) for x in hypotheses))


def _penalty(config: DecodeConfig, length: Array) -> Array:
  return ((5 + length) / 6) ** config.length_penalty


def _top_k(x_RV: Array, k: int) -> tuple[Array, Array]:
  """Returns `jax.lax.top_k`, in a fifth to a third of its time on CPUs.

  The k windows with the highest maxima contain the k highest values: for a value of another window,
  each of the k windows has a higher value, or an equal one further left.
  """
  V = x_RV.shape[1]
  if k * WINDOW >= V:
    return jax.lax.top_k(x_RV, k)
  windows_RK = jax.lax.top_k(_reduce_windows(x_RV, -jnp.inf, jax.lax.max), k)[1]
  # From left to right, so that the leftmost of equal values wins.
  starts_RK = jnp.sort(windows_RK, axis=1) * WINDOW
  index_RC = (starts_RK[:, :, None] + jnp.arange(WINDOW)[None, None]).reshape(-1, k * WINDOW)
  values_RC = jnp.take_along_axis(x_RV, jnp.minimum(index_RC, V - 1), axis=1)
  values_RK, at_RK = jax.lax.top_k(jnp.where(index_RC < V, values_RC, -jnp.inf), k)
  return values_RK, jnp.minimum(jnp.take_along_axis(index_RC, at_RK, axis=1), V - 1)


def _log_sum_exp(x_RV: Array) -> Array:
  # On CPUs this takes half the time of jax.nn.logsumexp at V = 50,000, but half a millisecond more
  # than it at V = 8,000.
  highest_R = x_RV.max(1)
  exp_RV = jnp.exp(x_RV - highest_R[:, None])
  return highest_R + jnp.log(_reduce_windows(exp_RV, 0.0, jax.lax.add).sum(1))


def _reduce_windows(x_RV: Array, initial: float, combine: Callable) -> Array:
  """Reduces every WINDOW neighbors of a row, without a padded copy for the last window."""
  window, missing = (1, WINDOW), ((0, 0), (0, -x_RV.shape[1] % WINDOW))
  return jax.lax.reduce_window(x_RV, initial, combine, window, window, missing)
