"""Attention maps of a few examples, word by word, for all layers and heads of a model.

For an encoder-decoder, the maps are those of cross-attention, and the decoder reads the reference.
The row of a word is the attention at the positions that predict this word. For other models, the
maps are those of self-attention.

Attention from a word is the mean over its tokens. Attention to a word is the sum over its tokens
(Clark et al. 2019, "What Does BERT Look At?", section 4.1). Rows sum to 1 unless words are cut off.
"""

import base64
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from ml_collections import ConfigDict

from lm.components import Inference
from lm.data import batches, features, pipeline
from lm.decode.loop import bucket, pad_prompts
from lm.evaluation.evaluators import Evaluation, Evaluator
from lm.nn.hooks import with_hooks
from lm.parallel import mesh as meshes
from lm.task import Features
from lm.text.detokenize import group_words
from lm.types import Array, Batch, Params

_EXAMPLES = 4
_SEARCHED = 100  # examples that are searched for short ones
_LONGEST = 256  # tokens of an example; the memory of attention weights grows with its square
_TEXT = 64  # tokens of a text without a task
_WORDS = 40  # on each axis of a map
_CELLS = 100_000  # of one example; above it, heads are averaged


def attention_maps(
  config: ConfigDict, functions: Inference, tokenizer: tokenizers.Tokenizer
) -> Evaluator:
  """Returns the evaluator of the attention maps of the first set; it has files and no values."""
  name = next(iter(config.eval.sets), None)

  @functools.cache  # made at the first evaluation, not at start-up
  def maps() -> AttentionMaps:
    assert name is not None
    return AttentionMaps(config, name, functions, tokenizer)

  def run(step: int, params: Params) -> Evaluation:
    del step
    found = None if name is None else maps()(params)
    return Evaluation(files={} if found is None else {f'attention/{name}': {'set': name} | found})

  return Evaluator(run)


class AttentionMaps:
  """The maps of the first short examples of an evaluation set.

  Args:
    config: the entire configuration.
    name: of the set.
    functions: of the config; a model without the hook points of lm.nn.layers.Attention has no maps.
    tokenizer: of the run.
  """

  def __init__(
    self,
    config: ConfigDict,
    name: str,
    functions: Inference,
    tokenizer: tokenizers.Tokenizer,
  ):
    self._tokenizer = tokenizer
    self._examples = _examples(config, name, tokenizer)
    crossing = bool(self._examples and self._examples[0].source)
    self._kind = 'cross_attention' if crossing else 'attention'
    reads = tuple(f'*/{self._kind}/{site}' for site in ('weights', 'values', 'heads'))
    apply = with_hooks(functions.model)
    self._rows = meshes.with_mesh(meshes.padded_rows, functions.mesh, functions.rules)

    def read(params: Params, batch: Batch) -> _Weights | None:
      sites = apply(params, batch, reads=reads)[1]
      return _weights(sites, batch['segments'], len(self._examples))

    # All devices share the forward pass, so that parameters stay sharded.
    self._read = jax.jit(
      meshes.with_mesh(read, functions.mesh, functions.rules),
      out_shardings=meshes.replicated(functions.mesh),
    )

  def __call__(self, params: Params) -> dict[str, Any] | None:
    """Returns the maps, or None if the model has none.

    Returns:
      {'kind', 'layers', 'heads', 'examples': [{'queries', 'keys', 'of', 'weights'}]}. `queries` and
      `keys` are words, and `of` gives their counts before words are cut off. `weights` is a uint8
      array (layers, heads, queries, keys) in base64, where 255 is a weight of 1. `heads` is 0 if
      the weights are means over heads.
    """
    if not self._examples:
      return None
    # The last example is repeated, so that the rows divide over the devices.
    rows = self._rows(len(self._examples))
    last = self._examples[-1:]
    batch = pad_prompts([*self._examples, *last * (rows - len(self._examples))], bucket)
    batch['examples'] = np.arange(1, rows + 1, dtype=np.int32)[:, None]
    found = jax.device_get(self._read(params, batch))
    if found is None or not found.explained:
      return None
    examples = [self._map(e, found.weights[:, i]) for i, e in enumerate(self._examples)]
    examples = [example for example in examples if example is not None]
    if not examples:
      return None
    layers, _, heads = found.weights.shape[:3]
    size = {'layers': layers, 'heads': 0 if found.means else heads}
    return {'kind': self._kind, **size, 'examples': examples}

  def _map(self, example: Features, weights_NHTS: np.ndarray) -> dict[str, Any] | None:
    """Returns the map of an example, or None if a side has no tokens."""
    if example.source:
      sides = example.tokens['targets'], example.source['source']
    else:
      sides = example.tokens['inputs'], example.tokens['inputs']
    queries, keys = (group_words(self._tokenizer, side.tolist()) for side in sides)
    if not queries or not keys:
      return None
    by_word = _by_word(weights_NHTS, queries, keys)
    cells = np.rint(255 * by_word[..., :_WORDS, :_WORDS]).astype(np.uint8)
    return {
      'queries': [word for word, _ in queries[:_WORDS]],
      'keys': [word for word, _ in keys[:_WORDS]],
      'of': [len(queries), len(keys)],
      'weights': base64.b64encode(cells.tobytes()).decode(),
    }


def _examples(config: ConfigDict, name: str, tokenizer: tokenizers.Tokenizer) -> list[Features]:
  """Returns the first short examples of a set, or the beginnings of its first texts."""
  section = config.eval.sets[name]
  data = pipeline.component(config.data, section.get('component', ''))
  if data['task'] is None:
    rows = pipeline.packed_rows(data, section.split, tokenizer, None, source=section.source or None)
    key, paths = f'eval.sets.{name}.transforms', section.get('transforms', ())
    transforms = batches.open_transforms(paths, tokenizer, rows, key)
    first = batches.eval_batches(rows, 1, transforms=transforms, name=name)
    return [_first_text(batch) for batch in itertools.islice(first, _EXAMPLES)]
  _, converter = features.build_task(data)
  convert = converter.features(tokenizer, tuple(data['labels']), data['seq_len'])
  examples = itertools.islice(
    pipeline.examples(data, section.split, section.source or None), _SEARCHED
  )
  made = (found[0] for found in map(convert, examples) if found)
  limits = {
    k: (key, min(_LONGEST, most)) for k, (key, most) in features.length_limits(data).items()
  }
  short = (each for each in made if features.apply_length_policy(each, limits, 'skip') is not None)
  return list(itertools.islice(short, _EXAMPLES))


def _first_text(batch: batches.NumpyBatch) -> Features:
  """Returns the beginning of the first text of a batch of one row of running text.

  Span corruption leaves out texts without a span, so that the first segment need not be 1.
  """
  segments_T = batch['segments'][0]
  first = min(segments_T[segments_T > 0], default=1)

  def part(name: str, segments: str) -> np.ndarray:
    return batch[name][0][batch[segments][0] == first][:_TEXT]

  if 'source' not in batch:
    return Features({'inputs': part('inputs', 'segments')}, {}, {})
  tokens = {name: part(name, 'segments') for name in ('inputs', 'targets')}
  return Features(tokens, {'source': part('source', 'source_segments')}, {})


class _Weights(NamedTuple):
  """The attention weights of all layers that record them, from the first to the last."""

  weights: Array  # (N, B, H, T, S), or their means over heads, (N, B, 1, T, S)
  means: Array  # (), whether they are the means
  explained: Array  # (), whether weights times values are the outputs of the heads


def _weights(sites: Mapping[str, Array], segments_BT: Array, examples: int) -> _Weights | None:
  """Returns the weights of the first examples of a batch, None if the model records none.

  The recorded weights are those of softmax attention. Another attention function has other outputs
  than these weights times the values; `explained` is then False.
  """
  stacked = {}
  for site in ('weights', 'values', 'heads'):
    names = sorted((n for n in sites if n.endswith(f'/{site}')), key=lambda n: (len(n), n))
    # Repetitions of the layer pattern are on axis 0; each layer of the pattern is a site.
    arrays = [sites[name].astype(jnp.float32) for name in names]
    arrays = [x if x.ndim == 5 else x[None] for x in arrays]
    if not arrays or len({x.shape for x in arrays}) > 1:
      return None
    flat = jnp.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])
    stacked[site] = flat[:, :examples]
  weights, values, heads = stacked['weights'], stacked['values'], stacked['heads']
  values = jnp.repeat(values, weights.shape[2] // values.shape[3], axis=3)
  found = jnp.einsum('nbhts,nbshk->nbthk', weights, values, precision='highest')
  # The tolerance is that of bfloat16. Outputs at padding depend on the attention function.
  inside = (segments_BT[:examples] > 0)[None, :, :, None, None]
  explained = jnp.abs(inside * (found - heads)).max() < 0.02 * jnp.abs(values).max()
  cells = weights.shape[0] * weights.shape[2] * min(_WORDS, max(weights.shape[3:])) ** 2
  means = cells > _CELLS
  shown = weights.mean(2, keepdims=True) if means else weights
  return _Weights(shown, jnp.array(means), explained)


def _by_word(
  weights_NHTS: np.ndarray,
  queries: Sequence[tuple[str, list[int]]],
  keys: Sequence[tuple[str, list[int]]],
) -> np.ndarray:
  rows = [weights_NHTS[:, :, indices].mean(2) for _, indices in queries]
  columns = np.stack(rows, axis=2)
  return np.stack([columns[..., indices].sum(-1) for _, indices in keys], axis=-1)
