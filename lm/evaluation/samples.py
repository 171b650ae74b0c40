"""Samples of a run: a decoder continues each prompt of `log.sample_prompts`."""

import numpy as np
import tokenizers
from ml_collections import ConfigDict

from lm.components import Inference
from lm.decode.loop import check_decoding, check_prompt_length
from lm.decode.sampling import sampler
from lm.decode.stream import prompt_encoder, stream_text
from lm.errors import UserError
from lm.evaluation.evaluators import Evaluation, Evaluator
from lm.evaluation.predict import decode_config
from lm.parallel import mesh as meshes
from lm.types import Params, apply_of

_SAMPLES = (3,)  # spawn key of their seeds


def samples(config: ConfigDict, functions: Inference, tokenizer: tokenizers.Tokenizer) -> Evaluator:
  """Returns the evaluator that continues each prompt; it has texts and no values.

  Raises:
    UserError: the model cannot continue the prompts.
  """
  log, model = config.log, functions.model
  prompts = list(log.sample_prompts)
  if not prompts or not log.sample_tokens:
    return Evaluator(lambda step, params: Evaluation())
  if not getattr(model, 'continues_prompts', False):
    raise UserError(
      f'log.sample_prompts={tuple(prompts)!r}: model.fn={config.model.fn!r} cannot continue '
      'prompts; set log.sample_prompts=()'
    )
  how = decode_config(config.decode, tokenizer, 0)._replace(max_tokens=log.sample_tokens)
  if config.decode.sampler is None:
    how = how._replace(sample_fn=sampler(log.temperature, log.top_k, key='log.'))
  start = config.decode.start
  encode = prompt_encoder(tokenizer, start)
  for prompt in prompts:
    check_prompt_length(model, len(encode(prompt)), f'log.sample_prompts: {prompt[:40]!r}')
  apply = apply_of(model)

  def run(step: int, params: Params) -> Evaluation:
    # Each step has its own seed, which training does not use. The index of a prompt selects its key
    # among the keys of this seed.
    stream = np.random.SeedSequence((config.seed, step), spawn_key=_SAMPLES)
    (seed,) = stream.generate_state(1).tolist()
    indices = range(len(prompts))
    # All devices and processes decode together, so that parameters stay sharded.
    with meshes.set_mesh(functions.mesh, functions.rules):
      pieces = list(
        stream_text(model, apply, params, tokenizer, prompts, how, indices, seed, start)
      )
    texts = [''.join(row) for row in zip(*pieces, strict=True)] or [''] * len(prompts)
    return Evaluation(texts=list(zip(prompts, texts, strict=True)))

  def check(params: Params) -> dict[str, bool | None]:
    tokens = np.zeros((len(prompts), 1), np.int32)
    batch = {'inputs': tokens, 'segments': tokens + 1, 'positions': tokens}
    check_decoding(model, apply, params, batch)  # traces one decoding step
    return {}

  return Evaluator(run, check)
