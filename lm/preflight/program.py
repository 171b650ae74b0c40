"""The train step of a config, compiled for a slice of TPUs by the real compiler and without one.

`libtpu` compiles for chips that are described to it (`jax.experimental.topologies`); what comes out
is the program that those chips would run, with its memory.
"""

import contextlib
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from lm import components
from lm.components import Components
from lm.errors import UserError
from lm.parallel import mesh as meshes
from lm.preflight.chips import GIB, Slice
from lm.preflight.devices import devices
from lm.training.train_step import abstract_state, make_train_step
from lm.types import Batch, TrainState

_NO_ROOM = re.compile(r'\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)')


class Memory(NamedTuple):
  """Bytes of one chip."""

  parameters: int
  optimizer: int
  activations: int  # what the pass forward keeps for the one backward, about
  temporaries: int  # all else that is held at some time
  program: int | None = None  # None where there is no program

  @property
  def total(self) -> int:
    """Returns their sum."""
    return sum(size or 0 for size in self)


class Step(NamedTuple):
  """What is known of a train step."""

  functions: Components
  state: TrainState  # abstract, with its shardings
  parameters: int  # how many, on all chips together
  tokens: int  # of a batch, those of sources included
  model_flops: float  # of a batch, forward and backward, without what is computed twice
  memory: Memory


class Program(NamedTuple):
  """What the compiler makes of a step."""

  text: str
  seconds: float  # that compiling took


class NoRoom(Exception):
  """The compiler finds no way to do with the memory of a chip."""

  def __init__(self, needed: float, room: float):
    super().__init__(f'{needed / GIB:.1f} GiB do not fit into {room / GIB:.1f} GiB')
    self.needed = needed  # bytes
    self.room = room


def compile_step(config: ConfigDict, slice_: Slice) -> tuple[Step, Program]:
  """Compiles the train step of a config for a slice.

  Raises:
    UserError: the config is wrong, does not divide over the slice, or reads what cannot be
      described without its data.
    NoRoom: it does not fit.
  """
  functions = components.build_components(config, vocabulary(config), devices(slice_))
  abstract, _ = abstract_state(functions)
  batch = batch_of(config, functions)
  step = make_train_step(functions, config.seed, config.microbatches, abstract)
  started = time.perf_counter()
  with described(config):
    lowered = step.lower(abstract, batch)
  compiled = compile_lowered(lowered)
  taken = time.perf_counter() - started
  held_ = memory(functions, abstract, batch, compiled.memory_analysis())
  return step_of(config, functions, abstract, held_), Program(compiled.as_text(), taken)


@contextlib.contextmanager
def described(config: ConfigDict) -> Iterator[None]:
  """Tells of an objective that reads more of a batch than `batch_of` describes.

  Raises:
    UserError: it does.
  """
  try:
    yield
  except KeyError as e:
    raise UserError(
      f'objective.fn={config.objective.fn!r} asks for {e} of a batch; lm.preflight describes rows '
      'of text, of pairs of texts and of labels only'
    ) from e


def step_of(config: ConfigDict, functions: Components, state: TrainState, memory: Memory) -> Step:
  """Returns what is known of a step whose memory is known."""
  flops = getattr(functions.model, 'flops_per_token', None)
  tokens = tokens_of(config)
  return Step(
    functions,
    state,
    components.parameter_count(state.params),
    tokens,
    tokens * flops(state.params, config.data.context) if flops else 0.0,
    memory,
  )


def compile_lowered(lowered: Any) -> Any:
  """Returns the `jax.stages.Compiled` of a program, for the chips that its arguments are on.

  Raises:
    NoRoom: it does not fit.
  """
  try:
    return lowered.compile()
  except jax.errors.JaxRuntimeError as e:
    if found := _NO_ROOM.search(str(e)):
      raise NoRoom(*(float(size) * GIB for size in found.groups())) from e
    raise


def vocabulary(config: ConfigDict) -> int:
  """Returns the entries of the tokenizer, which is not made here.

  Raises:
    UserError: the config does not say.
  """
  if config.model.vocab_size is not None:
    return config.model.vocab_size
  size = config.data.tokenizer.to_dict().get('vocab_size')
  if not size:
    raise UserError(
      'model.vocab_size is empty and data.tokenizer has no vocab_size: give '
      '--config.model.vocab_size=N, the entries of the tokenizer'
    )
  return size


def tokens_of(config: ConfigDict) -> int:
  """Returns the tokens of a batch of full rows, those of sources included."""
  source = config.data.source_context if reads_source(config) else 0
  return config.batch_size * (config.data.context + source)


def reads_source(config: ConfigDict) -> bool:
  """Returns whether a batch has sources beside."""
  return 'encoder_depth' in config.model or 'encoder' in config.model


def batch_of(config: ConfigDict, functions: Components) -> dict[str, Any]:
  """Returns the shapes of a batch of rows, each of one text, or pair of texts, or labelled text."""
  B, T, S = config.batch_size, config.data.context, config.data.source_context
  rows = meshes.batch_sharding(functions.mesh, functions.rules)

  def array(width: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((B, width), dtype, sharding=rows)

  batch: dict[str, Any] = dict.fromkeys(
    ('inputs', 'targets', 'segments', 'positions', 'bytes'), array(T)
  )
  batch['weights'] = array(T, jnp.float32)
  if reads_source(config):
    batch |= dict.fromkeys(('source', 'source_segments', 'source_positions'), array(S))
  if config.data.task is not None:
    batch |= {'examples': array(1), 'labels': array(1)}
  return batch


def memory(functions: Components, state: TrainState, batch: Batch, analysis: Any) -> Memory:
  """Returns what a chip holds in the course of a step.

  Args:
    functions: of the config.
    state: abstract, with its shardings.
    batch: likewise.
    analysis: what the compiler says of its program.
  """
  parameters, optimizer = held(state.params), held(state.opt_state)
  # The old state is given away, and the new one is laid over it.
  temporary = analysis.peak_memory_in_bytes - parameters - optimizer
  kept = min(activations(functions, state, batch), temporary)
  return Memory(
    parameters, optimizer, kept, temporary - kept, analysis.generated_code_size_in_bytes
  )


def held(tree: Any) -> int:
  """Returns the bytes of a chip's part of abstract arrays."""
  return sum(
    int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def activations(functions: Components, state: TrainState, batch: Batch) -> int:
  """Returns about how many bytes the pass forward keeps for the pass backward, on a chip.

  What has the shape of a parameter is taken for one; the rest is split as rows are, and the copies
  of a table by `tensor`, too.
  """

  def backward(params: Any, batch: Batch) -> Any:
    def loss(params: Any) -> Any:
      return sum(functions.objective.loss_sums(functions.apply, params, batch, None).values())

    return jax.vjp(loss, params)[1]

  with meshes.set_mesh(functions.mesh, functions.rules):
    kept = jax.eval_shape(backward, state.params, batch)
    rows, tables = meshes.num_shards('batch'), meshes.num_shards('vocab')
  shapes = {x.shape for x in jax.tree.leaves(state.params)}

  def held(x: Any) -> int:
    pieces = rows * (tables if x.shape[1:] in shapes else 1)
    return 0 if x.shape in shapes else x.size * x.dtype.itemsize // pieces

  return sum(held(x) for x in jax.tree.leaves(kept))


def replicated(mesh: Mesh, tree: Any, least: int) -> list[tuple[str, tuple[int, ...]]]:
  """Returns path and shape of the arrays of at least so many bytes that every chip holds whole."""
  return [
    (jax.tree_util.keystr(path, simple=True, separator='/'), x.shape)
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
    if mesh.size > 1
    and isinstance(x.sharding, NamedSharding)
    and x.sharding.is_fully_replicated
    and x.size * x.dtype.itemsize >= least
  ]
