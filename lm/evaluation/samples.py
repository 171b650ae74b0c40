"""Samples of a run: the continuations of `log.prompts`, or the neighbors of words."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tokenizers
from ml_collections import ConfigDict

from lm.components import Inference
from lm.decode.logits_processors import ban_unknown_token
from lm.decode.loop import DecodeConfig, check_decoding, check_prompt_length
from lm.decode.sampling import sampler
from lm.decode.stream import prompt_encoder, stream_text
from lm.errors import UserError
from lm.evaluation import vectors
from lm.parallel import mesh as meshes
from lm.text.tokenizers import end_id, word_ids
from lm.text.vectors import Vectors, make_vectors, nearest_words, row_of
from lm.types import Params, apply_of


class Samples(NamedTuple):
  """The sampling functions of a run.

  Attributes:
    write: maps the step, the parameters and the word vectors, if they are evaluated, to the
      (prompt, text) of each prompt.
    check: takes parameters, or their shapes, and traces one decoding step.
  """

  write: Callable[[int, Params, Vectors | None], list[tuple[str, str]]]
  check: Callable[[Params], None] = lambda params: None


_DOMAIN = (3,)  # spawn key of the random numbers of samples
_NEAREST = 8  # neighbors of a word


def samples(config: ConfigDict, functions: Inference, tokenizer: tokenizers.Tokenizer) -> Samples:
  """Returns the sampling functions of a config.

  A decoder continues each prompt. If the word vectors of another model are evaluated
  (`eval.vectors`), a prompt is a word, and its text the nearest words with their cosines.

  Raises:
    UserError: the model can neither continue the prompts nor has word vectors.
  """
  if functions.model.continues_prompts:
    return _continuations(config, functions, tokenizer)
  prompts = tuple(config.log.prompts)
  if vectors.are_evaluated(config, functions.model):
    _check_words(prompts, tokenizer)
    return Samples(
      lambda step, params, vectors: [(word, _neighbors(vectors, word)) for word in prompts]
    )
  if prompts:
    raise UserError(
      f'log.prompts={prompts!r}: model.fn={config.model.fn!r} is no decoder, which continues '
      'prompts; set log.prompts=()'
    )
  return Samples(lambda step, params, vectors: [])


def _continuations(
  config: ConfigDict, functions: Inference, tokenizer: tokenizers.Tokenizer
) -> Samples:
  log, model = config.log, functions.model
  how = DecodeConfig(
    end_id(tokenizer),
    log.sample_tokens,
    sample_fn=sampler(log.temperature, log.top_k, key='log.'),
    logits_processors=ban_unknown_token(tokenizer),
  )
  prompts = list(log.prompts)
  encode = prompt_encoder(tokenizer)
  for prompt in prompts:
    check_prompt_length(model, len(encode(prompt)), f'log.prompts: {prompt[:40]!r}')
  apply = apply_of(model)
  mesh, rules = functions.mesh, functions.rules

  def write(step: int, params: Params, vectors: Vectors | None) -> list[tuple[str, str]]:
    del vectors
    if not prompts:
      return []
    # Each step has a seed of its own, which training does not use, and each prompt a key of it.
    stream = np.random.SeedSequence((config.seed, step), spawn_key=_DOMAIN)
    (seed,) = stream.generate_state(1).tolist()
    indices = range(len(prompts))
    # All devices and processes decode together, so that parameters stay sharded.
    with meshes.set_mesh(mesh, rules):
      pieces = list(
        stream_text(model, apply, params, tokenizer, prompts, how, indices, seed, encode)
      )
    texts = [''.join(row) for row in zip(*pieces, strict=True)] or [''] * len(prompts)
    return list(zip(prompts, texts, strict=True))

  def check(params: Params) -> None:
    if prompts:
      tokens = np.zeros((len(prompts), 1), np.int32)
      batch = {'inputs': tokens, 'segments': tokens + 1, 'positions': tokens}
      check_decoding(model, apply, params, batch)

  return Samples(write, check)


def _check_words(prompts: tuple[str, ...], tokenizer: tokenizers.Tokenizer) -> None:
  if not prompts:
    return
  words = word_ids(tokenizer)
  vocabulary = make_vectors(words, np.zeros((len(words), 1)))
  for prompt in prompts:
    try:
      row_of(vocabulary, prompt)
    except UserError as e:
      raise UserError(f'log.prompts={prompts!r:.200}: {e}') from e


def _neighbors(vectors: Vectors | None, word: str) -> str:
  assert vectors is not None
  found = nearest_words(vectors, word, _NEAREST)
  return ': ' + ', '.join(f'{other} {cosine:.2f}' for other, cosine in found)
