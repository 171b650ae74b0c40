"""Hooks: read and edit activations of a model, as arguments of a pure function.

A module marks a hook point with `x = hook_point(self, 'name', x)` (lm/nn/layers.py). Without hooks
that records nothing and traces nothing. `with_hooks(model)` returns a function that records the
hook points it is asked for and applies edits to them, under jit, scan and sharding alike.
"""

import contextvars
import fnmatch
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax.numpy as jnp

from lm.types import HOOKS_COLLECTION, Array, Batch, Output, Params

Edit = Callable[[Array], Array]
# (module, name, x) -> x: what hook points call; None without hooks.
HOOKS: contextvars.ContextVar[Callable[[nn.Module, str, Array], Array] | None] = (
  contextvars.ContextVar('hooks', default=None)
)


def with_hooks(model: nn.Module) -> Callable[..., tuple[Output, dict[str, Array]]]:
  """Returns `apply(params, batch, reads=('*',), edits={}, key=None) -> (Output, {path: array})`.

  A path is 'decoder/layers/layer_0/attention/output' or the like; `reads` and the keys of `edits`
  are glob patterns of paths. Hook points inside the stack of layers have the layers on axis 0 when
  they are read. An edit sees one layer at a time and is applied in every layer.

  Raises:
    ValueError: when traced, an edit changes a shape.
  """

  def apply(
    params: Params,
    batch: Batch,
    reads: tuple[str, ...] = ('*',),
    edits: Mapping[str, Edit] | None = None,
    key: Array | None = None,
  ) -> tuple[Output, dict[str, Array]]:
    def hook(module: nn.Module, name: str, x: Array) -> Array:
      path = '/'.join((*module.path, name))
      for pattern, edit in (edits or {}).items():
        if fnmatch.fnmatchcase(path, pattern):
          edited = edit(x)
          if edited.shape != x.shape:
            raise ValueError(f'the edit of {path} changed the shape {x.shape} to {edited.shape}')
          x = edited.astype(x.dtype)
      module.put_variable(HOOKS_COLLECTION, name, x)
      return x

    rngs = {} if key is None else {'dropout': key}
    token = HOOKS.set(hook)
    try:
      output, variables = model.apply(
        {'params': params}, batch, rngs=rngs, mutable=[HOOKS_COLLECTION]
      )
    finally:
      HOOKS.reset(token)
    found = _flatten(variables.get(HOOKS_COLLECTION, {}))
    wanted = {s: x for s, x in found.items() if any(fnmatch.fnmatchcase(s, r) for r in reads)}
    return output, wanted

  return apply


def _flatten(tree: Mapping, prefix: str = '') -> dict[str, Array]:
  flat: dict[str, Array] = {}
  for name, value in tree.items():
    if isinstance(value, Mapping):
      flat.update(_flatten(value, f'{prefix}{name}/'))
    else:
      flat[prefix + name] = jnp.asarray(value)
  return flat
