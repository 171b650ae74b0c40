"""What it takes to write a token: the loop of the decoders, compiled for a slice of TPUs.

Evaluations write on the mesh that the model is trained on, with the parameters where they lie
(lm.evaluation.predict): what is kept of rows is split by rows and heads, and activations come to the
weights (lm.parallel.mesh.weight_stationary). Compiled are the steps of greedy decoding,
or of a beam search, that write the longest texts, for `decode.batch_size` rows at once; prompts and
sources were read before.
What is done once for all steps, such as to make weights of 16 bits of those of 32, counts little.
"""

import functools
import math
import time
from collections.abc import Callable
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
from lm.parallel import mesh
from lm.parallel import mesh as meshes
from lm.preflight import hlo, program, roofline
from lm.preflight.chips import Slice
from lm.preflight.collectives import Collective, collectives
from lm.preflight.program import Step
from lm.preflight.roofline import Estimate
from lm.types import Apply, Array, Params, apply_of

# (params, state without the cache, cache) -> both after all steps
Loop = Callable[[Params, Any, Any], tuple[Any, Any]]


class Memory(NamedTuple):
  """Bytes of one device."""

  parameters: int
  cache: int  # what is kept of the rows
  temporaries: int
  program: int

  @property
  def total(self) -> int:
    """Returns their sum."""
    return sum(self)


class Decoding(NamedTuple):
  """One token more for each row."""

  rows: int
  beam: int  # hypotheses of a row
  slots: int  # tokens of a row that there is room for
  source: int  # tokens of a row of an encoder; 0 where there is none
  memory: Memory
  flops: float  # of all rows
  exchanges: list[Collective]
  read: float  # seconds that a device takes to read the weights it uses, and the cache
  estimate: Estimate
  seconds: float  # that compiling took


def check_writes(config: ConfigDict) -> None:
  """Raises UserError where a config's model does not write token by token, or not so wide."""
  model = components.model(config, program.vocabulary(config))
  if config.data.task is None:
    writes = model.continues_prompts
  else:
    writes = features.open_task(config.data)[1].predict is None
  if not writes:
    raise UserError(
      f'--decode: model.fn={config.model.fn!r} does not write token by token; leave --decode out'
    )
  check_beam_size(config.decode.beam_size, model.vocab_size)


def compile_decode(config: ConfigDict, slice_: Slice, step: Step) -> Decoding:
  """Compiles the loop of the decoders for the mesh of a train step.

  Args:
    config: of a model that writes.
    slice_: the chips.
    step: the train step, which says where the parameters lie.

  Raises:
    NoRoom: it does not fit.
  """
  functions, params, decode = step.functions, step.state.params, config.decode
  model, apply = functions.model, apply_of(functions.model)
  with meshes.set_mesh(functions.mesh, functions.rules):
    rows = rows_per_batch(decode.batch_size, decode.batch_size)
  steps = decode.max_tokens or config.data.context
  steps = steps if model.reads_on else min(steps, model.context)
  source = config.data.source_context if program.reads_source(config) else 0
  loop, rest, cache = begun(config, model, apply, params, rows, steps, source)
  # What no step uses is held all the same.
  jitted = jax.jit(
    mesh.with_mesh(loop, functions.mesh, functions.rules), donate_argnums=(1, 2), keep_unused=True
  )
  started = time.perf_counter()
  lowered = jitted.lower(params, rest, cache)
  compiled = program.compile_lowered(lowered)
  taken = time.perf_counter() - started
  memory = memory_of(params, lowered, compiled)
  size = jnp.dtype(getattr(model, 'dtype', 'float32')).itemsize
  flops, used = of_a_step(apply, params, rows * decode.beam_size, cache, size)
  read = (used + memory.cache) / slice_.chip.bandwidth * slice_.chip.devices
  text = hlo.parse(compiled.as_text())
  exchanges = [one._replace(times=one.times / steps) for one in collectives(text, functions.mesh)]
  devices = list(functions.mesh.devices.flat)
  found = roofline.estimate(text, exchanges, devices, slice_, flops, rows, steps, read)
  return Decoding(
    rows,
    decode.beam_size,
    steps * decode.beam_size,
    source,
    memory,
    flops,
    exchanges,
    read,
    found,
    taken,
  )


def begun(
  config: ConfigDict,
  model: nn.Module,
  apply: Apply,
  params: Params,
  rows: int,
  steps: int,
  source: int,
) -> tuple[Loop, Any, Any]:
  """Returns the decoding loop, and the shapes of its state without the cache and of the cache.

  Args:
    config: whose decode section says how.
    model: of the config.
    apply: its pure function.
    params: abstract.
    rows: how many texts.
    steps: tokens of the longest text.
    source: tokens of a row of an encoder; 0 where there is none.
  """
  how = DecodeConfig(
    end=0,
    max_tokens=steps,
    beam_size=config.decode.beam_size,
    length_penalty=config.decode.length_penalty,
  )

  def read(params: Params) -> Any:
    batch = _batch(('inputs', 'segments', 'positions'), rows, 1)
    if source:
      batch |= _batch(('source', 'source_segments', 'source_positions'), rows, source)
    keys_B, limits_B = row_keys(jnp.uint32(0), jnp.arange(rows)), jnp.full(rows, steps)
    return begin(model, apply, how, steps, params, batch, keys_B, limits_B)

  state = _plain(jax.eval_shape(read, _plain(params)))
  loop = functools.partial(_loop, functools.partial(advance, model, apply, how), steps)
  return loop, state._replace(cache=None), state.cache


def _loop(
  advance: Callable[[Params, Any], Any], steps: int, params: Params, rest: Any, cache: Any
) -> tuple[Any, Any]:
  """Runs lm.decode.loop.decode_loop with a fixed number of steps, which the cost analysis needs."""
  state, _ = jax.lax.scan(
    lambda state, _: (advance(params, state), None), rest._replace(cache=cache), length=steps
  )
  return state._replace(cache=None), state.cache


def memory_of(params: Params, lowered: Any, compiled: Any) -> Memory:
  """Returns what a device holds in the course of the loop."""
  analysis = compiled.memory_analysis()
  parameters = program.held(params)
  state, places = lowered.out_info[1], compiled.output_shardings[1]
  sizes = jax.tree.map(
    lambda x, place: math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize, state, places
  )
  cache = sum(jax.tree.leaves(sizes))
  return Memory(
    parameters,
    cache,
    analysis.peak_memory_in_bytes - parameters - cache,
    analysis.generated_code_size_in_bytes,
  )


def of_a_step(
  apply: Apply, params: Params, rows: int, cache: Any, size: int
) -> tuple[float, float]:
  """Returns the FLOPs of one step, and the bytes of the parameters that a device reads in it.

  Tables that are only looked up are not read, nor is an encoder. The others are read as the
  numbers that the model computes with, of which the compiler makes copies before the loop.

  Args:
    apply: the pure function of a model.
    params: abstract, with their shardings.
    rows: all hypotheses of all rows.
    cache: abstract.
    size: bytes of a number that the model computes with.
  """
  ids_R = jax.ShapeDtypeStruct((rows,), jnp.int32)
  traced = jax.jit(lambda params, *args: make_decode_step(apply, params)(*args)).trace(
    _plain(params), ids_R, ids_R, cache
  )
  jaxpr = traced.jaxpr.jaxpr
  used = {id(x) for x in jaxpr.outvars}
  for eqn in reversed(jaxpr.eqns):
    if used & {id(x) for x in eqn.outvars}:
      looked_up = eqn.params.get('name') == '_take'
      used |= {id(x) for x in eqn.invars[looked_up:]}
  leaves = jax.tree.leaves(params)
  read = [leaf for leaf, x in zip(leaves, jaxpr.invars, strict=False) if id(x) in used]
  return float(traced.lower().cost_analysis()['flops']), sum(
    program.held(leaf) * min(size / leaf.dtype.itemsize, 1) for leaf in read
  )


def _batch(names: tuple[str, ...], rows: int, width: int) -> dict[str, Array]:
  return dict.fromkeys(names, jnp.ones((rows, width), jnp.int32))


def _plain(tree: Any) -> Any:
  """Returns abstract arrays without where they lie."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
