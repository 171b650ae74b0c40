"""Decoding many prompts on the host, in batches of like lengths."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.decode.beam import beam_search, check_beam
from lm.decode.constraints import Adjust, Prefix
from lm.decode.generate import check_max_tokens, generate
from lm.decode.sampling import Choose, greedy, keys_of
from lm.decode.steps import branch_of, bucket, check_length, padded, prefill, step_of
from lm.errors import UserError
from lm.parallel import mesh as meshes
from lm.task import Features
from lm.types import Apply, Array, Params

# One row in so many is left over where it goes on for longer than the rest of its batch.
SPARE = 32
# What is written may be so many tokens longer than `max_ratio` allows.
SLACK = 10


class Strategy(NamedTuple):
  """How to decode: by `beam` search where that is above 1, else by what `choose` picks."""

  end: int  # the token that ends what is written
  max_tokens: int  # the most that is written, `end` included
  # Nor more than SLACK and so many for each token of a source, beside a prefix; 0 for no such rule.
  max_ratio: float = 0.0
  beam: int = 1
  length_penalty: float = 0.6
  n_best: int = 1
  choose: Choose = greedy
  adjust: tuple[Adjust, ...] = ()
  batch_size: int = 64


class Written(NamedTuple):
  """One text that a model has written."""

  tokens: list[int]  # without the token that ends it
  score: float  # log p, under beam search over the penalty of its length


def write(
  model: nn.Module,
  apply: Apply,
  params: Params,
  prompts: Sequence[Features],
  strategy: Strategy,
  draws: Sequence[int] | None = None,
  prefixes: Sequence[Sequence[int]] | None = None,
  seed: int = 0,
) -> list[list[Written]]:
  """Returns the `n_best` texts for each prompt, in the order of the prompts, best first.

  What is written depends on the prompt and its key alone, not on the other prompts or the size of
  the batches: these are made of prompts of like lengths only for speed. What has not ended where
  the model's context is full stops there. A prompt for which nothing is found has one empty text,
  of score -inf. Inside lm.parallel.mesh.set_mesh all devices decode each batch with sharded
  parameters; an `apply` is for one mesh.

  Args:
    model: has `init_cache`, `reorder_cache` and `context`.
    apply: its pure function.
    params: its parameters.
    prompts: as a converter's `prompt` makes them.
    strategy: how to decode.
    draws: for strategies that sample, the index of each prompt's key among those of the seed
      (`lm.decode.sampling.keys_of`); the indices of the prompts unless given.
    prefixes: token ids that the text of each prompt has to begin with.
    seed: of the keys of all prompts.

  Raises:
    UserError: the strategy does not fit the model, or a prompt is longer than the model reads.
  """
  found: dict[int, list[Written]] = {}
  for indices, texts in batches_of(model, apply, params, prompts, strategy, draws, prefixes, seed):
    found |= dict(zip(indices, texts, strict=True))
  return [found[i] for i in range(len(prompts))]


def batches_of(
  model: nn.Module,
  apply: Apply,
  params: Params,
  prompts: Sequence[Features],
  strategy: Strategy,
  draws: Sequence[int] | None = None,
  prefixes: Sequence[Sequence[int]] | None = None,
  seed: int = 0,
) -> Iterator[tuple[list[int], list[list[Written]]]]:
  """Yields the indices of some prompts and their texts, the longest first; see `write`."""
  order = _ordered(model, prompts, strategy, prefixes)
  draws = range(len(prompts)) if draws is None else draws
  left, doublings = order.left, 0
  while left:
    again: list[int] = []
    size = rows_of(strategy.batch_size, len(left))
    for start in range(0, len(left), size):
      indices = left[start : start + size]
      call = _call(prompts, strategy, order, indices, size, doublings)
      search = _compiled(model, apply, strategy, call.room, call.spare)
      drawn_by = np.uint32(seed), np.array([draws[i] for i in call.rows], np.uint32)
      prefix = None if prefixes is None else _prefix([prefixes[i] for i in call.rows], strategy)
      tokens, lengths, scores, complete = jax.device_get(
        search(params, call.batch, drawn_by, call.limits, prefix)
      )
      done = [row for row in range(len(indices)) if complete[row]]
      again += [i for row, i in enumerate(indices) if not complete[row]]
      texts = [_texts(tokens[row], lengths[row], scores[row], strategy.end) for row in done]
      yield [indices[row] for row in done], texts
    left = again
    doublings += 1


def trace(
  model: nn.Module, apply: Apply, params: Params, prompts: Sequence[Features], strategy: Strategy
) -> Any:
  """Returns the traced program of the first batch of `write`, whose prompts are the longest.

  Nothing is computed; `params` may be shapes. Batches that are begun again have fewer rows.

  Raises:
    UserError: as `write`.
  """
  order = _ordered(model, prompts, strategy, None)
  size = rows_of(strategy.batch_size, len(prompts))
  call = _call(prompts, strategy, order, order.left[:size], size, 0)
  search = _compiled(model, apply, strategy, call.room, call.spare)
  drawn_by = np.uint32(0), np.zeros(size, np.uint32)
  return search.trace(params, call.batch, drawn_by, call.limits, None)  # type: ignore[attr-defined]


class _Order(NamedTuple):
  """Prompts by their lengths."""

  sizes: list[tuple[int, int]]  # tokens of each prompt and of its source
  limits: np.ndarray  # int32, the most tokens to write for each prompt
  left: list[int]  # their indices, the longest first


def _ordered(
  model: nn.Module,
  prompts: Sequence[Features],
  strategy: Strategy,
  prefixes: Sequence[Sequence[int]] | None,
) -> _Order:
  """Returns the order in which prompts are decoded.

  Raises:
    UserError: as `write`.
  """
  check_beam(strategy.beam, model.vocab_size)
  if strategy.n_best > strategy.beam:
    raise UserError(f'--n_best={strategy.n_best} is more than --beam={strategy.beam}')
  check_max_tokens(strategy.max_tokens)  # here, for a cache has no room for less
  sizes = [_sizes(prompt) for prompt in prompts]
  for index, (tokens, source) in enumerate(sizes):
    for size in (tokens, source) if prompts[index].source else (tokens,):
      check_length(model, size, f'prompt {index + 1}')
  begun = [0] * len(prompts) if prefixes is None else list(map(len, prefixes))
  limits = np.array(
    [
      _limit(strategy, *size, n, None if model.reads_on else model.context)
      for size, n in zip(sizes, begun, strict=True)
    ],
    np.int32,
  )
  left = sorted(range(len(prompts)), key=lambda i: sizes[i][::-1], reverse=True)
  return _Order(sizes, limits, left)


class _Call(NamedTuple):
  """What one call of the compiled program decodes."""

  rows: list[int]  # the prompt of each row
  batch: dict[str, np.ndarray]
  limits: np.ndarray
  room: int
  spare: int


def _call(
  prompts: Sequence[Features],
  strategy: Strategy,
  order: _Order,
  indices: Sequence[int],
  size: int,
  doublings: int,
) -> _Call:
  """Returns some prompts, the longest first, as a batch of `size` rows.

  Rows that end within the room they are given are done; others are begun again with twice as much,
  for what is carried from step to step is as large as the room. And so are the last few of a batch,
  for a step of all its rows takes as long as ever.
  """
  # The last batch is filled up, for one shape has one program.
  rows = [indices[min(i, len(indices) - 1)] for i in range(size)]
  limits = order.limits[rows]
  room = min(bucket(int(limits.max())), _room(order.sizes[indices[0]][1]) << doublings)
  room = min(room, strategy.max_tokens)
  return _Call(rows, padded([prompts[i] for i in rows], bucket), limits, room, size // SPARE)


def rows_of(batch_size: int, prompts: int) -> int:
  """Returns how many rows to decode at once: a few sizes, each about half of the next.

  Inside lm.parallel.mesh.set_mesh they divide over the devices that rows are split over.
  """
  while batch_size // 2 >= prompts:
    batch_size //= 2
  return meshes.padded_rows(batch_size)


def _limit(strategy: Strategy, tokens: int, source: int, prefix: int, context: int | None) -> int:
  """Returns the most tokens to write, from the lengths of prompt, source and prefix, 0 for none."""
  most = strategy.max_tokens
  if context is not None:
    most = min(most, context - tokens + 1)  # the last one is not read again
  if source and strategy.max_ratio:
    most = min(most, math.ceil(strategy.max_ratio * source) + SLACK + prefix)
  return most


def _room(source: int) -> int:
  """Returns how much room to try first, from the length of the longest source, 0 for none."""
  return 2 * bucket(source) if source else 32


@functools.lru_cache(maxsize=32)
def _compiled(
  model: nn.Module, apply: Any, strategy: Strategy, room: int, spare: int
) -> Callable[..., Any]:
  """Returns a jitted `(params, batch, draws, limits, prefix) -> tokens, lengths, scores, done`.

  These are (B, N, L), (B, N), (B, N) and (B,), which says which rows are not to be begun again.
  """

  @jax.jit
  def search(
    params: Params,
    batch: dict[str, Array],
    draws: tuple[Array, Array],  # the seed and the draw of each row
    limits_B: Array,
    prefix: Prefix | None,
  ) -> tuple[Array, ...]:
    B, P = batch['inputs'].shape
    cache = model.init_cache(B, P + room * strategy.beam)
    logits_BV, state = prefill(apply, params, batch, cache)
    step = step_of(apply, params)
    if strategy.beam == 1:
      tokens, lengths, scores, done = generate(
        step,
        logits_BV,
        state,
        strategy.choose,
        keys_of(*draws),
        max_tokens=strategy.max_tokens,
        end=strategy.end,
        adjust=strategy.adjust,
        prefix=prefix,
        limits_B=limits_B,
        room=room,
        spare=spare,
      )
      return _everywhere((tokens[:, None], lengths[:, None], scores[:, None], done))
    hypotheses, done = beam_search(
      step,
      branch_of(model),
      logits_BV,
      state,
      beam=strategy.beam,
      max_tokens=strategy.max_tokens,
      end=strategy.end,
      length_penalty=strategy.length_penalty,
      n_best=strategy.n_best,
      adjust=strategy.adjust,
      prefix=prefix,
      limits_B=limits_B,
      room=room,
      spare=spare,
    )
    return _everywhere((*hypotheses, done))

  return search


def _everywhere(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
  """Returns arrays that every device has whole, and so each process can read."""
  return tuple(meshes.with_logical_constraint(x) for x in arrays)


def _prefix(prefixes: Sequence[Sequence[int]], strategy: Strategy) -> Prefix:
  longest = max(map(len, prefixes))
  if longest >= strategy.max_tokens:
    raise UserError(f'a prefix has {longest} tokens, and --max_tokens={strategy.max_tokens} in all')
  tokens = np.zeros((len(prefixes), bucket(longest)), np.int32)
  for row, ids in enumerate(prefixes):
    tokens[row, : len(ids)] = ids
  lengths = np.array([len(ids) for ids in prefixes], np.int32)
  return Prefix(jnp.asarray(tokens), jnp.asarray(lengths))


def _texts(
  tokens_NL: np.ndarray, lengths_N: np.ndarray, scores_N: np.ndarray, end: int
) -> list[Written]:
  several = enumerate(zip(tokens_NL, lengths_N, scores_N, strict=True))
  return [_written(ids[:n], score, end) for i, (ids, n, score) in several if n or i == 0]


def _written(tokens: np.ndarray, score: float, end: int) -> Written:
  ids = tokens.tolist()
  return Written(ids[:-1] if ids[-1:] == [end] else ids, float(score))


def _sizes(prompt: Features) -> tuple[int, int]:
  source = next(iter(prompt.source.values()), ())
  return len(next(iter(prompt.tokens.values()))), len(source)
