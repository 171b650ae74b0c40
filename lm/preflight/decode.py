"""One decoding step of a config, compiled for a slice of TPUs.

Evaluations decode on the mesh of training, with its sharding of parameters (lm.evaluation.predict).
The KV cache is sharded by rows and heads, and weights stay in their shards
(lm.parallel.mesh.weight_stationary). The compiled program is the loop of greedy decoding or beam
search. It generates texts of the maximum length for `decode.batch_size` rows, after the prefill.
The time includes a little work outside the loop, such as casting the weights to bfloat16.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lm import components
from lm.data import features
from lm.decode.batch import advance, begin, rows_per_batch
from lm.decode.beam import check_beam_size
from lm.decode.loop import DecodeConfig, make_decode_step
from lm.decode.sampling import row_keys
from lm.errors import UserError
from lm.parallel import mesh as meshes
from lm.parallel.mesh import bytes_per_device
from lm.preflight import hlo, topology, train_step
from lm.types import Apply, Params, apply_of


class Decoding(NamedTuple):
  """Memory, communication and time of a step that generates one token per row."""

  rows: int
  beam: int  # hypotheses of a row
  cache_tokens: int  # tokens of a row that the KV cache holds
  source_tokens: int  # of a row's encoder input; 0 without an encoder
  memory: train_step.Memory
  flops: float  # of all rows
  collectives: Sequence[hlo.Collective]
  timing: hlo.Timing
  compile_seconds: float

  @property
  def needed(self) -> float:
    """Returns the bytes that decoding needs on each device."""
    return sum(self.memory.values())


def check_config(config: ConfigDict) -> None:
  """Raises UserError unless the model of a config generates text with the config's beam size."""
  model = components.model(config, train_step.vocabulary(config))
  generates = (
    model.continues_prompts
    if config.data.task is None
    else features.build_task(config.data)[1].predict is None
  )
  if not generates:
    raise UserError(f'--decode: model.fn={config.model.fn!r} does not generate text')
  check_beam_size(config.decode.beam_size, model.vocab_size)


def check(
  config: ConfigDict, slice_: topology.Slice, step: train_step.Step
) -> Decoding | train_step.DoesNotFit:
  """Compiles the decoding loop of a config on the mesh of its train step.

  Args:
    config: of a model that generates text.
    slice_: the chips.
    step: the train step, with the sharding of the parameters.

  Returns:
    A Decoding; if no program fits, a DoesNotFit, which is returned and not raised.
  """
  functions, params = step.functions, step.state.params
  model, apply = functions.model, apply_of(functions.model)
  with meshes.set_mesh(functions.mesh, functions.rules):
    rows = rows_per_batch(config.decode.batch_size, config.decode.batch_size)
  steps = config.decode.max_tokens or config.data.seq_len
  steps = steps if model.reads_on else min(steps, model.context)
  source = config.data.source_len if train_step.has_source(config) else 0
  loop, carry, cache = decoding_loop(config, model, apply, params, rows, steps, source)
  # Parameters that the loop does not use occupy memory, too.
  jitted = jax.jit(
    meshes.with_mesh(loop, functions.mesh, functions.rules), donate_argnums=(1, 2), keep_unused=True
  )
  try:
    lowered, program, seconds = train_step.compile_program(jitted, params, carry, cache)
  except train_step.DoesNotFit as e:
    return e
  sharded = jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    lowered.out_info[1],
    program.output_shardings[1],
  )
  held = {'parameters': bytes_per_device(params), 'cache': bytes_per_device(sharded)}
  memory = train_step.memory_of(program, held)
  itemsize = jnp.dtype(getattr(model, 'dtype', 'float32')).itemsize
  flops, weights = cost_of_step(apply, params, rows * config.decode.beam_size, cache, itemsize)
  traffic = (weights + memory['cache']) / slice_.chip.bandwidth * slice_.chip.devices
  parsed = hlo.parse(program.as_text())
  collectives = [
    one._replace(times=one.times / steps) for one in hlo.collectives(parsed, functions.mesh)
  ]
  timing = hlo.estimate(
    parsed, collectives, functions.mesh.devices.flat, slice_, flops, rows, steps, traffic
  )
  return Decoding(
    rows,
    config.decode.beam_size,
    steps * config.decode.beam_size,
    source,
    memory,
    flops,
    collectives,
    timing,
    seconds,
  )


def decoding_loop(
  config: ConfigDict,
  model: nn.Module,
  apply: Apply,
  params: Params,
  rows: int,
  steps: int,
  source: int,
) -> tuple[Callable[[Params, Any, Any], tuple[Any, Any]], Any, Any]:
  """Returns the decoding loop, and the shapes of its `carry` and `cache`.

  The loop is `(params, carry, cache) -> (carry, cache)` and runs all steps. `cache` is the KV
  cache, and `carry` is the rest of the state.

  Args:
    config: its `decode` section selects greedy decoding or beam search.
    model: of the config.
    apply: its pure function.
    params: abstract.
    rows: of the batch.
    steps: tokens of the longest text.
    source: tokens of a row's encoder input; 0 without an encoder.
  """
  decode = DecodeConfig(
    end=0,
    max_tokens=steps,
    beam_size=config.decode.beam_size,
    length_penalty=config.decode.length_penalty,
  )

  def read_prompts(params: Params) -> Any:
    ones = jnp.ones((rows, 1), jnp.int32)
    batch = dict.fromkeys(('inputs', 'segments', 'positions'), ones)
    if source:
      ones = jnp.ones((rows, source), jnp.int32)
      batch |= dict.fromkeys(('source', 'source_segments', 'source_positions'), ones)
    keys_B, limits_B = row_keys(jnp.uint32(0), jnp.arange(rows)), jnp.full(rows, steps)
    return begin(model, apply, decode, steps, params, batch, keys_B, limits_B)

  def loop(params: Params, carry: Any, cache: Any) -> tuple[Any, Any]:
    # lm.decode.loop.decode_loop with a fixed number of steps, which the cost analysis needs
    state, _ = jax.lax.scan(
      lambda state, _: (advance(model, apply, decode, params, state), None),
      carry._replace(cache=cache),
      length=steps,
    )
    return state._replace(cache=None), state.cache

  state = _without_sharding(jax.eval_shape(read_prompts, _without_sharding(params)))
  return loop, state._replace(cache=None), state.cache


def cost_of_step(
  apply: Apply, params: Params, rows: int, cache: Any, itemsize: int
) -> tuple[float, float]:
  """Returns the FLOPs of one step, and the bytes of the parameters that a device reads for it.

  A step does not read the encoder, and reads only a few rows of each embedding table. It reads
  all other parameters in the compute dtype, to which the compiler casts them before the loop.

  Args:
    apply: the pure function of a model.
    params: abstract, with shardings.
    rows: count of hypotheses, over all rows of the batch.
    cache: abstract.
    itemsize: bytes of the compute dtype.
  """
  ids_R = jax.ShapeDtypeStruct((rows,), jnp.int32)
  traced = jax.jit(lambda params, *args: make_decode_step(apply, params)(*args)).trace(
    _without_sharding(params), ids_R, ids_R, cache
  )
  jaxpr = traced.jaxpr.jaxpr
  used = {id(x) for x in jaxpr.outvars}
  for eqn in reversed(jaxpr.eqns):
    if used & {id(x) for x in eqn.outvars}:
      lookup = eqn.params.get('name') == '_take'
      used |= {id(x) for x in eqn.invars[lookup:]}
  leaves = jax.tree.leaves(params)
  read = [leaf for leaf, x in zip(leaves, jaxpr.invars, strict=False) if id(x) in used]
  return float(traced.lower().cost_analysis()['flops']), sum(
    bytes_per_device(leaf) * min(itemsize / leaf.dtype.itemsize, 1) for leaf in read
  )


def _without_sharding(tree: Any) -> Any:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
