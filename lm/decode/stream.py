"""Continuing prompts token by token over one `step(tokens, cache) -> logits, cache`.

A row's tokens depend on its prompt, its key and the parameters alone: not on the other rows, on
how many there are, or on padding.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.decode.sampling import Choose
from lm.types import Apply, Array, Params

# Tokens made in one call of the compiled loop: what a dispatch costs is shared by as many.
STRIDE = 8


def stream(
  model: nn.Module,
  apply: Apply,
  params: Params,
  prompts: Sequence[Sequence[int]],
  choose: Choose,
  seeds: Sequence[int],
  max_tokens: int,
) -> Iterator[np.ndarray]:
  """Yields the next token of every row, (B,) int32, `max_tokens` times.

  Args:
    model: has `init_cache(batch_size, length)`.
    apply: the model's pure function.
    params: its parameters.
    prompts: token ids, at least one a row; a row's first is usually the end-of-text token.
    choose: picks a token from a row's logits with the row's own key.
    seeds: a row's source of randomness, one a row.
    max_tokens: how many tokens to yield; the reader stops earlier by not asking for more.
  """
  B, longest = len(prompts), max(map(len, prompts))
  P = _bucket(longest)
  inputs = np.zeros((B, P), np.int32)
  segments = np.zeros((B, P), np.int32)
  for row, prompt in enumerate(prompts):
    inputs[row, : len(prompt)] = prompt
    segments[row, : len(prompt)] = 1
  lengths = segments.sum(1)
  batch = {
    'inputs': inputs,
    'segments': segments,
    'positions': np.where(segments > 0, np.arange(P)[None], 0).astype(np.int32),
  }
  slots = P + -(-max_tokens // STRIDE) * STRIDE
  cache = model.init_cache(B, slots)
  keys = jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
  logits, cache, positions = _prefill(apply, params, batch, lengths.astype(np.int32), cache)
  for start in range(0, max_tokens, STRIDE):
    tokens, logits, cache, positions = _several(
      apply, choose, params, logits, cache, positions, keys
    )
    yield from np.asarray(tokens)[: max_tokens - start]


@functools.partial(jax.jit, static_argnums=0)
def _prefill(
  apply: Apply, params: Params, batch: dict[str, Array], lengths: Array, cache: Any
) -> tuple[Array, Any, Array]:
  """Returns the logits (B, V) after the prompts, the filled cache and the next positions (B,)."""
  output = apply(params, batch, cache=cache)
  last = jnp.take_along_axis(output.hidden, lengths[:, None, None] - 1, axis=1)
  return output.unembed(last)[:, 0], output.cache, lengths


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def _several(apply, choose, params, logits_BV, cache, positions_B, keys_B):
  """Takes STRIDE steps; returns tokens (STRIDE, B) and what the next call needs."""

  def step(carry, _):
    logits_BV, cache, positions_B = carry
    step_keys = jax.vmap(jax.random.fold_in)(keys_B, positions_B)
    tokens_B = jax.vmap(choose)(logits_BV, step_keys).astype(jnp.int32)
    batch = {
      'inputs': tokens_B[:, None],
      'segments': jnp.ones_like(tokens_B)[:, None],
      'positions': positions_B[:, None],
    }
    output = apply(params, batch, cache=cache)
    logits_BV = output.unembed(output.hidden)[:, 0]
    return (logits_BV, output.cache, positions_B + 1), tokens_B

  carry, tokens = jax.lax.scan(step, (logits_BV, cache, positions_B), length=STRIDE)
  return tokens, *carry


def _bucket(length: int) -> int:
  # Few prompt shapes, few compilations.
  return max(16, 1 << (length - 1).bit_length())
