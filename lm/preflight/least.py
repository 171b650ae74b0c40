"""The fewest bytes that the devices of a mesh must send for a train step of a Transformer.

For a given sharding: parameters that are split over the axes of rows come together for the pass
forward and again for that backward, and their gradients are added up in parts (Rajbhandari et al.
2020, ZeRO, section 7); a table that becomes logits comes together once, since its gradient is found
where the logits are; of a table that is only looked up in, vectors and their gradients are sent, or
the table once, whichever is less. Over `tensor` each sublayer adds up its output, and in the pass
backward the gradient of its input (Shoeybi et al. 2019, Megatron-LM, section 3).
"""

import math
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
    name = jax.tree_util.keystr(path[-1:], simple=True)
    _parameter(
      sums,
      mesh,
      leaf,
      size,
      config.microbatches * (2 if name.endswith('embedding') else 3),
      _looked_up(config, model, name) / (mesh.shape['data'] * mesh.shape['fsdp']),
    )
  shared = mesh.shape['tensor']
  if shared > 1:
    rows = config.batch_size / (mesh.shape['data'] * mesh.shape['fsdp'])
    recomputed = config.model.remat_policy is not None
    times = _sublayers(config) * (3 if recomputed else 2)
    # Beside them: what is looked up in a table that is split, and the gradient of hidden states.
    sums['tensor'] += (
      (times + 2 * config.data.context) * rows * model.d_model * size * _ring(shared, 2)
    )
  return dict(sums)


def _parameter(
  sums: dict[str, float], mesh: Mesh, leaf: Any, size: int, passes: int, looked_up: float
) -> None:
  """Adds what is sent for one array of parameters.

  Args:
    sums: by mesh axis.
    mesh: of the step.
    leaf: abstract, with its sharding.
    size: bytes of a number.
    passes: how often all of a split array is sent.
    looked_up: numbers of the vectors that a device takes from it, infinite where it is multiplied.
  """
  split = {name for part in leaf.sharding.spec for name in names(part)}
  whole = leaf.size
  for name in split - set(ROWS):
    whole /= mesh.shape[name]
  part = whole
  if 'fsdp' in split and mesh.shape['fsdp'] > 1:
    sums['fsdp'] += min(passes * whole, 2 * looked_up) * size * _ring(mesh.shape['fsdp'], 1)
    part /= mesh.shape['fsdp']
  else:
    sums['fsdp'] += whole * size * _ring(mesh.shape['fsdp'], 2)
  sums['data'] += part * size * _ring(mesh.shape['data'], 2)


def _looked_up(config: ConfigDict, model: Transformer, name: str) -> float:
  """Returns the numbers of all vectors of a batch from a table; infinite where it is multiplied."""
  if name == 'source_embedding':
    tokens = config.data.source_context
  elif name == 'embedding' and (
    not model.tie_embeddings or getattr(model, 'num_classes', None) is not None
  ):
    both = 'encoder_depth' in config.model and model.share_embeddings
    tokens = config.data.context + (config.data.source_context if both else 0)
  else:
    return math.inf
  return config.batch_size * tokens * model.d_model


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
