"""Hooks that read and edit activations of a model; they are arguments of a pure function.

A module marks a hook point with `x = hook_point(self, 'name', x)` (lm/nn/layers.py). Where no hooks
are set, it adds no operation to the trace. `with_hooks(model)` returns a function that records and
edits the hook points of some paths, also under jit, scan and sharding.
"""

import contextvars
import fnmatch
from collections.abc import Callable, Mapping

import flax.linen as nn
import flax.traverse_util

from lm.types import HOOKS_COLLECTION, Array, Batch, Output, Params

Edit = Callable[[Array], Array]
# (module, name, x) -> x: what hook points call; None without hooks.
HOOKS: contextvars.ContextVar[Callable[[nn.Module, str, Array], Array] | None] = (
  contextvars.ContextVar('hooks', default=None)
)


def with_hooks(model: nn.Module) -> Callable[..., tuple[Output, dict[str, Array]]]:
  """Returns `apply(params, batch, reads=('*',), edits={}, key=None) -> (Output, {path: array})`.

  A path is 'decoder/layers/layer_0/attention/output' or the like; `reads` and the keys of `edits`
  are glob patterns of paths. Arrays read inside the stack of layers have the layers on axis 0. An
  edit receives one layer at a time and applies to every layer.

  Raises:
    ValueError: by the returned function when it is traced, if an edit changes a shape.
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
    recorded = flax.traverse_util.flatten_dict(variables.get(HOOKS_COLLECTION, {}), sep='/')
    return output, {
      path: x
      for path, x in recorded.items()
      if any(fnmatch.fnmatchcase(path, pattern) for pattern in reads)
    }

  return apply
