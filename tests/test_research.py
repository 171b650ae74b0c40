"""The results of experiments that are one new function: formulas in NumPy, and exact texts."""

import pathlib
import sys

import flax.linen as nn
import jax
import numpy as np

from lm.components import init_of
from lm.nn.hooks import with_hooks
from lm.types import Mask
from lm.workdir import experiment

FOLDER = pathlib.Path(__file__).parent.parent / 'experiments'


def module_of(name):
  """Returns the module of an experiment, as a run of it imports it."""
  experiment.load(str(FOLDER / f'{name}.py'))
  return sys.modules[name]


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def test_differential_attention_equals_its_formula():
  layer = module_of('differential_attention').DifferentialAttention
  D, T, K, G, R, depth = 8, 5, 4, 4, 2, 3
  model = layer(heads=G * R, kv_heads=G, head_dim=K, layer=depth)
  rng = np.random.default_rng(0)
  x = rng.normal(0, 1, (2, T, D)).astype(np.float32)
  positions = np.broadcast_to(np.arange(T, dtype=np.int32), (2, T))
  args = (x, None, Mask(positions, positions), None)
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *args))['params']
  params = jax.tree.map(lambda p: rng.normal(0, 0.5, p.shape).astype(np.float32), shapes)
  found, _ = jax.jit(model.apply)({'params': params}, *args)

  qkv = np.einsum('btd,dgrk->btgrk', x, params['qkv']['kernel'])
  start = 0.8 - 0.6 * np.exp(-0.3 * depth)  # of layer `depth`, counted from 0
  q1, k1, q2, k2 = params['lambdas']
  weight = np.exp(q1 @ k1) - np.exp(q2 @ k2) + start

  def maps(g, r):
    scores = qkv[:, :, g, r] @ qkv[:, :, g, R].swapaxes(1, 2) / np.sqrt(K)
    return softmax(np.where(np.tri(T, dtype=bool), scores, -np.inf))

  heads = []
  for g in range(0, G, 2):
    values = np.concatenate([qkv[:, :, g, R + 1], qkv[:, :, g + 1, R + 1]], axis=-1)
    for r in range(R):
      head = (maps(g, r) - weight * maps(g + 1, r)) @ values
      head /= np.sqrt(np.square(head).mean(-1, keepdims=True) + 1e-5)
      heads.append((1 - start) * head * params['heads_norm']['scale'])
  expected = np.concatenate(heads, axis=-1) @ params['out']['kernel'].reshape(-1, D)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_lambda_of_differential_attention_depends_on_the_depth(decoder, batch_of):
  layer = module_of('differential_attention').DifferentialAttention
  model = decoder('llama', attention_layer=layer, depth=4, init_std=1.0)

  @jax.jit
  def heads(key, batch):
    params = nn.unbox(init_of(model, 16)(key))
    return with_hooks(model)(params, batch, ('*/heads',))[1]

  ((_, heads_NBTHK),) = heads(jax.random.key(0), batch_of(T=5)).items()
  # The norm of a pair has scale 1 at first, so that its root mean square is 1 - lambda_init.
  found = np.sqrt(np.square(heads_NBTHK.reshape(4, -1, 8)).mean((1, 2)))
  np.testing.assert_allclose(found, 0.2 + 0.6 * np.exp(-0.3 * np.arange(4)), rtol=1e-3)
