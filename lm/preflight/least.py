"""The fewest bytes that the devices of a mesh must send for a train step of a Transformer.

For a given sharding: parameters that are split over the axes of rows come together for the pass
forward and again for that backward, and their gradients are added up in parts (Rajbhandari et al.
2020, ZeRO, section 7); the tables of the vocabulary come together once, since their gradient is
found where the logits are. Over `tensor` each sublayer adds up its output, and in the pass
backward the gradient of its input (Shoeybi et al. 2019, Megatron-LM, section 3).
"""

from collections import defaultdict
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lm.models.transformer import Transformer

ROWS = ('data', 'fsdp')


def least(config: ConfigDict, model: nn.Module, mesh: Mesh, params: Any) -> dict[str, float] | None:
  """Returns bytes that a device sends in a step, by mesh axis; None for another model.

  Args:
    config: of the model.
    model: a Transformer, whose rules of the mesh are the usual ones.
    mesh: that of the step.
    params: abstract, with their shardings.
  """
  if not isinstance(model, Transformer):
    return None
  size = jnp.dtype(model.dtype).itemsize
  sums: dict[str, float] = defaultdict(float)
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    _parameter(sums, mesh, leaf, size, 'embedding' in str(path[-1]), config.microbatches)
  shared = mesh.shape['tensor']
  if shared > 1:
    rows = config.batch_size / (mesh.shape['data'] * mesh.shape['fsdp'])
    recomputed = config.model.remat is not None
    times = _sublayers(config) * (3 if recomputed else 2)
    # Beside them: what is looked up in a table that is split, and the gradient of hidden states.
    sums['tensor'] += (
      (times + 2 * config.data.context) * rows * model.d_model * size * _ring(shared, 2)
    )
  return dict(sums)


def _parameter(
  sums: dict[str, float], mesh: Mesh, leaf: Any, size: int, table: bool, microbatches: int
) -> None:
  """Adds what is sent for one array of parameters."""
  split = {name for part in leaf.sharding.spec for name in names(part)}
  whole = leaf.size
  for name in split - set(ROWS):
    whole /= mesh.shape[name]
  part = whole
  if 'fsdp' in split and mesh.shape['fsdp'] > 1:
    gathered = 1 if table else 2
    sums['fsdp'] += microbatches * (gathered + 1) * whole * size * _ring(mesh.shape['fsdp'], 1)
    part /= mesh.shape['fsdp']
  else:
    sums['fsdp'] += whole * size * _ring(mesh.shape['fsdp'], 2)
  sums['data'] += part * size * _ring(mesh.shape['data'], 2)


def names(part: Any) -> tuple[str, ...]:
  """Returns the mesh axes of one entry of a PartitionSpec."""
  return (part,) if isinstance(part, str) else tuple(part or ())


def _ring(size: int, passes: int) -> float:
  return passes * (size - 1) / size


def _sublayers(config: ConfigDict) -> int:
  """Returns the positions of all sublayers of a row, the source's included."""
  model, data = config.model, config.data
  if 'encoder_depth' not in model:
    return 2 * model.depth * data.context
  encoder = model.depth if model.encoder_depth is None else model.encoder_depth
  return 3 * model.depth * data.context + 2 * encoder * data.source_context
