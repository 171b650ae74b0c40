"""The train step of a config on a slice of TPUs, compiled by libtpu without a TPU.

The compiler gives the memory of the program. The HLO gives the collectives and an estimated time
(lm.preflight.hlo). Activations and a lower bound of the communication follow from shapes and
shardings. `lm.preflight.analytic`, which does not compile, uses these functions too.
"""

import contextlib
import copy
import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lm import components
from lm.components import Components
from lm.data import batches
from lm.errors import UserError
from lm.models.transformer import Transformer
from lm.parallel import mesh as meshes
from lm.parallel.chips import GIB
from lm.parallel.mesh import bytes_per_device
from lm.preflight import hlo, topology
from lm.text.tokenizers import END, UNKNOWN, known_words, with_special_tokens
from lm.training.train_step import abstract_state, for_objective, make_train_step
from lm.types import Batch, Params, TrainState

# A fully replicated array of at least this many bytes appears in the report.
LARGE = 1 << 20

Memory = Mapping[str, float]  # bytes of one device, by category


class Step(NamedTuple):
  """A train step of a config on some devices."""

  functions: Components
  state: TrainState  # abstract, with shardings
  batch: dict[str, Any]  # abstract, with shardings
  tokens: int  # of a batch, those of sources included
  model_flops: float  # of a batch, forward and backward, without recomputation; 0 if unknown


class Result(NamedTuple):
  """Memory, communication and time of a train step."""

  step: Step
  memory: Memory
  capacity: float  # bytes of a device that a program may use
  lower_bound: Mapping[str, float] | None  # bytes that a device must send, by mesh axis
  timing: hlo.Timing
  collectives: Sequence[hlo.Collective] | None = None  # of the compiled program, if there is one
  program: str = ''  # its HLO
  compile_seconds: float | None = None

  @property
  def needed(self) -> float:
    """Returns the bytes that the step needs on each device."""
    return sum(self.memory.values())

  @property
  def fits(self) -> bool:
    """Returns whether the step fits into the memory of each device."""
    return self.needed <= self.capacity


class DoesNotFit(Exception):
  """The compiler cannot fit a program into the memory of a device."""

  def __init__(self, needed: float, capacity: float):
    super().__init__(f'{needed / GIB:.1f} GiB do not fit into {capacity / GIB:.1f} GiB')
    self.needed, self.capacity = needed, capacity  # bytes


def check(config: ConfigDict, slice_: topology.Slice) -> Result:
  """Compiles the train step of a config for a slice of TPUs.

  Raises:
    UserError: the config is wrong, or its sizes are not divisible by the mesh or the devices; or
      its objective reads keys of a batch that are unknown without the data.
    DoesNotFit: the compiler finds no program that fits.
  """
  step = describe(config, topology.devices(slice_))
  functions, params = step.functions, step.state.params
  function = make_train_step(functions, config.seed, config.microbatches, step.state)
  with tracing(config):
    _, compiled, seconds = compile_program(function, step.state, step.batch)
  program = hlo.parse(compiled.as_text())
  held = {
    'parameters': bytes_per_device(params),
    'optimizer': bytes_per_device(step.state.opt_state),
  }
  memory = memory_of(compiled, held)
  # Activations are a part of the temporaries.
  saved = min(activations(functions, params, step.batch), memory['temporaries'])
  memory = held | {'activations': saved} | memory
  memory['temporaries'] -= saved
  collectives = hlo.collectives(program, functions.mesh)
  return Result(
    step,
    memory,
    slice_.chip.usable_memory,
    comm_lower_bound(config, functions.model, functions.mesh, params),
    hlo.estimate(
      program, collectives, functions.mesh.devices.flat, slice_, step.model_flops, step.tokens
    ),
    collectives,
    compiled.as_text(),
    seconds,
  )


def compile_program(function: Any, *args: Any) -> tuple[Any, Any, float]:
  """Returns the `jax.stages.Lowered`, the `jax.stages.Compiled`, and the seconds for both.

  Args:
    function: jitted.
    args: abstract, with shardings.

  Raises:
    DoesNotFit: the program needs more memory than a device has.
  """
  start = time.perf_counter()
  lowered = function.lower(*args)
  try:
    return lowered, lowered.compile(), time.perf_counter() - start
  except jax.errors.JaxRuntimeError as e:
    if found := re.search(r'\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)', str(e)):
      raise DoesNotFit(*(float(size) * GIB for size in found.groups())) from e
    raise


def memory_of(compiled: Any, held: Mapping[str, float]) -> dict[str, float]:
  """Returns the memory of a device while it runs a program.

  Args:
    compiled: the `jax.stages.Compiled`.
    held: bytes of donated arguments by name; results take their place.
  """
  analysis = compiled.memory_analysis()
  temporaries = analysis.peak_memory_in_bytes - sum(held.values())
  return {**held, 'temporaries': temporaries, 'program': analysis.generated_code_size_in_bytes}


def describe(config: ConfigDict, devices: Sequence[Any]) -> Step:
  """Returns the train step of a config on some devices.

  Raises:
    UserError: the config is wrong, or its sizes are not divisible by the mesh or the devices.
  """
  if config.view or any(section.workdir or section.frozen for section in config.models.values()):
    raise UserError(
      'view and models: lm.preflight estimates models whose fresh parameters are trained, no view '
      'and no frozen tree'
    )
  functions = components.build_components(config, vocabulary(config), devices)
  state, _ = abstract_state(functions)
  if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(state.params)):
    raise UserError(
      f'model.fn={config.model.fn!r} has integers as parameters, which no gradient trains; '
      'lm.preflight estimates training'
    )
  batch = _batch(config, functions)
  tokens = sum(batch[name].size for name in ('inputs', 'source') if name in batch)
  flops = None
  if not config.models:
    flops = components.flops_per_token(config, functions.model, state.params)
  model_flops = tokens * (flops or 0.0)
  return Step(functions, state, batch, tokens, model_flops)


def changed(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
  """Returns a copy of a config with new values for the dotted keys in `changes`."""
  other = copy.deepcopy(config)
  with other.unlocked():
    other.update_from_flattened_dict(changes)
  return other


def vocabulary(config: ConfigDict) -> int:
  """Returns the vocabulary size of a config, without training its tokenizer.

  Raises:
    UserError: the config does not contain it.
  """
  size = config.model.vocab_size or config.data.tokenizer.to_dict().get('vocab_size')
  if not size:
    raise UserError(
      'model.vocab_size is empty and data.tokenizer has no vocab_size: set '
      '--config.model.vocab_size=N, the count of token ids of the tokenizer'
    )
  return size


def has_source(config: ConfigDict) -> bool:
  """Returns whether the examples of a batch have a source and a target."""
  return 'encoder_depth' in config.model or 'encoder' in config.model


def _batch(config: ConfigDict, functions: Components) -> dict[str, Any]:
  """Returns the shapes of a batch of full rows, each with one text, pair or labeled text."""
  B, T, S = config.batch_size, config.data.seq_len, config.data.source_len
  sharding = meshes.batch_sharding(functions.mesh, functions.rules)

  def array(width: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((B, width), dtype, sharding=sharding)

  if config.data.task is None and config.data.transforms:
    row = _transformed_text(config)
    return {name: array(len(values), values.dtype) for name, values in row.items()}

  batch = dict.fromkeys(('inputs', 'targets', 'segments', 'positions', 'bytes'), array(T))
  batch['weights'] = array(T, jnp.float32)
  if has_source(config):
    batch |= dict.fromkeys(('source', 'source_segments', 'source_positions'), array(S))
  if config.data.task is not None:
    batch |= {'examples': array(1), 'labels': array(1)}
  return batch


def _transformed_text(config: ConfigDict) -> dict[str, np.ndarray]:
  """Returns a row of running text after the transforms of a config, with tokens of no meaning."""
  tokens = np.full(config.data.seq_len, 2, np.int32)
  names = ('inputs', 'targets', 'segments', 'positions', 'bytes', 'words')
  row = dict.fromkeys(names, tokens) | {'weights': np.ones(len(tokens), np.float32)}
  row |= {'segments': np.ones_like(tokens), 'positions': np.arange(len(tokens), dtype=np.int32)}
  known = known_words((END, UNKNOWN, 'word'))
  tokenizer = with_special_tokens(known, config.data.special_tokens)
  for transform in batches.open_transforms(config.data.transforms, tokenizer, [row]):
    row = transform(row, np.random.default_rng(0))
  components.check_length(config, components.abstract_row(row), 'data.transforms')
  return row


@contextlib.contextmanager
def tracing(config: ConfigDict) -> Iterator[None]:
  """Raises UserError if an objective that is traced in the block reads a key that no batch has."""
  try:
    yield
  except KeyError as e:
    raise UserError(
      f'objective.fn={config.objective.fn!r} reads {e} of a batch; lm.preflight supports '
      'objectives on text, pairs of texts and labels only'
    ) from e


def loss_of(functions: Components) -> Callable[[Params, Batch], Any]:
  """Returns `(params, batch) -> sum of the loss terms`."""
  apply, join = for_objective(functions, {})

  def loss(params: Params, batch: Batch) -> Any:
    joined = params if join is None else join(params)
    return sum(functions.objective.loss_sums(apply, joined, batch, None).values())

  return loss


def activations(functions: Components, params: Params, batch: Batch) -> int:
  """Returns the approximate bytes that the forward pass saves on a device for the backward pass.

  Residuals with the shape of a parameter are parameters and do not count. The others are sharded
  like the batch. A residual whose axes after the first have the shape of a parameter is taken for
  stacked copies of a table. Such copies are sharded over `vocab`, too.
  """

  def backward(params: Params, batch: Batch) -> Any:
    return jax.vjp(lambda params: loss_of(functions)(params, batch), params)[1]

  with meshes.set_mesh(functions.mesh, functions.rules):
    residuals = jax.eval_shape(backward, params, batch)
    rows, tables = meshes.num_shards('batch'), meshes.num_shards('vocab')
  shapes = {x.shape for x in jax.tree.leaves(params)}
  return sum(
    x.size * x.dtype.itemsize // (rows * (tables if x.shape[1:] in shapes else 1))
    for x in jax.tree.leaves(residuals)
    if x.shape not in shapes
  )


def replicated(step: Step) -> dict[str, tuple[int, ...]]:
  """Returns path and shape of the large parameters that every device holds in full."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): x.shape
    for path, x in jax.tree_util.tree_leaves_with_path(step.state.params)
    if step.functions.mesh.size > 1
    and x.sharding.is_fully_replicated
    and x.size * x.dtype.itemsize >= LARGE
  }


def comm_lower_bound(
  config: ConfigDict, model: nn.Module, mesh: Mesh, params: Params
) -> dict[str, float] | None:
  """Returns the fewest bytes that a device sends in a step of a Transformer, by mesh axis.

  The bound holds for the given sharding. FSDP all-gathers kernels for the forward pass and again
  for the backward pass, and reduce-scatters their gradients (Rajbhandari et al. 2020, ZeRO, section
  7). An output table is all-gathered once, since its gradient is computed together with the logits.
  An embedding table counts as the smaller transfer: the looked up vectors with their gradients, or
  the all-gather of the table and the reduce-scatter of its gradient. Over `tensor` each sublayer
  all-reduces its output and the gradient of its input (Shoeybi et al. 2019, Megatron-LM, section
  3).

  Args:
    config: of the model.
    model: the result is None unless this is a Transformer, alone; its mesh rules must be the
      default.
    mesh: of the step.
    params: abstract, with shardings.
  """
  if config.models or not isinstance(model, Transformer):
    return None
  sizes, itemsize = mesh.shape, jnp.dtype(model.dtype).itemsize
  replicas = sizes['data'] * sizes['fsdp']
  sums: dict[str, float] = defaultdict(float)
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path[-1:], simple=True)
    elements = shard = gathered_size(leaf, mesh)
    if 'fsdp' in _axes(leaf) and sizes['fsdp'] > 1:
      passes = config.microbatches * (2 if name.endswith('embedding') else 3)
      looked_up = 2 * _looked_up(config, model, name) / replicas
      sums['fsdp'] += min(passes * elements, looked_up) * itemsize * _ring(sizes['fsdp'], 1)
      shard /= sizes['fsdp']
    else:
      sums['fsdp'] += elements * itemsize * _ring(sizes['fsdp'], 2)
    sums['data'] += shard * itemsize * _ring(sizes['data'], 2)
  if sizes['tensor'] > 1:
    passes = 2 if config.model.remat_policy is None else 3
    # The embeddings and the gradient of the last hidden states are all-reduced, too.
    positions = passes * _sublayer_positions(config) + 2 * config.data.seq_len
    elements = positions * config.batch_size / replicas * model.d_model
    sums['tensor'] += elements * itemsize * _ring(sizes['tensor'], 2)
  return dict(sums)


def gathered_size(leaf: Any, mesh: Mesh) -> float:
  """Returns the elements of an abstract array on a device, once it is all-gathered by FSDP."""
  return leaf.size / math.prod(mesh.shape[axis] for axis in _axes(leaf) - {'data', 'fsdp'})


def _axes(leaf: Any) -> set[str]:
  """Returns the mesh axes over which an abstract array is sharded."""
  return {axis for entry in leaf.sharding.spec for axis in meshes.axes_of(entry)}


def _looked_up(config: ConfigDict, model: Transformer, name: str) -> float:
  """Returns the elements of all vectors looked up in a table; infinite if a matmul reads it."""
  if name == 'source_embedding':
    tokens = config.data.source_len
  elif name == 'embedding' and (
    not model.tie_embeddings or getattr(model, 'num_classes', None) is not None
  ):
    both = 'encoder_depth' in config.model and model.share_embeddings
    tokens = config.data.seq_len + (config.data.source_len if both else 0)
  else:
    return math.inf
  return config.batch_size * tokens * model.d_model


def _ring(size: int, passes: int) -> float:
  """Returns the share of an array that a device of a ring sends."""
  return passes * (size - 1) / size


def _sublayer_positions(config: ConfigDict) -> int:
  """Returns the positions of a row, summed over all sublayers."""
  model, data = config.model, config.data
  if 'encoder_depth' not in model:
    return 2 * model.depth * data.seq_len
  encoder = model.depth if model.encoder_depth is None else model.encoder_depth
  return 3 * model.depth * data.seq_len + 2 * encoder * data.source_len
