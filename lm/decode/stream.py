"""Streaming: the text of every row as its tokens are generated."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import tokenizers

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
from lm.errors import UserError
from lm.parallel import mesh as meshes
from lm.task import Features
from lm.text.detokenize import TextStream
from lm.text.tokenizers import end_id, text_reader, vocabulary_size
from lm.types import Apply, Array, Params

# Tokens of one call of the compiled loop, which share the cost of its dispatch.
TOKENS_PER_DISPATCH = 8


def prompt_encoder(
  tokenizer: tokenizers.Tokenizer, start: Sequence[int] = ()
) -> Callable[[str], list[int]]:
  """Returns the function from a prompt to its tokens, which follow `start`; see `document_start`.

  '<|end|>' in a prompt is text, as in a corpus.
  """
  reader, first = text_reader(tokenizer), document_start(tokenizer, start)
  return lambda prompt: [*first, *reader.encode(prompt, add_special_tokens=False).ids]


def document_start(tokenizer: tokenizers.Tokenizer, start: Sequence[int] = ()) -> tuple[int, ...]:
  """Returns the ids of `decode.start`, or else END, which precedes each document in training.

  Raises:
    UserError: an id is not one of the tokenizer.
  """
  if unknown := [i for i in start if i >= vocabulary_size(tokenizer)]:
    count = vocabulary_size(tokenizer)
    raise UserError(
      f'decode.start={tuple(start)}: {unknown[0]} is not below {count}, the vocabulary'
    )
  return tuple(start) or (end_id(tokenizer),)


def stream_text(
  model: nn.Module,
  apply: Apply,
  params: Params,
  tokenizer: tokenizers.Tokenizer,
  prompts: Sequence[str],
  config: DecodeConfig,
  key_indices: Sequence[int],
  seed: int = 0,
  start: Sequence[int] = (),
  report: Callable[[str], None] = lambda note: None,
) -> Iterator[list[str]]:
  """Yields the new text of every row after each step, empty once a row has ended.

  Joined, the texts of a row are what its new tokens add to the decoded prompt. If the tokenizer
  drops white space at the end of a prompt, the text begins without white space.

  Rows end at the end token, at `config.max_tokens`, or at the end of the model's context. If the
  context leaves fewer than `config.max_tokens`, `report` receives a note before the first text.

  Args:
    model: continues prompts.
    apply: the model's pure function; one function for each mesh.
    params: its parameters.
    tokenizer: that of the model.
    prompts: the prompt of each row.
    config: as for `stream_tokens`; `end` is the tokenizer's.
    key_indices: of each row, the index of its key among those of the seed (`row_keys`).
    seed: of the keys of all rows.
    start: ids before each prompt; see `document_start`.
    report: is called with a note for the user.

  Raises:
    UserError: a prompt is longer than the model's context.
  """
  encoded = list(map(prompt_encoder(tokenizer, start), prompts))
  first = len(document_start(tokenizer, start))
  longest = max(map(len, encoded))
  check_prompt_length(model, longest, '--prompt')
  if longest + config.max_tokens > model.context + 1 and not model.reads_on:
    config = config._replace(max_tokens=model.context - longest + 1)
    report(f'the model reads {model.context} tokens: {config.max_tokens} are added to the prompt')
  pairs = zip(prompts, encoded, strict=True)
  rows = [TextStream(tokenizer, ids[first:], prompt[-1:].isspace()) for prompt, ids in pairs]
  for tokens in stream_tokens(model, apply, params, encoded, config, key_indices, seed):
    yield [
      row.finish() if token in (config.end, -1) else row.step(token)
      for row, token in zip(rows, tokens.tolist(), strict=True)
    ]
  yield [row.finish() for row in rows]


def stream_tokens(
  model: nn.Module,
  apply: Apply,
  params: Params,
  prompts: Sequence[Sequence[int]],
  config: DecodeConfig,
  key_indices: Sequence[int],
  seed: int = 0,
) -> Iterator[np.ndarray]:
  """Yields the next token of every row, (B,) int32, until all rows have ended; -1 after an end.

  Inside lm.parallel.mesh.set_mesh the rows and their KV cache are sharded over the devices of the
  mesh, as the parameters are. All processes must then call this, with the same arguments.

  Args:
    model: has `init_cache(batch_size, length)`.
    apply: the model's pure function; one function for each mesh.
    params: its parameters.
    prompts: token ids, at least one per row; a row usually begins with the end token.
    config: `end`, `max_tokens`, `sample_fn` and `logits_processors` are used.
    key_indices: of each row, the index of its key among those of the seed (`row_keys`).
    seed: of the keys of all rows.
  """
  # The last row is repeated until the rows divide over the devices.
  indices = np.minimum(np.arange(meshes.padded_rows(len(prompts))), len(prompts) - 1)
  batch = pad_prompts([Features({'inputs': np.array(prompts[i])}, {}, {}) for i in indices], bucket)
  # Rounded up, so that a few programs serve all lengths.
  buffer_len = -(-config.max_tokens // TOKENS_PER_DISPATCH) * TOKENS_PER_DISPATCH
  limits_B = np.full(len(indices), config.max_tokens, np.int32)
  config = config._replace(max_tokens=buffer_len)
  seeds = np.uint32(seed), np.asarray(key_indices, np.uint32)[indices]
  if hasattr(model, 'separate_layers'):
    params = _separate_layers(model, params)  # one copy for all tokens, not one for each dispatch
  state = _begin(model, apply, config, params, batch, seeds, limits_B)
  shown, ended = 0, False
  while not ended:
    state = _continue(apply, config, params, state, np.int32(shown + TOKENS_PER_DISPATCH))
    tokens_BL, lengths_B, done_B = jax.device_get((state.tokens, state.lengths, state.done))
    for n in range(shown, lengths_B.max()):
      yield np.where(n < lengths_B, tokens_BL[:, n], -1)[: len(prompts)]
    shown, ended = lengths_B.max(), done_B.all()


@functools.partial(jax.jit, static_argnums=0)
def _separate_layers(model: Any, params: Params) -> Params:
  return model.separate_layers(params)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _begin(
  model: nn.Module,
  apply: Apply,
  config: DecodeConfig,
  params: Params,
  batch: Mapping[str, Array],
  seeds: tuple[Array, Array],
  limits_B: Array,
) -> DecodeState:
  B, P = batch['inputs'].shape
  read = prefill(apply, params, batch, model.init_cache(B, P + config.max_tokens))
  return _readable(init_state(config, *read, row_keys(*seeds), limits_B, config.max_tokens))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _continue(
  apply: Apply, config: DecodeConfig, params: Params, state: DecodeState, stop: Array
) -> DecodeState:
  step = functools.partial(decode_step, make_decode_step(apply, params), config)
  return _readable(decode_loop(step, state, stop))


def _readable(state: DecodeState) -> DecodeState:
  """Returns the state with replicated tokens, which each process reads."""
  shared = {
    k: meshes.with_logical_constraint(getattr(state, k)) for k in ('tokens', 'lengths', 'done')
  }
  return state._replace(**shared)
