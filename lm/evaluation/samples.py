"""The samples of a run: what its model makes of the prompts in `log.prompts`."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tokenizers
from ml_collections import ConfigDict

from lm.components import Components, Inference
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
  """How the samples of a run are made.

  Attributes:
    write: from the step, the parameters and the word vectors, where evaluations look at them, to
      the (prompt, text) of each prompt.
    check: takes parameters, or their shapes, and traces what `write` does.
  """

  write: Callable[[int, Params, Vectors | None], list[tuple[str, str]]]
  check: Callable[[Params], None] = lambda params: None


_DOMAIN = (3,)  # of the random numbers of samples
_NEAREST = 8  # words that are shown of a word


def samples(
  config: ConfigDict, functions: Components | Inference, tokenizer: tokenizers.Tokenizer
) -> Samples:
  """Returns the function that makes the samples of a config.

  A decoder goes on with each prompt. Where evaluations look at the word vectors of another model
  (`eval.vectors`), a prompt is a word, and its text the words nearest to it with their cosines.

  Raises:
    UserError: there are prompts that the model can do nothing with.
  """
  if functions.model.continues_prompts:
    return _continued(config, functions, tokenizer)
  prompts = tuple(config.log.prompts)
  if vectors.wanted(config, functions.model):
    _check_words(prompts, tokenizer)
    return Samples(
      lambda step, params, vectors: [(word, _neighbours(vectors, word)) for word in prompts]
    )
  if prompts:
    raise UserError(
      f'log.prompts={prompts!r}: only a decoder continues prompts, and '
      f'model.fn={config.model.fn!r} is none; set log.prompts=()'
    )
  return Samples(lambda step, params, vectors: [])


def _continued(
  config: ConfigDict, functions: Components | Inference, tokenizer: tokenizers.Tokenizer
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
    # A seed for each step, and none that training has; a key of it for each prompt.
    stream = np.random.SeedSequence((config.seed, step), spawn_key=_DOMAIN)
    (seed,) = stream.generate_state(1).tolist()
    indices = range(len(prompts))
    # All devices, and processes, write the samples together: the parameters stay sharded.
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


def _neighbours(vectors: Vectors | None, word: str) -> str:
  assert vectors is not None
  found = nearest_words(vectors, word, _NEAREST)
  return ': ' + ', '.join(f'{other} {cosine:.2f}' for other, cosine in found)
