"""Hooks that read and edit activations of a model; they are arguments of a pure function.

A module marks a hook point with `x = hook_point(self, 'name', x)` (lm/nn/layers.py). Where no hooks
are set, it adds no operation to the trace. `with_hooks(model)` returns a function that records and
edits the hook points of some paths, also under jit, scan and sharding, and with a KV cache.
"""

import contextlib
import contextvars
import fnmatch
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax.numpy as jnp

from lm.types import HOOKS_COLLECTION, Array, Batch, Output, Params

Edit = Callable[[Array], Array]
# (module, name, x) -> x: what hook points call; None without hooks.
HOOKS: contextvars.ContextVar[Callable[[nn.Module, str, Array], Array] | None] = (
  contextvars.ContextVar('hooks', default=None)
)


@contextlib.contextmanager
def within(**place: Any) -> Iterator[None]:
  """Passes the hooks of a block a `path` before that of their module, or the index of a `layer`."""
  hook = HOOKS.get()
  token = HOOKS.set(hook and functools.partial(hook, **place))
  try:
    yield
  finally:
    HOOKS.reset(token)


def with_hooks(model: nn.Module) -> Callable[..., tuple[Output, dict[str, Array]]]:
  """Returns `apply(params, batch, reads=('*',), edits={}, key=None, cache=None)`.

  It returns (Output, {path: array}). A path is 'decoder/layers/layer_0/attention/output' or the
  like; `reads` and the keys of `edits` are glob patterns of paths. Arrays read inside the stack of
  layers have the layers on axis 0. An edit receives one layer at a time and applies to every layer.

  A pattern that ends in '@N' is of layer N of the stack alone, such as '*/mlp/output@3'. Its
  read has the path 'decoder/layers/layer_0/mlp/output@3' and no axis of layers.

  Raises:
    ValueError: by the returned function when it is traced, if an edit changes a shape, matches no
      hook point of a call without a cache, or edits the weights of attention without softmax; N is
      no number.
  """

  def apply(
    params: Params,
    batch: Batch,
    reads: tuple[str, ...] = ('*',),
    edits: Mapping[str, Edit] | None = None,
    key: Array | None = None,
    cache: Any = None,
  ) -> tuple[Output, dict[str, Array]]:
    unrolled: dict[str, list[Array]] = {}  # a KV cache unrolls the layers
    for pattern in (*reads, *(edits or ())):
      _, mark, only = pattern.partition('@')
      if mark and not only.isdecimal():
        raise ValueError(f'{pattern!r}: a number of a layer, from 0, has to follow the @')

    def hook(
      module: nn.Module, name: str, x: Array, path: tuple[str, ...] = (), layer: Any = None
    ) -> Array:
      full = '/'.join((*path, *module.path, name))
      for pattern, edit in (edits or {}).items():
        glob, _, only = pattern.partition('@')
        if fnmatch.fnmatchcase(full, glob) and (not only or layer is not None):
          edited = edit(x).astype(x.dtype)
          if edited.shape != x.shape:
            raise ValueError(f'the edit of {full} changed the shape {x.shape} to {edited.shape}')
          x = jnp.where(layer == int(only), edited, x) if only else edited
      if path:
        unrolled.setdefault(full, []).append(x)
      else:
        module.put_variable(HOOKS_COLLECTION, name, x)
      return x

    rngs = {} if key is None else {'dropout': key}
    token = HOOKS.set(hook)
    try:
      args = (batch,) if cache is None else (batch, cache)
      output, variables = model.apply(
        {'params': params}, *args, rngs=rngs, mutable=[HOOKS_COLLECTION]
      )
    finally:
      HOOKS.reset(token)
    found = flax.traverse_util.flatten_dict(variables.get(HOOKS_COLLECTION, {}), sep='/')
    found |= {full: jnp.stack(layers) for full, layers in unrolled.items()}
    for pattern in edits or ():
      # With a cache, an encoder does not run at every call.
      if cache is None and not _selected(found, pattern):
        raise ValueError(f'no hook point matches the edit {pattern!r}; there are {sorted(found)}')
    return output, {name: x for read in reads for name, x in _selected(found, read).items()}

  return apply


def _selected(found: Mapping[str, Array], read: str) -> dict[str, Array]:
  """Returns the arrays that a pattern names."""
  glob, _, only = read.partition('@')
  matching = {path: x for path, x in found.items() if fnmatch.fnmatchcase(path, glob)}
  if not only:
    return matching
  places = {path: re.match(r'(.*/layers/layer_)(\d+)/', path) for path in found}
  of_layer = {}
  for path, x in matching.items():
    if place := places[path]:
      size = 1 + max(int(p[2]) for p in places.values() if p and p[1] == place[1])
      group, position = divmod(int(only), size)
      if position == int(place[2]) and group < len(x):
        of_layer[f'{path}@{only}'] = x[group]
  return of_layer


class EditedApply:
  """A model's pure function under edits; it decodes with a KV cache, too."""

  def __init__(self, model: nn.Module, edits: Mapping[str, Edit]):
    self.edits = dict(edits)
    self._apply = with_hooks(model)

  def __call__(
    self, params: Params, batch: Batch, key: Array | None = None, cache: Any = None
  ) -> Output:
    return self._apply(params, batch, (), self.edits, key, cache)[0]
