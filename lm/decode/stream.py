"""Continuing prompts token by token over one `step(tokens, cache) -> logits, cache`.

A row's tokens depend on its prompt, its key and the parameters alone: not on the other rows, on
how many there are, or on padding.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.decode.sampling import Choose, keys_of
from lm.decode.steps import State, bucket, padded, prefill, step_of
from lm.parallel import mesh as meshes
from lm.task import Features
from lm.types import Apply, Array, Params

# Tokens made in one call of the compiled loop: what a dispatch costs is shared by as many.
STRIDE = 8


def stream(
  model: nn.Module,
  apply: Apply,
  params: Params,
  prompts: Sequence[Sequence[int]],
  choose: Choose,
  draws: Sequence[int],
  max_tokens: int,
  seed: int = 0,
) -> Iterator[np.ndarray]:
  """Yields the next token of every row, (B,) int32, `max_tokens` times.

  Inside lm.parallel.mesh.set_mesh the rows and their KV cache are sharded, and parameters stay
  sharded. Several processes must then all call this, with the same arguments.
  Args:
    model: has `init_cache(batch_size, length)`.
    apply: the model's pure function; one function for each mesh.
    params: its parameters.
    prompts: token ids, at least one a row; a row's first is usually the end-of-text token.
    choose: picks a token from a row's logits with the row's own key.
    draws: of each row, the index of its key among those of the seed (`keys_of`).
    max_tokens: how many tokens to yield; the reader stops earlier by not asking for more.
    seed: of the keys of all rows.
  """
  # The last row is repeated until the rows divide over the devices.
  indices = np.minimum(np.arange(meshes.padded_rows(len(prompts))), len(prompts) - 1)
  rows = [Features({'inputs': np.array(prompts[i])}, {}, {}) for i in indices]
  batch = padded(rows, bucket)
  slots = batch['inputs'].shape[1] + -(-max_tokens // STRIDE) * STRIDE
  draws_B = np.asarray(draws, np.uint32)[indices]
  logits, state, keys = _begin(model, apply, slots, params, batch, np.uint32(seed), draws_B)
  for start in range(0, max_tokens, STRIDE):
    tokens, logits, state = _several(apply, choose, params, logits, state, keys)
    yield from np.asarray(tokens)[: max_tokens - start, : len(prompts)]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _begin(
  model: nn.Module,
  apply: Apply,
  slots: int,
  params: Params,
  batch: Mapping[str, Array],
  seed: Array,
  draws_B: Array,
) -> tuple[Array, State, Array]:
  """Reads the prompts into a new KV cache; returns logits (B, V), the state and keys (B,)."""
  logits_BV, state = prefill(apply, params, batch, model.init_cache(len(draws_B), slots))
  return logits_BV, state, keys_of(seed, draws_B)


def several(
  apply: Apply,
  choose: Choose,
  params: Params,
  logits_BV: Array,
  state: State,
  keys_B: Array,
  steps: int = STRIDE,
) -> tuple[Array, Array, State]:
  """Takes some steps; returns tokens (steps, B) and what the next call needs."""
  step = step_of(apply, params)

  def body(carry, _):
    logits_BV, state = carry
    step_keys = jax.vmap(jax.random.fold_in)(keys_B, state.positions)
    tokens_B = jax.vmap(choose)(logits_BV, step_keys).astype(jnp.int32)
    return step(tokens_B, state), tokens_B

  (logits_BV, state), tokens = jax.lax.scan(body, (logits_BV, state), length=steps)
  return (
    meshes.with_logical_constraint(tokens),
    logits_BV,
    state,
  )  # each process reads the tokens of all rows


_several = jax.jit(several, static_argnums=(0, 1), donate_argnums=4)
