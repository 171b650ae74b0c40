"""A model as the one function that all decode over: `step(tokens, state) -> (logits, state)`."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.errors import UserError
from lm.parallel import mesh as meshes
from lm.task import Features, joined
from lm.types import Apply, Array, Params


class State(NamedTuple):
  """What a model remembers of R independent rows, and the position (R,) of their next tokens."""

  cache: Any
  positions: Array


def prefill(
  apply: Apply, params: Params, batch: Mapping[str, Array], cache: Any
) -> tuple[Array, State]:
  """Reads prompts, (R, P) with padding behind, into an empty cache.

  Returns:
    The logits (R, V) of the token after each prompt, and the state.
  """
  output = apply(params, batch, cache=cache)
  lengths_R = (batch['segments'] > 0).sum(1)
  last_R1D = jnp.take_along_axis(output.hidden, lengths_R[:, None, None] - 1, axis=1)
  logits_RV = meshes.with_logical_constraint(output.head(last_R1D)[:, 0], 'cache_batch', 'vocab')
  return logits_RV, State(output.cache, lengths_R.astype(jnp.int32))


def step_of(apply: Apply, params: Params) -> Callable[[Array, State], tuple[Array, State]]:
  """Returns `step(tokens_R, state) -> (logits_RV, state)` of a model."""

  def step(tokens_R: Array, state: State) -> tuple[Array, State]:
    batch = {
      'inputs': tokens_R[:, None],
      'segments': jnp.ones_like(tokens_R)[:, None],
      'positions': state.positions[:, None],
    }
    with meshes.weight_stationary():
      output = apply(params, batch, cache=state.cache)
      logits_RV = meshes.with_logical_constraint(
        output.head(output.hidden)[:, 0], 'cache_batch', 'vocab'
      )
    return logits_RV, State(output.cache, state.positions + 1)

  return step


def check_step(model: nn.Module, apply: Apply, params: Params, batch: Mapping[str, Any]) -> None:
  """Traces reading prompts and one step after them, without computing anything.

  Args:
    model: has `init_cache`.
    apply: its pure function.
    params: parameters, or their shapes.
    batch: prompts, as `padded` makes them.

  Raises:
    UserError: from the model.
  """
  if jax.config.jax_disable_jit:  # to look at real values; here there are none
    return
  rows, slots = batch['segments'].shape

  def read_and_step(params: Params, batch: Mapping[str, Array]) -> Array:
    cache = model.init_cache(rows, slots + 1)
    logits_RV, state = prefill(apply, params, batch, cache)
    return step_of(apply, params)(jnp.argmax(logits_RV, axis=-1), state)[0]

  jax.eval_shape(read_and_step, params, dict(batch))


def branch_of(model: nn.Module) -> Callable[[State, Array], State]:
  """Returns the `lm.decode.beam.Branch` of a model."""

  def branch(state: State, parents_BM: Array) -> State:
    positions_BM = state.positions.reshape(parents_BM.shape[0], -1)
    positions_BM = jnp.take_along_axis(positions_BM, parents_BM, axis=1)
    return State(model.reorder_cache(state.cache, parents_BM), positions_BM.reshape(-1))

  return branch


def padded(prompts: Sequence[Features], length: Callable[[int], int]) -> dict[str, np.ndarray]:
  """Returns prompts as a batch, each in a row of its own.

  Args:
    prompts: what is along the row, and along that of an encoder beside.
    length: from the longest prompt, or source, to how many slots a row has.
  """
  batch = _padded([prompt.tokens for prompt in prompts], '', length)
  if prompts[0].source:
    batch |= _padded([prompt.source for prompt in prompts], 'source_', length)
  return batch


def _padded(
  rows: Sequence[Mapping[str, np.ndarray]], prefix: str, length: Callable[[int], int]
) -> dict[str, np.ndarray]:
  sizes = [len(next(iter(row.values()))) for row in rows]
  slots = np.arange(length(max(sizes)))[None]
  inside = slots < np.array(sizes)[:, None]
  batch = {
    f'{prefix}segments': inside.astype(np.int32),
    f'{prefix}positions': np.where(inside, slots, 0).astype(np.int32),
  }
  for name in rows[0]:
    flat = joined(name, [row[name] for row in rows])
    values = np.zeros(inside.shape, flat.dtype)
    values[inside] = flat
    batch[name] = values
  return batch


def check_length(model: nn.Module, size: int, what: str) -> None:
  """Sees to it that a model can read `size` tokens; `what` they are of, for messages.

  A model that reads on beyond the rows it was trained on does so, and a warning on stderr says it,
  once a process.

  Raises:
    UserError: there are none, or more than the model reads.
  """
  if size < 1:
    raise UserError(f'{what} has no tokens; a model reads at least one')
  if size > model.context and not model.reads_on:
    raise UserError(f'{what} has {size} tokens and the model reads {model.context}')
  if size > model.context:
    _warn_of_length(model.context)


@functools.cache
def _warn_of_length(context: int) -> None:
  print(
    f'warning: what is longer than {context} tokens is longer than all that the model was trained '
    'on; it is read, and may be understood worse',
    file=sys.stderr,
  )


def bucket(length: int, least: int = 16) -> int:
  """Returns slots for a length: powers of two and halfway between, so that few are compiled."""
  if length == 1:
    return 1  # END alone, before what a decoder writes
  power = max(least, 1 << max(0, length - 1).bit_length())
  halfway = 3 * power // 4
  return halfway if least <= length <= halfway else power
