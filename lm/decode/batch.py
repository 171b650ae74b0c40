"""Decoding of many prompts from the host, in batches of similar lengths, the longest first."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from lm.decode.beam import (
  BeamState,
  Hypotheses,
  beam_step,
  best_hypotheses,
  check_beam_size,
  init_beam,
)
from lm.decode.loop import (
  DecodeConfig,
  DecodeState,
  bucket,
  check_prompt_length,
  decode_loop,
  decode_step,
  init_state,
  make_decode_step,
  pad_prompts,
  prefill,
)
from lm.decode.sampling import row_keys
from lm.errors import UserError, check_range
from lm.parallel import mesh as meshes
from lm.task import Features
from lm.types import Apply, Array, Params

# A batch stops once at most one row in UNFINISHED_SHARE is unfinished; such rows are retried.
UNFINISHED_SHARE = 32
# Tokens that a text may have in addition to `max_length_ratio` times the length of its source.
MIN_EXTRA_TOKENS = 10


class Generation(NamedTuple):
  """One generated text."""

  tokens: list[int]  # without the end token
  score: float  # log p; with beam search divided by the length penalty


def generate_batch(
  model: nn.Module,
  apply: Apply,
  params: Params,
  prompts: Sequence[Features],
  config: DecodeConfig,
  key_indices: Sequence[int] | None = None,
  prefixes: Sequence[Sequence[int]] | None = None,
  seed: int = 0,
) -> list[list[Generation]]:
  """Returns the `n_best` texts of each prompt, in the order of the prompts, best first.

  A text depends on its prompt and key alone, not on the other prompts or the batch size: prompts of
  similar lengths share a batch for speed. A text that reaches the model's context is cut off there.
  A prompt without any possible text has one empty text, of score -inf. Inside
  lm.parallel.mesh.set_mesh all devices of the mesh decode each batch together, with sharded
  parameters; each mesh needs its own `apply`.

  Args:
    model: has `init_cache`, `reorder_cache`, `context`, `reads_on` and `vocab_size`.
    apply: its pure function.
    params: its parameters.
    prompts: from `encode_prompt` of a converter.
    config: how to decode.
    key_indices: for sampling, the index of each prompt's key among those of the seed
      (`lm.decode.sampling.row_keys`); the index of the prompt by default.
    prefixes: token ids that the text of each prompt must begin with.
    seed: of the keys of all prompts.

  Raises:
    UserError: the config does not fit the model, or a prompt is longer than the model reads.
  """
  order, make_call = _plan(model, apply, prompts, config, key_indices, prefixes, seed)
  generations: dict[int, list[Generation]] = {}
  pending, retries = order, 0
  while pending:
    size = rows_per_batch(config.batch_size, len(pending))
    for start in range(0, len(pending), size):
      indices = pending[start : start + size]
      decode, args = make_call(indices, size, retries)
      texts, done = jax.device_get(decode(params, *args))
      for row, index in enumerate(indices):
        if done[row]:
          generations[index] = _generations(Hypotheses(*(x[row] for x in texts)), config.end)
    pending = [index for index in pending if index not in generations]
    retries += 1
  return [generations[i] for i in range(len(prompts))]


def trace_generation(
  model: nn.Module, apply: Apply, params: Params, prompts: Sequence[Features], config: DecodeConfig
) -> Any:
  """Returns the traced program of the first batch of `generate_batch`.

  That batch has the longest prompts. Nothing is computed; `params` may be shapes. Retried batches
  have fewer rows.

  Raises:
    UserError: as `generate_batch`.
  """
  order, make_call = _plan(model, apply, prompts, config)
  size = rows_per_batch(config.batch_size, len(prompts))
  decode, args = make_call(order[:size], size, 0)
  return decode.trace(params, *args)


def _plan(
  model: nn.Module,
  apply: Apply,
  prompts: Sequence[Features],
  config: DecodeConfig,
  key_indices: Sequence[int] | None = None,
  prefixes: Sequence[Sequence[int]] | None = None,
  seed: int = 0,
) -> tuple[list[int], Callable[[Sequence[int], int, int], tuple[Any, tuple[Any, ...]]]]:
  """Returns the indices of the prompts, the longest first, and `make_call`.

  `make_call(indices, size, retries)` returns the compiled program that decodes a batch of `size`
  rows, and its arguments after `params`.
  """
  check_beam_size(config.beam_size, model.vocab_size)
  if not 1 <= config.n_best <= config.beam_size:
    raise UserError(f'--n_best={config.n_best} is not between 1 and --beam_size={config.beam_size}')
  check_range('--max_tokens', config.max_tokens, 1)
  keys = np.arange(len(prompts)) if key_indices is None else np.asarray(key_indices)
  forced = [()] * len(prompts) if prefixes is None else prefixes
  sizes, limits = [], np.full(len(prompts), config.max_tokens, np.int32)
  for i, prompt in enumerate(prompts):
    tokens = len(next(iter(prompt.tokens.values())))
    source = len(next(iter(prompt.source.values()), ()))
    for size in (tokens, source) if prompt.source else (tokens,):
      check_prompt_length(model, size, f'prompt {i + 1}')
    if len(forced[i]) >= config.max_tokens:
      raise UserError(
        f'a prefix has {len(forced[i])} tokens; --max_tokens={config.max_tokens} includes them and '
        'must be larger'
      )
    if not model.reads_on:
      limits[i] = min(limits[i], model.context - tokens + 1)  # the last token is not read
    if source and config.max_length_ratio:
      most = math.ceil(config.max_length_ratio * source) + MIN_EXTRA_TOKENS + len(forced[i])
      limits[i] = min(limits[i], most)
    sizes.append((source, tokens))

  def make_call(indices: Sequence[int], size: int, retries: int) -> tuple[Any, tuple[Any, ...]]:
    # The last prompt fills up the last batch, so that all batches share a compiled program.
    rows = [indices[min(i, len(indices) - 1)] for i in range(size)]
    # Every step reads and writes the buffers, so they are short at first. Texts that exceed
    # them, and the last few of a batch, are retried with buffers twice as long.
    source = sizes[indices[0]][0]
    first = 2 * bucket(source) if source else 32
    buffer_len = min(bucket(int(limits[rows].max())), first << retries, config.max_tokens)
    decode = _compiled(model, apply, config, buffer_len, size // UNFINISHED_SHARE)
    prefix = None if prefixes is None else _prefix([prefixes[i] for i in rows])
    seeds = np.uint32(seed), keys[rows].astype(np.uint32)
    return decode, (pad_prompts([prompts[i] for i in rows], bucket), seeds, limits[rows], prefix)

  return sorted(range(len(prompts)), key=sizes.__getitem__, reverse=True), make_call


def rows_per_batch(batch_size: int, prompts: int) -> int:
  """Returns the number of rows of a batch: `batch_size`, halved as long as all prompts fit.

  All calls thus compile for a few sizes. Inside lm.parallel.mesh.set_mesh the rows divide over the
  devices that shard them.
  """
  while batch_size // 2 >= prompts:
    batch_size //= 2
  return meshes.padded_rows(batch_size)


@functools.lru_cache(maxsize=32)
def _compiled(
  model: nn.Module, apply: Any, config: DecodeConfig, buffer_len: int, max_unfinished: int
) -> Any:
  """Returns a jitted `(params, batch, seeds, limits_B, prefix_BP) -> texts, done_B`.

  `seeds` are the seed and the key indices (B,). A row that is not done needs a retry.
  """

  @jax.jit
  def decode(
    params: Params,
    batch: dict[str, Array],
    seeds: tuple[Array, Array],
    limits_B: Array,
    prefix_BP: Array | None,
  ) -> tuple[Hypotheses, Array]:
    rows = batch, row_keys(*seeds), limits_B, prefix_BP
    step = functools.partial(advance, model, apply, config, params)
    state = begin(model, apply, config, buffer_len, params, *rows)
    state = decode_loop(step, state, buffer_len, max_unfinished)
    hypotheses = (
      best_hypotheses(config, state)
      if isinstance(state, BeamState)
      else Hypotheses(state.tokens[:, None], state.lengths[:, None], state.log_p[:, None])
    )
    # Replicated, so that each process can read them.
    return jax.tree.map(meshes.with_logical_constraint, (hypotheses, state.done))

  return decode


def begin(
  model: nn.Module,
  apply: Apply,
  config: DecodeConfig,
  buffer_len: int,
  params: Params,
  batch: dict[str, Array],
  keys_B: Array,
  limits_B: Array,
  prefix_BP: Array | None = None,
) -> DecodeState | BeamState:
  """Reads the prompts of a batch; returns the state with the first token of each row."""
  B, P = batch['inputs'].shape
  read = prefill(apply, params, batch, model.init_cache(B, P + buffer_len * config.beam_size))
  if config.beam_size > 1:
    return init_beam(config, model.reorder_cache, *read, limits_B, buffer_len, prefix_BP)
  return init_state(config, *read, keys_B, limits_B, buffer_len, prefix_BP)


def advance(
  model: nn.Module, apply: Apply, config: DecodeConfig, params: Params, state: Any
) -> DecodeState | BeamState:
  """Returns the state with one more token."""
  step = make_decode_step(apply, params)
  if config.beam_size > 1:
    return beam_step(step, model.reorder_cache, config, state)
  return decode_step(step, config, state)


def _prefix(prefixes: Sequence[Sequence[int]]) -> np.ndarray:
  width = bucket(max(map(len, prefixes)) + 1)
  return np.array([[*ids, *[-1] * (width - len(ids))] for ids in prefixes], np.int32)


def _generations(of_row: Hypotheses, end: int) -> list[Generation]:
  generations: list[Generation] = []
  for tokens, length, score in zip(of_row.tokens.tolist(), *of_row[1:], strict=True):
    ids = tokens[:length]
    if ids or not generations:
      generations.append(Generation(ids[:-1] if ids[-1:] == [end] else ids, float(score)))
  return generations
