"""The decoding loop: a model reads prompts into its cache, then each step adds a token to each row.

Streaming (lm/decode/stream.py), batches and beam search (lm/decode/batch.py, lm/decode/beam.py),
and preflight run this loop. The tokens of a row depend on its prompt, its key and the parameters,
not on other rows, their number, or padding. The token at position p of a row, prompt included, is
sampled with `fold_in(row key, p)`. If a prompt is extended by the first tokens generated from it,
the rest of the text is thus the same.
"""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.decode.sampling import IMPOSSIBLE, LogitsProcessor, SampleFn, greedy, process_logits
from lm.errors import UserError
from lm.parallel import mesh as meshes
from lm.task import Features, concatenate_feature, stack_feature
from lm.types import Apply, Array, Params

# step(tokens_R, positions_R, cache) -> (logits_RV float32, cache): the logits after one more token
# of R independent rows. The cache is any pytree.
Step = Callable[[Array, Array, Any], tuple[Array, Any]]
State = TypeVar('State', bound=Any)


class DecodeConfig(NamedTuple):
  """How to decode: by beam search where `beam_size` is above 1, else with `sample_fn`."""

  end: int  # the token that ends a text
  max_tokens: int  # of a text, `end` included
  # Limits a text to this many tokens per token of its source, plus
  # lm.decode.batch.MIN_EXTRA_TOKENS; 0 for no such limit.
  max_length_ratio: float = 0.0
  beam_size: int = 1
  length_penalty: float = 0.6
  n_best: int = 1
  sample_fn: SampleFn = greedy
  logits_processors: tuple[LogitsProcessor, ...] = ()
  batch_size: int = 64


class DecodeState(NamedTuple):
  """B rows in the course of decoding, with buffers for L new tokens each."""

  tokens: Array  # (B, L) int32: the new tokens, `end` included, then zeros
  lengths: Array  # (B,) int32: the count of new tokens
  log_p: Array  # (B,) float32, nats: of the new tokens by the model, at temperature 1
  done: Array  # (B,) bool: the row has its `end`, its limit, or no token that is allowed
  positions: Array  # (B,) int32: of the last token, prompt included
  limits: Array  # (B,) int32: the maximum of `lengths`
  keys: Array  # (B,)
  prefix: Array | None  # (B, P) int32, what each text must begin with, then -1
  cache: Any


def prefill(
  apply: Apply, params: Params, batch: Mapping[str, Array], cache: Any
) -> tuple[Array, Array, Any]:
  """Reads prompts (R, P), padded at the end, into an empty cache.

  Returns:
    The logits (R, V) and the position (R,) of the token after each prompt, and the cache.
  """
  output = apply(params, batch, cache=cache)
  lengths_R = (batch['segments'] > 0).sum(1, dtype=jnp.int32)
  last_R1D = jnp.take_along_axis(output.hidden, lengths_R[:, None, None] - 1, axis=1)
  logits_RV = meshes.with_logical_constraint(output.head(last_R1D)[:, 0], 'cache_batch', 'vocab')
  return logits_RV, lengths_R, output.cache


def make_decode_step(apply: Apply, params: Params) -> Step:
  """Returns the `Step` of a model."""

  def step(tokens_R: Array, positions_R: Array, cache: Any) -> tuple[Array, Any]:
    batch = {
      'inputs': tokens_R[:, None],
      'segments': jnp.ones_like(tokens_R)[:, None],
      'positions': positions_R[:, None],
    }
    with meshes.weight_stationary():
      output = apply(params, batch, cache=cache)
      logits_RV = meshes.with_logical_constraint(
        output.head(output.hidden)[:, 0], 'cache_batch', 'vocab'
      )
    return logits_RV, output.cache

  return step


def init_state(
  config: DecodeConfig,
  logits_BV: Array,
  positions_B: Array,
  cache: Any,
  keys_B: Array,
  limits_B: Array,
  buffer_len: int,
  prefix_BP: Array | None = None,
) -> DecodeState:
  """Returns the state with the first token of each row; the logits are those of `prefill`."""
  B = logits_BV.shape[0]
  empty = DecodeState(
    tokens=jnp.zeros((B, buffer_len), jnp.int32),
    lengths=jnp.zeros(B, jnp.int32),
    log_p=jnp.zeros(B),
    done=jnp.zeros(B, bool),
    positions=positions_B,
    limits=limits_B,
    keys=keys_B,
    prefix=prefix_BP,
    cache=cache,
  )
  return _sample(config, empty, logits_BV)


def decode_step(step: Step, config: DecodeConfig, state: DecodeState) -> DecodeState:
  """Adds a token to each row that is not done."""
  last_B1 = jnp.take_along_axis(state.tokens, jnp.maximum(state.lengths - 1, 0)[:, None], axis=1)
  logits_BV, cache = step(last_B1[:, 0], state.positions, state.cache)
  state = state._replace(positions=state.positions + 1, cache=cache)
  return _sample(config, state, logits_BV)


def _sample(config: DecodeConfig, state: DecodeState, logits_BV: Array) -> DecodeState:
  allowed_BV = process_logits(
    logits_BV, state.tokens, state.lengths, config.logits_processors, state.prefix
  )
  keys_B = jax.vmap(jax.random.fold_in)(state.keys, state.positions)
  tokens_B = jax.vmap(config.sample_fn)(allowed_BV, keys_B).astype(jnp.int32)
  logits_B = jnp.take_along_axis(allowed_BV, tokens_B[:, None], axis=1)[:, 0]
  log_p_B = logits_B - jax.nn.logsumexp(logits_BV, axis=1)
  is_added_B = ~state.done & (log_p_B > IMPOSSIBLE)
  at_end_BL = jnp.arange(state.tokens.shape[1])[None] == state.lengths[:, None]
  lengths_B = state.lengths + is_added_B
  return state._replace(
    tokens=jnp.where(at_end_BL & is_added_B[:, None], tokens_B[:, None], state.tokens),
    lengths=lengths_B,
    log_p=state.log_p + jnp.where(state.done, 0.0, jnp.where(is_added_B, log_p_B, -jnp.inf)),
    done=~is_added_B | (tokens_B == config.end) | (lengths_B >= state.limits),
  )


def decode_loop(
  advance: Callable[[State], State], state: State, stop: int | Array, max_unfinished: int = 0
) -> State:
  """Returns a state advanced until each row is done or has `stop` new tokens.

  Args:
    advance: `decode_step` or `lm.decode.beam.beam_step`, with all arguments but the last bound.
    state: has `lengths` and `done`.
    stop: at most the buffer length; may be traced, so that one compiled program serves all values.
    max_unfinished: the loop also stops when at most this many rows are unfinished.
  """

  def is_unfinished(state: State) -> Array:
    return (~state.done & (state.lengths < stop)).sum() > max_unfinished

  return jax.lax.while_loop(is_unfinished, advance, state)


def check_decoding(
  model: nn.Module, apply: Apply, params: Params, batch: Mapping[str, Any]
) -> None:
  """Traces `prefill` and one step, without computing anything.

  Args:
    model: has `init_cache`.
    apply: its pure function.
    params: parameters, or their shapes.
    batch: prompts, from `pad_prompts`.

  Raises:
    UserError: from the model.
  """
  # A mode for debugging concrete values, which a trace lacks.
  if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
    return
  rows, length = batch['segments'].shape

  def read_and_step(params: Params, batch: Mapping[str, Array]) -> Array:
    cache = model.init_cache(rows, length + 1)
    logits_RV, positions_R, cache = prefill(apply, params, batch, cache)
    return make_decode_step(apply, params)(jnp.argmax(logits_RV, axis=-1), positions_R, cache)[0]

  jax.eval_shape(read_and_step, params, dict(batch))


def pad_prompts(prompts: Sequence[Features], length: Callable[[int], int]) -> dict[str, np.ndarray]:
  """Returns prompts as a batch, one per row, padded at the end.

  Args:
    prompts: tokens, those of the encoder input for a model with one, and values of the example.
    length: maps the length of the longest prompt, or encoder input, to the row length.
  """
  batch = _padded([prompt.tokens for prompt in prompts], '', length)
  if prompts[0].source:
    batch |= _padded([prompt.source for prompt in prompts], 'source_', length)
  for name in prompts[0].values:
    batch[name] = stack_feature(name, [prompt.values[name] for prompt in prompts])[:, None]
  return batch


def _padded(
  rows: Sequence[Mapping[str, np.ndarray]], prefix: str, length: Callable[[int], int]
) -> dict[str, np.ndarray]:
  sizes = [len(next(iter(row.values()))) for row in rows]
  index = np.arange(length(max(sizes)))[None]
  inside = index < np.array(sizes)[:, None]
  batch = {
    f'{prefix}segments': inside.astype(np.int32),
    f'{prefix}positions': np.where(inside, index, 0).astype(np.int32),
  }
  for name in rows[0]:
    flat = concatenate_feature(name, [row[name] for row in rows])
    batch[name] = np.zeros((*inside.shape, *flat.shape[1:]), flat.dtype)
    batch[name][inside] = flat
  return batch


def check_prompt_length(model: nn.Module, size: int, name: str) -> None:
  """Checks that a model can read a prompt of `size` tokens; errors call the prompt `name`.

  If a model reads rows longer than those of its training, each process prints one warning.

  Raises:
    UserError: there are no tokens, or more than the model reads.
  """
  if size < 1:
    raise UserError(f'{name} has no tokens; a model reads at least one')
  if size > model.context and not model.reads_on:
    raise UserError(f'{name} has {size} tokens and the model reads {model.context}')
  if size > model.context:
    _warn_of_length(model.context)


@functools.cache
def _warn_of_length(context: int) -> None:
  print(
    f'warning: the model was trained on texts of at most {context} tokens; it may be less accurate '
    'on longer ones',
    file=sys.stderr,
  )


def bucket(length: int) -> int:
  """Returns the smallest allowed row length from `length` on, so that few shapes compile.

  Allowed lengths are powers of two, and the numbers halfway between two of them, from 16 on. A
  single token, such as the END from which a decoder begins, keeps the length 1.
  """
  if length == 1:
    return 1
  power = max(16, 1 << max(0, length - 1).bit_length())
  halfway = 3 * power // 4
  return halfway if 16 <= length <= halfway else power
