"""Our candidates: the train step of `lm.train` and the decoding loop of `lm.generate`."""

import importlib.metadata
import itertools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lm import components as builder
from lm.bench.worker import BUFFER_SIZE, MATMUL_SIZE, Candidate, Limit, Shape, Training
from lm.config import base as configs
from lm.config.recurrent import recurrent
from lm.data import batches
from lm.decode.loop import DecodeConfig
from lm.decode.stream import stream_tokens
from lm.evaluation.sets import Sets
from lm.parallel import mesh as meshes
from lm.training import warm_start
from lm.training.train_step import abstract_state, init_train_state, make_train_step
from lm.training.trainer import set_up
from lm.types import apply_of
from lm.workdir import experiment


def device() -> dict[str, str]:
  """Returns the platform ('cpu', 'gpu', 'tpu') and the name of the first device."""
  return {'platform': jax.default_backend(), 'name': jax.devices()[0].device_kind}


def train_step(shape: Shape, platform: str) -> Candidate:
  """Returns our train step on one device, with model and optimizer of the base config."""
  config = config_of(shape)
  functions = builder.build_components(config, shape.vocab_size, jax.devices()[:1])
  state, _ = init_train_state(functions, jax.random.key(0))
  step = make_train_step(functions, 0, 1, state)
  rows = meshes.batch_sharding(functions.mesh, functions.rules)
  batch = meshes.make_global_batch(batch_of(shape), rows)
  flops = shape.tokens * functions.model.flops_per_token(state.params, shape.context)

  def run(times: int) -> None:
    nonlocal state
    for _ in range(times):
      state, _ = step(state, batch)
    jax.block_until_ready(state)

  def matmul() -> Limit:
    size, multiply = MATMUL_SIZE[platform], jax.jit(jnp.matmul)
    square = jnp.ones((size, size), shape.dtype)
    return Limit(
      lambda times: jax.block_until_ready([multiply(square, square) for _ in range(times)]),
      2.0 * size**3,
    )

  return _candidate(run, matmul, flops)


def decoding(shape: Shape, platform: str) -> Candidate:
  """Returns our greedy decoding on the default device, whose tokens reach the host in chunks."""
  del platform
  model = builder.model(config_of(shape), shape.vocab_size)
  apply = apply_of(model)
  params = nn.unbox(jax.jit(builder.init_of(model, shape.context))(jax.random.key(0)))
  prompts = batch_of(shape)['inputs'][:, : shape.prompt].tolist()
  # No token ends a text, so that all texts have the same length.
  config = DecodeConfig(end=-1, max_tokens=shape.max_tokens)

  def run(times: int) -> None:
    for _ in range(times):
      tokens = list(stream_tokens(model, apply, params, prompts, config, range(len(prompts))))
      assert len(tokens) == shape.max_tokens

  def memory() -> Limit:
    buffer = jnp.ones(BUFFER_SIZE)
    increment = jax.jit(lambda x: x + 1, donate_argnums=0)  # in place: new pages would cost more

    def add(times: int) -> None:
      nonlocal buffer
      for _ in range(times):
        buffer = increment(buffer)
      jax.block_until_ready(buffer)

    return Limit(add, 2.0 * buffer.nbytes)

  parameter_bytes = sum(x.nbytes for x in jax.tree.leaves(params))
  return _candidate(run, memory, decoding_bytes(shape, parameter_bytes))


def decoding_bytes(shape: Shape, parameter_bytes: int) -> float:
  """Returns the bytes that decoding must read: for each new token, parameters and KV cache."""
  cached = sum(shape.prompt + i for i in range(shape.max_tokens))  # tokens, over all steps
  token_bytes = 2 * shape.depth * shape.d_model * np.dtype(shape.dtype).itemsize
  return float(shape.max_tokens * parameter_bytes + shape.batch_size * cached * token_bytes)


def finetuning(config: str, seed: int, folder: str) -> Training:
  """Returns the training of a config from its warm start, on one device.

  Args:
    config: FILE.py[:ARG].
    seed: of the run.
    folder: of the exported checkpoint, which ours does not need.
  """
  del folder
  found = experiment.load(config)
  found.seed = seed
  tokenizer, rows, transforms, _, functions = set_up(found, devices=jax.devices()[:1])
  abstract, _ = abstract_state(functions)
  state, _ = warm_start.initial_state(found, functions, tokenizer, abstract)
  step = make_train_step(functions, seed, found.microbatches, abstract)
  on_mesh = meshes.batch_sharding(functions.mesh, functions.rules)
  spans = (range(i, i + 1) for i in range(found.steps))
  ahead = batches.train_batches(rows, transforms, found.batch_size, seed, spans)

  def run(times: int) -> None:
    nonlocal state
    for _, stacked in itertools.islice(ahead, times):
      batch = {name: values[0] for name, values in stacked.items()}
      state, _ = step(state, meshes.make_global_batch(batch, on_mesh))
    jax.block_until_ready(state)

  def scores() -> dict[str, float]:
    sets = Sets(found, functions, tokenizer)
    return dict(sets.run(found.steps, state.params).values)

  examples = found.batch_size * len(np.asarray(rows.example)) / len(rows)  # type: ignore[attr-defined]
  return Training(run, found.steps, examples, scores, _versions())


def config_of(shape: Shape) -> ConfigDict:
  """Returns the base config with the sizes of a shape and a constant learning rate."""
  config = configs.base()
  with config.unlocked():
    if shape.d_hidden:
      config.model = recurrent(shape.d_model, shape.d_hidden, shape.depth, shape.context)
      config.model.tie_embeddings = False
    else:
      config.model = configs.gpt2(shape.depth, shape.d_model, shape.heads, shape.context)
  config.model.dtype = shape.dtype
  config.data.seq_len = shape.context
  config.batch_size = shape.batch_size
  config.optim.update(
    {'schedule': 'lm.optim.optimizers:constant', 'learning_rate': 1e-4, 'warmup_steps': 0}
  )
  return config


def batch_of(shape: Shape) -> dict[str, np.ndarray]:
  """Returns a batch of random tokens, each row one full example."""
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


def _candidate(run: Callable[[int], None], limit: Callable[[], Limit], amount: float) -> Candidate:
  candidate, device = Candidate(run, limit, _versions(), amount), jax.devices()[0]
  if device.memory_stats() is None:  # on a CPU, where the peak is that of the process
    return candidate
  return candidate._replace(peak_bytes=lambda: device.memory_stats()['peak_bytes_in_use'])


def _versions() -> dict[str, str]:
  return {name: importlib.metadata.version(name) for name in ('jax', 'flax', 'optax')}
