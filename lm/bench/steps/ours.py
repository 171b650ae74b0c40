"""Our train step: the one that `python -m lm.train` compiles."""

import importlib.metadata
import resource

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lm.bench.steps.shape import PRODUCT_SIZE, Shape, Subject
from lm.config import base as configs
from lm.config.recurrent import recurrent
from lm.parallel import mesh as meshes
from lm.run import build as builder
from lm.run import placement
from lm.run.step import init_state, make_train_step


def device() -> dict[str, str]:
  """Returns the platform ('cpu', 'gpu', 'tpu') and the name of the device the step runs on."""
  return {'platform': jax.default_backend(), 'name': jax.devices()[0].device_kind}


def build(shape: Shape) -> Subject:
  """Returns our step on one device; the model and the optimizer are the base config's."""
  config = config_of(shape)
  functions = builder.functions(config, shape.vocab_size, jax.devices()[:1])
  state, _ = init_state(functions, jax.random.key(0))
  train_step = make_train_step(functions, 0, 1, state)
  rows = meshes.batch_sharding(functions.mesh, functions.rules)
  batch = placement.put_batch(batch_of(shape), rows)
  flops = shape.tokens * functions.model.flops_per_token(state.params, shape.context)

  def step(times: int) -> None:
    nonlocal state
    for _ in range(times):
      state, _ = train_step(state, batch)
    jax.block_until_ready(state)

  size = PRODUCT_SIZE[jax.default_backend()]
  square = jnp.ones((size, size), shape.dtype)
  multiply = jax.jit(jnp.matmul)

  def product(times: int) -> None:
    jax.block_until_ready([multiply(square, square) for _ in range(times)])

  versions = {name: importlib.metadata.version(name) for name in ('jax', 'flax', 'optax')}
  return Subject(step, product, 2.0 * size**3, _peak_bytes, versions, flops)


def config_of(shape: Shape) -> ConfigDict:
  """Returns the base config with the model and the rows of a shape, at a constant rate."""
  config = configs.base()
  with config.unlocked():
    if shape.d_hidden:
      config.model = recurrent(shape.d_model, shape.d_hidden, shape.depth, shape.context)
      config.model.tie_embeddings = False
    else:
      config.model = configs.gpt2(shape.depth, shape.d_model, shape.heads, shape.context)
  config.model.dtype = shape.dtype
  config.data.context = shape.context
  config.batch_size = shape.batch_size
  config.optim.update(
    {'schedule': 'lm.optim.optimizers:constant', 'learning_rate': 1e-4, 'warmup': 0}
  )
  return config


def batch_of(shape: Shape) -> dict[str, np.ndarray]:
  """Returns a batch of whole rows of random tokens."""
  rng = np.random.default_rng(0)
  size = (shape.batch_size, shape.context)
  tokens = rng.integers(0, shape.vocab_size, (size[0], size[1] + 1), dtype=np.int32)
  return {
    'inputs': tokens[:, :-1],
    'targets': tokens[:, 1:],
    'weights': np.ones(size, np.float32),
    'segments': np.ones(size, np.int32),
    'positions': np.broadcast_to(np.arange(size[1], dtype=np.int32), size),
    'bytes': np.ones(size, np.int32),
  }


def _peak_bytes() -> int:
  statistics = jax.devices()[0].memory_stats()
  if statistics is None:  # CPUs keep none
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return statistics['peak_bytes_in_use']
