"""Reading and editing what happens inside a model, as arguments of a pure function.

A module marks a site with `x = tap(self, 'name', x)`. Unused, that is free: nothing is recorded
and nothing is traced. `tapped(model)` returns a function that records the sites it is asked for
and applies edits to them, under jit, scan and sharding alike.
"""

import contextvars
import fnmatch
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax.numpy as jnp

from lm.types import Array, Batch, Output, Params

Edit = Callable[[Array], Array]
_edits: contextvars.ContextVar[tuple[tuple[str, Edit], ...]] = contextvars.ContextVar(
  'edits', default=()
)
COLLECTION = 'taps'


def tap(module: nn.Module, name: str, x: Array) -> Array:
  """Marks `x` as the site 'path/of/module/name'; returns it, edited where an edit is in force."""
  site = '/'.join((*module.path, name))
  for pattern, edit in _edits.get():
    if fnmatch.fnmatchcase(site, pattern):
      edited = edit(x)
      if edited.shape != x.shape:
        raise ValueError(f'the edit of {site} changed the shape {x.shape} to {edited.shape}')
      x = edited.astype(x.dtype)
  if module.is_mutable_collection(COLLECTION):
    module.put_variable(COLLECTION, name, x)
  return x


def tapped(model: nn.Module) -> Callable[..., tuple[Output, dict[str, Array]]]:
  """Returns `apply(params, batch, reads=('*',), edits={}, key=None) -> (Output, {site: array})`.

  Sites are 'decoder/layers/layer_0/attention/output' and the like; `reads` and the keys of `edits`
  are glob patterns over them. Sites inside the stack of layers have the layers on axis 0 when read;
  an edit sees them one layer at a time and is applied in every layer.
  """

  def apply(
    params: Params,
    batch: Batch,
    reads: tuple[str, ...] = ('*',),
    edits: Mapping[str, Edit] | None = None,
    key: Array | None = None,
  ) -> tuple[Output, dict[str, Array]]:
    rngs = {} if key is None else {'dropout': key}
    token = _edits.set(tuple((edits or {}).items()))
    try:
      output, variables = model.apply({'params': params}, batch, rngs=rngs, mutable=[COLLECTION])
    finally:
      _edits.reset(token)
    sites = _flatten(variables.get(COLLECTION, {}))
    wanted = {s: x for s, x in sites.items() if any(fnmatch.fnmatchcase(s, r) for r in reads)}
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
