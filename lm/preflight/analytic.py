"""A train step without a compiler: memory from shapes, and a roofline bound of the time.

Parameters, optimizer state and activations follow from shapes and shardings, as for TPUs. The
temporaries are estimated from the structure of a step:

- After the forward pass there are the logits of one chunk and their gradient (lm.nn.losses). Each
  device also has the entire output table in the compute dtype, and its gradient in float32.
- In the backward pass there are the gradients, of the size of the parameters. With
  `model.remat_policy` there are also the activations of the layer that is recomputed.
- With gradient accumulation there are also the accumulated gradients.

The time is a roofline bound (Williams et al. 2009). In the forward and backward passes matmuls,
memory, links and network overlap perfectly, each at its peak, and the slowest counts. The optimizer
starts after the last gradient, since clipping needs the norm of all gradients. Real steps are
slower: they reach no peak, and they wait. The time of memory traffic is overestimated for models
whose activations fit into caches.

The FLOPs of matmuls are counted by tracing. cuDNN attention cannot be traced without a GPU, so a
stub replaces it. The stub has the shapes, matmuls and residuals of the kernel (inputs, output and
one value per query and head), but its result is not attention.
"""

import dataclasses
import functools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lm import components
from lm.nn.attention import blockwise, check_cudnn, cudnn_mask, cudnn_supported
from lm.nn.losses import chunk_size
from lm.parallel import mesh as meshes
from lm.parallel.chips import Chip
from lm.parallel.mesh import bytes_per_device
from lm.preflight import hlo, topology, train_step
from lm.types import Array, Batch, Mask, Output, apply_of

# Attention functions that need a GPU, and their stubs.
STUBS = {
  'lm.nn.attention:fused': 'lm.preflight.analytic:fused',
  'lm.nn.attention:cudnn': 'lm.preflight.analytic:cudnn',
}

Flops = dict[int, float]  # FLOPs by the element size, in bytes, of a matmul's wider operand


def check(config: ConfigDict, slice_: topology.Slice) -> train_step.Result:
  """Returns memory, communication and minimum time of a train step, without a compiler.

  Raises:
    UserError: the config is wrong, or its sizes are not divisible by the mesh or the devices; or
      its objective reads keys of a batch that are unknown without the data.
  """
  config = traceable(config) if slice_.chip.platform == 'gpu' else config
  step = train_step.describe(config, topology.devices(slice_))
  functions, params = step.functions, step.state.params
  with train_step.tracing(config), meshes.set_mesh(functions.mesh, functions.rules):
    part = _microbatch(step, config.microbatches)
    activations = train_step.activations(functions, params, part)
    memory = {
      'parameters': bytes_per_device(params),
      'optimizer': bytes_per_device(step.state.opt_state),
      'activations': activations,
      'temporaries': temporaries(config, step, part),
    }
    sent = train_step.comm_lower_bound(config, functions.model, functions.mesh, params)
    timing = _bound(config, slice_, step, part, activations, sent)
  return train_step.Result(step, memory, slice_.chip.usable_memory, sent, timing)


def traceable(config: ConfigDict) -> ConfigDict:
  """Returns the config with attention that can be traced without a GPU."""
  leaves = flatten_dict(config.to_dict(), sep='.')
  return train_step.changed(
    config,
    {
      key: STUBS[path]
      for key, path in leaves.items()
      if key.endswith('.attention_fn') and path in STUBS
    },
  )


def temporaries(config: ConfigDict, step: train_step.Step, part: Batch) -> int:
  """Returns the approximate bytes of a device's temporaries: all but state and activations.

  Args:
    config: of the step.
    step: with functions and abstract state. The caller has set its mesh as the current mesh.
    part: one microbatch, abstract.
  """
  gradients = bytes_per_device(step.state.params)
  accumulated = gradients if config.microbatches > 1 else 0
  output: Output = jax.eval_shape(step.functions.apply, step.state.params, part)
  B, T = output.hidden.shape[:2]
  V, shards = output.head.padded_vocab_size, meshes.num_shards('vocab')
  chunk = chunk_size(B, T, V, config.objective.get('logits_chunk', 0))
  logits = 2 * B * chunk / meshes.num_shards('batch') * V * 4 / shards
  tables = output.head.kernel_VD.size * (output.hidden.dtype.itemsize + 4) / shards
  recomputed = _layer_activations(config, step, part)
  return int(accumulated + max(gradients + recomputed, logits + tables))


def _layer_activations(config: ConfigDict, step: train_step.Step, part: Batch) -> float:
  """Returns the bytes of the activations of one recomputed layer; 0 without remat."""
  if 'remat_policy' not in config.model or config.model.remat_policy is None:
    return 0.0
  other = train_step.changed(config, {'model.remat_policy': None})
  apply = apply_of(components.model(other, train_step.vocabulary(other)))
  without = dataclasses.replace(step.functions, apply=apply)
  return train_step.activations(without, step.state.params, part) / config.model.depth


def _microbatch(step: train_step.Step, microbatches: int) -> Any:
  """Returns the shapes of one microbatch, with the arrays that the objective samples for it."""
  part = {
    name: jax.ShapeDtypeStruct((x.shape[0] // microbatches, *x.shape[1:]), x.dtype)
    for name, x in step.batch.items()
  }
  sample = step.functions.objective.sample
  return part if sample is None else jax.eval_shape(lambda x: sample(x, jax.random.key(0)), part)


def _bound(
  config: ConfigDict,
  slice_: topology.Slice,
  step: train_step.Step,
  part: Batch,
  activations: int,
  sent: Mapping[str, float] | None,
) -> hlo.Timing:
  """Returns the lower bound of the time of a step that sends `sent` bytes, by mesh axis."""
  functions, params, opt_state = step.functions, step.state.params, step.state.opt_state

  def update(gradients: Any, opt_state: Any, params: Any) -> Any:
    transformation = optax.with_extra_args_support(functions.optimizer.transformation)
    norm = optax.tree.norm(gradients)
    return transformation.update(gradients, opt_state, params, gradient_norm=norm)

  passes = matmul_flops(jax.grad(train_step.loss_of(functions)), params, part)
  parameters, optimizer = bytes_per_device(params), bytes_per_device(opt_state)
  weights = _gathered_weights(step)
  return roofline_bound(
    slice_,
    functions.mesh,
    step,
    matmuls={size: config.microbatches * flops for size, flops in passes.items()},
    # Both passes read the weights, one stores and one loads activations, and gradients are stored.
    memory=config.microbatches * 2 * (weights + activations) + parameters,
    update_matmuls=matmul_flops(update, params, opt_state, params),  # Muon has some
    # Gradients are loaded for their norm and for the update, which loads and stores the state.
    update_memory=2 * parameters + 2 * (parameters + optimizer),
    sent=sent or {},
  )


def _gathered_weights(step: train_step.Step) -> float:
  """Returns the bytes of the weights that a device computes with, in the model's dtype.

  They are all-gathered over the mesh axes that shard the batch. Embedding tables do not count,
  since a step may read few of their rows.
  """
  mesh, dtype = step.functions.mesh, jnp.dtype(getattr(step.functions.model, 'dtype', 'float32'))
  return dtype.itemsize * sum(
    train_step.gathered_size(leaf, mesh)
    for path, leaf in jax.tree_util.tree_leaves_with_path(step.state.params)
    if jax.tree_util.keystr(path[-1:], simple=True) != 'embedding'
  )


def roofline_bound(
  slice_: topology.Slice,
  mesh: Mesh,
  step: train_step.Step,
  *,
  matmuls: Flops,
  memory: float,
  update_matmuls: Flops,
  update_memory: float,
  sent: Mapping[str, float],
) -> hlo.Timing:
  """Returns the lower bound of the time of a step.

  Args:
    slice_: the chips.
    mesh: of devices whose `slice_index` is the index of their node.
    step: for its tokens and model FLOPs.
    matmuls: FLOPs of the forward and backward passes, of all devices.
    memory: bytes that a device loads and stores in these passes.
    update_matmuls: FLOPs of the optimizer.
    update_memory: bytes that a device loads and stores in the optimizer.
    sent: bytes that a device sends, by mesh axis.
  """
  chip = slice_.chip

  def seconds(flops: Flops) -> float:
    rates = {size: chip.float32_flops if size >= 4 else chip.flops for size in flops}
    return sum(value / rates[size] for size, value in flops.items()) / slice_.chips

  links, network = transfer_seconds(sent, mesh, chip)
  parts = {'matmuls': seconds(matmuls), 'memory': memory / chip.bandwidth}
  parts |= {'links': links, 'network': network}
  optimizer = max(seconds(update_matmuls), update_memory / chip.bandwidth)
  time = max(parts.values()) + optimizer
  mfu = step.model_flops / (chip.flops * slice_.chips) / time
  return hlo.Timing(parts | {'optimizer': optimizer}, time, mfu, step.tokens / time)


def transfer_seconds(sent: Mapping[str, float], mesh: Mesh, chip: Chip) -> tuple[float, float]:
  """Returns the seconds of transfers through links within nodes, and through the network.

  In a ring of g devices over k nodes, each device receives (g - 1) / g of the array, and each node
  (k - 1) / k. The g / k devices of a node share that traffic through the network.

  Args:
    sent: bytes that a device sends in such a ring, by mesh axis.
    mesh: of these axes.
    chip: of its devices.
  """
  links, network = 0.0, 0.0
  for axis, size in sent.items():
    group, nodes = mesh.shape[axis], _nodes(mesh, axis)
    if group > nodes:
      links += size / chip.link
    if nodes > 1:
      into_node = size * group / (group - 1) * (nodes - 1) / nodes
      network += into_node / (group / nodes * chip.network)
  return links, network


def _nodes(mesh: Mesh, axis: str) -> int:
  """Returns the count of nodes that the devices along a mesh axis span."""
  first = tuple(slice(None) if name == axis else 0 for name in mesh.axis_names)
  return len({device.slice_index for device in mesh.devices[first]})


def matmul_flops(function: Callable[..., Any], *arguments: Any) -> Flops:
  """Returns the FLOPs of the matmuls and convolutions of a function, on all devices together.

  The FLOPs of a scan's body are multiplied by its length. The body of a while loop counts once,
  since its trip count is unknown. Of a conditional only the most expensive branch counts.

  Args:
    function: one that JAX can trace.
    arguments: abstract or real arrays, and trees of them.
  """
  return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Jaxpr) -> Flops:
  sums: Flops = defaultdict(float)
  for equation in jaxpr.eqns:
    found = [_count(inner) for inner in _inner_jaxprs(equation)]
    if equation.primitive.name == 'cond':
      found = [max(found, key=lambda flops: sum(flops.values()))]
    for flops in found:
      for size, value in flops.items():
        sums[size] += value * _times(equation)
    if own := _own_flops(equation):
      sums[max(x.aval.dtype.itemsize for x in equation.invars)] += own  # type: ignore[attr-defined]
  return dict(sums)


def _times(equation: JaxprEqn) -> int:
  """Returns the count of times that the inner jaxprs of an equation run, on all devices."""
  if equation.primitive.name == 'scan':
    return equation.params['length']
  if equation.primitive.name == 'shard_map':  # its jaxpr is that of one device
    shape = equation.params['mesh'].shape
    return math.prod(shape[name] for name in equation.params['newly_manual_axes'])
  return 1


def _own_flops(equation: JaxprEqn) -> float:
  """Returns the FLOPs of a matmul or convolution, else 0; a multiply-add counts as two."""
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    left = equation.invars[0].aval.shape  # type: ignore[attr-defined]
    return 2.0 * equation.outvars[0].aval.size * math.prod(left[i] for i in contracted)  # type: ignore[attr-defined]
  if name == 'conv_general_dilated':
    kernel = equation.invars[1].aval
    outputs = kernel.shape[params['dimension_numbers'].rhs_spec[0]]  # type: ignore[attr-defined]
    return 2.0 * equation.outvars[0].aval.size * kernel.size / outputs  # type: ignore[attr-defined]
  return 0.0


def _inner_jaxprs(equation: JaxprEqn) -> list[Jaxpr]:
  values = jax.tree.leaves(list(equation.params.values()))
  closed = [value.jaxpr for value in values if isinstance(value, ClosedJaxpr)]
  return closed + [value for value in values if isinstance(value, Jaxpr)]


def fused(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask: Mask) -> Array:
  """Computes the cuDNN stub or blockwise attention, whichever `lm.nn.attention:fused` selects."""
  attend = cudnn if cudnn_supported(q_BTHK, k_BSGK, mask) else blockwise
  return attend(q_BTHK, k_BSGK, v_BSGK, mask)


def cudnn(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask: Mask) -> Array:
  """Replaces `lm.nn.attention:cudnn` by a stub with its shapes, matmuls and residuals.

  Raises:
    UserError: cuDNN attention does not support the dtype or the mask.
  """
  check_cudnn(q_BTHK.dtype, mask)
  S = k_BSGK.shape[1]
  arguments = cudnn_mask(mask)
  # The kernel skips most keys that causal masks and local windows hide.
  visible = (S + 1) // 2 if arguments.is_causal else S
  if arguments.local_window_size is not None:
    visible = min(visible, arguments.local_window_size[0] + 1)
  # jax.nn.dot_product_attention adds a mask array as a bias.
  bias = None if arguments.mask is None else arguments.mask.astype(q_BTHK.dtype)
  return _attention_stub(q_BTHK, k_BSGK, v_BSGK, bias, visible)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention_stub(q_BTHK, k_BSGK, v_BSGK, bias, visible: int) -> Array:
  return _stub_fwd(q_BTHK, k_BSGK, v_BSGK, bias, visible)[0]


def _stub_fwd(q_BTHK, k_BSGK, v_BSGK, bias, visible: int):
  k_BsHK, v_BsHK = (_expanded(x, q_BTHK, visible) for x in (k_BSGK, v_BSGK))
  scores_BHTs = jnp.einsum('bthk,bshk->bhts', q_BTHK, k_BsHK)
  o_BTHK = jnp.einsum('bhts,bshk->bthk', scores_BHTs, v_BsHK)
  # The statistic is not computed from the scores, since a remat policy might then save these.
  statistic_BTH = o_BTHK[..., 0].astype(jnp.float32)
  return o_BTHK, (q_BTHK, k_BSGK, v_BSGK, bias, o_BTHK, statistic_BTH)


def _stub_bwd(visible: int, residuals, d_BTHK: Array):
  q_BTHK, k_BSGK, v_BSGK, bias, o_BTHK, statistic_BTH = residuals
  k_BsHK, v_BsHK = (_expanded(x, q_BTHK, visible) for x in (k_BSGK, v_BSGK))
  scores_BHTs = jnp.einsum('bthk,bshk->bhts', q_BTHK, k_BsHK)  # recomputed
  inner_BTH1 = jnp.sum(o_BTHK * d_BTHK, -1, keepdims=True) + statistic_BTH[..., None]
  d_o_BTHK = d_BTHK + inner_BTH1.astype(d_BTHK.dtype)
  d_scores_BHTs = jnp.einsum('bthk,bshk->bhts', d_o_BTHK, v_BsHK)
  d_q_BTHK = jnp.einsum('bhts,bshk->bthk', d_scores_BHTs, k_BsHK)
  d_k_BSGK = _collapsed(jnp.einsum('bhts,bthk->bshk', d_scores_BHTs, q_BTHK), k_BSGK)
  d_v_BSGK = _collapsed(jnp.einsum('bhts,bthk->bshk', scores_BHTs, d_BTHK), v_BSGK)
  return d_q_BTHK, d_k_BSGK, d_v_BSGK, jax.tree.map(jnp.zeros_like, bias)


_attention_stub.defvjp(_stub_fwd, _stub_bwd)


def _expanded(x_BSGK: Array, q_BTHK: Array, visible: int) -> Array:
  """Returns the visible keys or values, repeated for all query heads."""
  return jnp.repeat(x_BSGK[:, :visible], q_BTHK.shape[2] // x_BSGK.shape[2], axis=2)


def _collapsed(d_BsHK: Array, x_BSGK: Array) -> Array:
  """Returns the gradient of x, from the gradient of `_expanded(x)`."""
  B, S, G, K = x_BSGK.shape
  d_BsGK = d_BsHK.reshape(B, -1, G, d_BsHK.shape[2] // G, K).sum(3)
  return jnp.pad(d_BsGK, ((0, 0), (0, S - d_BsGK.shape[1]), (0, 0), (0, 0)))
