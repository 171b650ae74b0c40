"""Prompt lookup decoding: the greedy text of a run in fewer forward passes (Saxena 2023).

  tokens, passes = prompt_lookup.generate(run := lm.load('runs/quickstart'), 'The ')

A draft is what followed the last tokens where they occurred before. One forward pass with the KV
cache checks it, and keeps the part that greedy decoding would add. Any hardware.
"""

import functools

import jax
import numpy as np

from lm.decode.stream import prompt_encoder
from lm.nn.kv_cache import KVCache
from lm.text.tokenizers import end_id


@functools.partial(jax.jit, static_argnums=0)
def greedy(apply, params, batch, cache, length):
  """Returns the likeliest next token after each input, which follows `length` cached tokens."""
  is_layer = lambda x: isinstance(x, KVCache)  # noqa: E731
  layers = jax.tree.map(lambda x: x._replace(lengths=length), cache['layers'], is_leaf=is_layer)
  output = apply(params, batch, cache={**cache, 'layers': layers, 'lengths': length})
  return output.head(output.hidden)[0].argmax(-1), output.cache


def lookup(tokens, ngram, size):
  """Returns what followed the oldest earlier occurrence of the longest last n-gram."""
  for n in range(min(ngram, len(tokens) - 1), 0, -1):
    for start in range(len(tokens) - n):
      if tokens[start : start + n] == tokens[-n:]:
        return tokens[start + n : start + n + size]
  return []


def generate(run, prompt, max_tokens=100, ngram=3, draft=8):
  """Returns the tokens of the greedy continuation, and the number of forward passes."""
  tokens, end, passes = prompt_encoder(run.tokenizer)(prompt), end_id(run.tokenizer), 0
  first, read = len(tokens), 0  # of which `read` are in the cache
  stop = min(first + max_tokens, run.model.context + 1)
  cache = run.model.init_cache(1, stop + draft)
  while len(tokens) < stop and end not in tokens[first:]:
    drafted = lookup(tokens, ngram, min(draft, stop - len(tokens) - 1))
    new, inputs = len(tokens) - read, tokens[read:] + drafted
    arrays = np.zeros((3, 1, new + draft), np.int32)
    arrays[:, 0, : len(inputs)] = inputs, [1] * len(inputs), range(read, read + len(inputs))
    batch = dict(zip(('inputs', 'segments', 'positions'), arrays, strict=True))
    found, cache = greedy(run.apply, run.params, batch, cache, np.full(1, read, np.int32))
    added, *checked = found.tolist()[new - 1 : len(inputs)]
    wrong = [guess != token for guess, token in zip(drafted, [added, *checked], strict=False)]
    tokens += [added, *checked[: [*wrong, True].index(True)]]
    read, passes = len(tokens) - 1, passes + 1
  generated = tokens[first:]
  return generated[: generated.index(end)] if end in generated else generated, passes
