"""A variant: patches of an image as the prefix of a decoder, which names the shape in the image.

  python -m lm.train --config=experiments/image_prefix.py --workdir=runs/image_prefix

The input layer projects patches of 4 x 4 pixels (Dosovitskiy et al. 2021, section 3.1). The set
`shuffled` has the images of other examples. Exact match is 0.98, and 0.09 in `shuffled`. Two CPU
cores, a minute.
"""

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lm.config.base import base, evaluation, gpt2, select_variant
from lm.data.sources.base import check_split
from lm.nn.embedding import InputLayer
from lm.nn.layers import Linear
from lm.task import Converter, Features, Task
from lm.text.tokenizers import text_reader


def images(split, shuffled=False):
  """Returns noisy images, (16, 16) uint8, of four shapes in two sizes, with their names."""
  check_split(split, ('train', 'validation'))
  rng, found = np.random.default_rng(split == 'train'), []
  for _ in range(3000 if split == 'train' else 120):
    shape, large = rng.integers(4), rng.integers(2)
    (x, y), r = abs(np.mgrid[:16, :16] - rng.integers(6, 10, (2, 1, 1))), 3 + 3 * large
    ring, square = abs(x**2 + y**2 - r**2) <= r, np.maximum(x, y) <= r
    inside = (ring, square, square & (np.minimum(x, y) < 1), square & (y < 1))[shape]
    image = (160 * inside + rng.integers(0, 96, (16, 16))).astype(np.uint8)
    name = ('small', 'large')[large] + (' ring', ' square', ' cross', ' bar')[shape]
    found.append({'image': image, 'text': name})
  order = rng.permutation(len(found)) if shuffled else range(len(found))
  return [named | {'image': found[i]['image']} for named, i in zip(found, order, strict=True)]


def naming():
  return Task(lambda example: [], lambda example: example['text'], lambda example: example['text'])


def captions(task):
  """Returns the converter to 16 patches in the place of tokens, and the name."""

  def row(example, ids):
    patches = example['image'].reshape(4, 4, 4, 4).swapaxes(1, 2).reshape(16, 16)
    tokens = {'inputs': np.array([0] * 16 + ids), 'prefix': np.repeat([1, 0], [16, len(ids)])}
    return tokens | {'patches': np.pad(patches, ((0, len(ids)), (0, 0)))}

  def features(tokenizer, labels, seq_len):
    def convert(example):
      ids = text_reader(tokenizer).encode(task.target(example)).ids
      answer = {'targets': [0] * 15 + ids + [0], 'weights': [0] * 15 + [1] * (len(ids) + 1)}
      return [Features(row(example, ids) | answer, {}, {})]

    return convert

  prompt = lambda tokenizer: lambda example: Features(row(example, []), {}, {})  # noqa: E731
  return Converter(lambda example: [task.target(example)], features, prompt, needs_separator=False)


def projected_patches():
  """Returns the input layer that reads `patches` (B, T, 16) where `prefix` (B, T) is 1."""

  def apply(module, x, batch, add_positions, d_model):
    if 'patches' in batch:
      linear = Linear((16, d_model), (None, 'embed'), name='patches')
      x = jnp.where(batch['prefix'][..., None] > 0, linear(batch['patches'] / 255), x)
    return add_positions(x)

  return InputLayer(apply)


def get_config(arg=''):
  config = base()
  config.model = gpt2(depth=2, d_model=64, heads=4, context=64)
  config.model.input_layer = 'image_prefix:projected_patches'
  config.data.update(
    {'source': 'image_prefix:images', 'seq_len': 64, 'task': 'image_prefix:naming'}
  )
  config.data.converter = 'image_prefix:captions'
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bytes'})
  metrics = ('lm.metrics.tokens:cross_entropy',), ('lm.metrics.labels:exact_match',)
  sets = {'validation': '', 'shuffled': 'image_prefix:images(shuffled=True)'}
  config.eval.sets = {name: evaluation('validation', s, *metrics) for name, s in sets.items()}
  config.steps, config.optim.learning_rate, config.log.sample_prompts = 300, 3e-3, ()
  return select_variant(config, arg, smoke=lambda config: config)
