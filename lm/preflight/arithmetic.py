"""What a step needs on processors that nobody compiles for here, by shapes and arithmetic alone.

Parameters, optimizer and what the pass forward keeps are found from shapes and shardings as for
TPUs. What else is held is reckoned, by what the step is known to do:

- at the end of the pass forward, where the logits are (lm.nn.losses): those of a chunk and their
  gradient, and on every device the whole table that makes them, in the numbers that are multiplied,
  and its gradient in float32;
- in the pass backward: the gradients, which are as large and lie as the parameters, and, where a
  layer is computed again (`model.remat_policy`), all that it would have kept;
- all the while, where a batch is taken in parts: what the parts before have added up.
"""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from lm import components
from lm.components import Components
from lm.nn.losses import chunk_size
from lm.parallel import mesh
from lm.parallel import mesh as meshes
from lm.preflight import kernel, least, program
from lm.preflight.bound import Work, bound
from lm.preflight.check import LARGE, Checked
from lm.preflight.chips import Slice
from lm.preflight.devices import devices
from lm.preflight.processors import Processor
from lm.preflight.products import Flops, products
from lm.preflight.program import Memory
from lm.training.train_step import abstract_state
from lm.types import Batch, Output, TrainState, apply_of


def check(config: ConfigDict, slice_: Slice) -> Checked:
  """Returns what is known of a config's train step on processors, without any compiler.

  Raises:
    UserError: the config is wrong, does not divide over the processors, or reads what cannot be
      described without its data.
  """
  chip = slice_.chip
  assert isinstance(chip, Processor)
  config = traceable(config) if chip.platform == 'gpu' else config
  functions = components.build_components(config, program.vocabulary(config), devices(slice_))
  state, _ = abstract_state(functions)
  batch = program.batch_of(config, functions)
  with program.described(config):
    part = _part(functions, batch, config.microbatches)
    kept = program.activations(functions, state, part)
    memory = Memory(
      program.held(state.params),
      program.held(state.opt_state),
      kept,
      temporaries(config, functions, state, part),
    )
    work = _work(config, functions, state, part, kept)
  step = program.step_of(config, functions, state, memory)
  return Checked(
    step,
    work.sent,
    bound(work, functions.mesh, slice_, step.model_flops, step.tokens),
    program.replicated(functions.mesh, state.params, LARGE),
    chip.room,
  )


def traceable(config: ConfigDict) -> ConfigDict:
  """Returns the config with attention that can be traced without a GPU (lm.preflight.kernel)."""

  def replace(section: ConfigDict) -> None:
    for key, value in section.items():
      if isinstance(value, ConfigDict):
        replace(value)
      elif key == 'attention_fn' and value in kernel.PATHS:
        section[key] = kernel.PATHS[value]

  other = copy.deepcopy(config)
  with other.unlocked():
    replace(other.model)
  return other


def temporaries(config: ConfigDict, functions: Components, state: TrainState, part: Batch) -> int:
  """Returns the bytes that a device holds at some time beside state and activations, about.

  Args:
    config: of the functions.
    functions: of the config.
    state: abstract, with its shardings.
    part: what is taken at once of a batch, abstract.
  """
  gradients = program.held(state.params)
  before = gradients if config.microbatches > 1 else 0
  again = _layer(config, functions, state, part)
  with meshes.set_mesh(functions.mesh, functions.rules):
    output: Output = jax.eval_shape(functions.apply, state.params, part)
    table, hidden = output.head.kernel_VD, output.hidden
    V = output.head.padded_vocab_size
    chunk = config.objective.chunk if 'chunk' in config.objective else 0
    B, T = hidden.shape[:2]
    positions = B * chunk_size(B, T, V, chunk) / meshes.num_shards('batch')
    share = meshes.num_shards('vocab')
  logits = 2 * positions * V * 4 / share
  tables = table.size * (hidden.dtype.itemsize + 4) / share
  return int(before + max(gradients + again, logits + tables))


def _layer(config: ConfigDict, functions: Components, state: TrainState, part: Batch) -> float:
  """Returns the bytes that one layer keeps of the pass forward while it is computed again."""
  if 'remat_policy' not in config.model or config.model.remat_policy is None:
    return 0.0
  other = copy.deepcopy(config)
  with other.unlocked():
    other.model.remat_policy = None
  apply = apply_of(components.model(other, program.vocabulary(other)))
  keeping = functions._replace(apply=mesh.with_mesh(apply, functions.mesh, functions.rules))
  return program.activations(keeping, state, part) / config.model.depth


def _part(functions: Components, batch: Batch, parts: int) -> Any:
  """Returns the shapes of one of the parts that a batch is taken in, with what is drawn for it."""
  part = {
    name: jax.ShapeDtypeStruct((x.shape[0] // parts, *x.shape[1:]), x.dtype)
    for name, x in batch.items()
  }
  sample = functions.objective.sample
  if sample is None:
    return part
  return jax.eval_shape(lambda part: sample(part, jax.random.key(0)), part)


def _work(
  config: ConfigDict, functions: Components, state: TrainState, part: Batch, kept: int
) -> Work:
  parts = config.microbatches

  def loss(params: Any, batch: Batch) -> Any:
    return sum(functions.objective.loss_sums(functions.apply, params, batch, None).values())

  once = products(
    mesh.with_mesh(jax.grad(loss), functions.mesh, functions.rules), state.params, part
  )
  parameters, optimizer = program.held(state.params), program.held(state.opt_state)
  # Forward and backward the weights are read, and what is kept is written and read. Gradients are
  # written, read for their norm and read again; all that changes is read and written.
  passed = parts * 2 * (_weights(functions, state) + kept) + parameters
  return Work(
    {size: parts * flops for size, flops in once.items()},
    passed,
    _update(functions, state),
    2 * parameters + 2 * (parameters + optimizer),
    least.least(config, functions.model, functions.mesh, state.params),
  )


def _weights(functions: Components, state: TrainState) -> float:
  """Returns the bytes of the parameters that a device computes with, in the model's numbers.

  They come together over the axes of rows; a table of embeddings, of which few rows may be read, is
  left out.
  """
  dtype = jnp.dtype(getattr(functions.model, 'dtype', jnp.float32))
  total = 0.0
  for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
    if str(getattr(path[-1], 'key', path[-1])) == 'embedding':
      continue
    sharding = leaf.sharding
    assert isinstance(sharding, NamedSharding)
    names = [name for entry in sharding.spec for name in least.names(entry)]
    split = [functions.mesh.shape[name] for name in names if name not in least.ROWS]
    size = leaf.size * dtype.itemsize
    for pieces in split:
      size /= pieces
    total += size
  return total


def _update(functions: Components, state: TrainState) -> Flops:
  """Returns the FLOPs of the products that an optimizer makes, such as Muon's."""
  transformation = optax.with_extra_args_support(functions.optimizer.transformation)

  def update(gradients: Any, opt_state: Any, params: Any) -> Any:
    norm = optax.tree.norm(gradients)
    return transformation.update(gradients, opt_state, params, gradient_norm=norm)

  with_mesh = mesh.with_mesh(update, functions.mesh, functions.rules)
  return products(with_mesh, state.params, state.opt_state, state.params)
