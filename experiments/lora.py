"""A variant: LoRA, which trains a low-rank update of each matrix of a pretrained model.

  python -m lm.train --config=experiments/lora.py --workdir=runs/lora

It starts from runs/quickstart, or from --config.warm_start.workdir. Each matrix W of a layer
becomes W + a b, with a and b of rank 16 (Hu et al. 2021). The pretrained parameters have neither
gradients nor optimizer state. The workdir has the merged ones for programs, and a and b to resume.
Two CPU cores; the time is not measured.
"""

import math
import re

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from lm.config.base import base, select_variant
from lm.config.base import smoke as small
from lm.types import View


def lora(rank: int = 8, matrices: str = r'/layers/.*/kernel$') -> View:
  """Returns the view W + a b of the parameters whose paths match `matrices`; axis 0 has layers."""

  def inputs(path):
    return 3 if path.endswith('/out/kernel') else 2  # axes of a: layers, then the inputs of W

  def split(key, params):
    chosen = {k: x for k, x in flatten_dict(params, sep='/').items() if re.search(matrices, k)}
    adapters = {}
    for (path, x), own in zip(chosen.items(), jax.random.split(key, len(chosen)), strict=True):
      a, b = x.shape[: inputs(path)], x.shape[inputs(path) :]
      std = 1 / math.sqrt(math.prod(a[1:]))
      adapters[f'{path}/a'] = std * jax.random.normal(own, (*a, rank), x.dtype)
      adapters[f'{path}/b'] = jnp.zeros((a[0], rank, *b), x.dtype)
    return unflatten_dict(adapters, sep='/'), params

  def merge(adapters, params):
    flat, parts = (flatten_dict(tree, sep='/') for tree in (params, adapters))
    for path in {path.rpartition('/')[0] for path in parts}:
      a, b = (parts[f'{path}/{name}'] for name in 'ab')
      product = a.reshape(len(a), -1, rank) @ b.reshape(len(b), rank, -1)
      flat[path] += product.reshape(flat[path].shape)
    return unflatten_dict(flat, sep='/')

  return View(split, merge)


def get_config(arg=''):
  config = base()
  config.view = 'lora:lora(rank=16)'
  config.warm_start.workdir = 'runs/quickstart'
  config.allow_zero = '/a$'  # its gradient is 0 in step 1, because b is 0
  config.optim.update({'weight_decay': 0.0, 'weight_decay_mask': '/b$'})
  return select_variant(config, arg, smoke=smoke)


def smoke(config):
  """Trains adapters of random parameters, because there is no run to start from."""
  config.warm_start.workdir = ''
  return small(config)
