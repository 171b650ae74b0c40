"""Layouts: how the parameters of a model here and the tensors of a checkpoint elsewhere correspond.

A layout is a list of entries, used in both directions, so that import and export cannot drift. All
transforms are permutations of elements: a round trip keeps every byte.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lm.errors import UserError, did_you_mean


class Transform(NamedTuple):
  """A bijection between some tensors of a layer elsewhere and one parameter of a layer here.

  Attributes:
    join: `(tensors) -> parameter`.
    split: `(parameter) -> tensors`, its inverse.
    shapes: of the tensors.
  """

  join: Callable[[Sequence[np.ndarray]], np.ndarray]
  split: Callable[[np.ndarray], Sequence[np.ndarray]]
  shapes: tuple[tuple[int, ...], ...]


class Entry(NamedTuple):
  """A parameter and its tensors.

  Attributes:
    path: of the parameter, 'decoder/layers/layer_0/mlp/up/kernel'.
    names: of the tensors; '{}' stands for the index of the layer, and the parameter then has the
      layers `layers` on axis 0.
    transform: of one layer.
    layers: indices of the layers on axis 0; empty if the parameter has no such axis.
  """

  path: str
  names: tuple[str, ...]
  transform: Transform
  layers: tuple[int, ...] = ()

  def tensor_names(self) -> list[list[str]]:
    """Returns the names of the tensors of each layer."""
    return [[name.format(i) for name in self.names] for i in self.layers or (0,)]

  def all_names(self) -> Iterator[str]:
    """Returns the names of all its tensors."""
    return itertools.chain.from_iterable(self.tensor_names())


def same(*shape: int) -> Transform:
  """Returns the transform of a tensor that is the same in both."""
  return Transform(lambda xs: xs[0], lambda x: (x,), (shape,))


def linear(inputs: int, *outputs: int) -> Transform:
  """Returns the transform of a kernel that is stored as (outputs, inputs), as torch's Linear is."""
  rows = int(np.prod(outputs))
  return Transform(
    lambda xs: xs[0].T.reshape(inputs, *outputs),
    lambda x: (x.reshape(inputs, rows).T,),
    ((rows, inputs),),
  )


def reshaped(stored: tuple[int, ...], shape: tuple[int, ...]) -> Transform:
  """Returns the transform of a tensor that has the same elements in another shape."""
  return Transform(lambda xs: xs[0].reshape(shape), lambda x: (x.reshape(stored),), (stored,))


def out_kernel(heads: int, head_dim: int, width: int) -> Transform:
  """Returns the transform of an attention output kernel (H, K, D), stored as (D, H K)."""
  return Transform(
    lambda xs: xs[0].T.reshape(heads, head_dim, width),
    lambda x: (x.reshape(heads * head_dim, width).T,),
    ((width, heads * head_dim),),
  )


def _grouped(heads: int, kv_heads: int, head_dim: int) -> tuple[tuple[int, int, int], ...]:
  groups = (heads // kv_heads, 1, 1)
  return tuple((kv_heads, per_group, head_dim) for per_group in groups)


def qkv_kernel(width: int, heads: int, kv_heads: int, head_dim: int) -> Transform:
  """Returns the transform of q, k and v, each (H K, D), to (D, G, H/G + 2, K)."""
  return _joined_kernel(width, _grouped(heads, kv_heads, head_dim))


def qkv_bias(heads: int, kv_heads: int, head_dim: int) -> Transform:
  """Returns the transform of the biases of q, k and v to (G, H/G + 2, K)."""
  return _joined_bias(_grouped(heads, kv_heads, head_dim))


def _joined_kernel(width: int, parts: Sequence[tuple[int, int, int]]) -> Transform:
  shapes = tuple((int(np.prod(part)), width) for part in parts)
  ends = np.cumsum([per_group for _, per_group, _ in parts])

  def join(xs: Sequence[np.ndarray]) -> np.ndarray:
    each = (x.T.reshape(width, *part) for x, part in zip(xs, parts, strict=True))
    return np.concatenate(list(each), axis=2)

  def split(x: np.ndarray) -> Sequence[np.ndarray]:
    return [y.reshape(width, -1).T for y in np.split(x, ends[:-1], axis=2)]

  return Transform(join, split, shapes)


def _joined_bias(parts: Sequence[tuple[int, int, int]]) -> Transform:
  ends = np.cumsum([per_group for _, per_group, _ in parts])

  def join(xs: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([x.reshape(p) for x, p in zip(xs, parts, strict=True)], axis=1)

  def split(x: np.ndarray) -> Sequence[np.ndarray]:
    return [y.reshape(-1) for y in np.split(x, ends[:-1], axis=1)]

  return Transform(join, split, tuple((int(np.prod(part)),) for part in parts))


def of_one(transform: Transform, axis: int) -> Transform:
  """Returns the transform of tensors that are stored in one, concatenated along an axis."""
  ends = np.cumsum([shape[axis] for shape in transform.shapes])
  shape = list(transform.shapes[0])
  shape[axis] = int(ends[-1])
  return Transform(
    lambda xs: transform.join(np.split(xs[0], ends[:-1], axis)),
    lambda x: (np.concatenate(list(transform.split(x)), axis),),
    (tuple(shape),),
  )


def transposed(transform: Transform) -> Transform:
  """Returns the transform of matrices that are stored transposed, as GPT-2's Conv1D are."""
  return Transform(
    lambda xs: transform.join([x.T for x in xs]),
    lambda x: [y.T for y in transform.split(x)],
    tuple(shape[::-1] for shape in transform.shapes),
  )


Row = tuple[str, Transform, tuple[str, ...]]  # path of a parameter, transform, names of tensors


def norm_rows(path: str, name: str, width: int) -> list[Row]:
  """Returns the rows of a layer norm with a bias."""
  return [
    (f'{path}/scale', same(width), (f'{name}.weight',)),
    (f'{path}/bias', same(width), (f'{name}.bias',)),
  ]


def linear_rows(path: str, name: str, inputs: int, outputs: int, bias: bool = True) -> list[Row]:
  """Returns the rows of a linear layer."""
  kernel: Row = (f'{path}/kernel', linear(inputs, outputs), (f'{name}.weight',))
  return [kernel, (f'{path}/bias', same(outputs), (f'{name}.bias',))][: 1 + bias]


def attention_rows(
  path: str,
  names: Sequence[str],
  width: int,
  heads: int,
  kv_heads: int,
  head_dim: int,
  qkv_biases: bool,
  out_bias: bool,
) -> list[Row]:
  """Returns the rows of self-attention; `names` are those of q, k, v and the output."""
  *qkv, out = names
  rows: list[Row] = [
    (
      f'{path}/qkv/kernel',
      qkv_kernel(width, heads, kv_heads, head_dim),
      tuple(f'{name}.weight' for name in qkv),
    ),
    (f'{path}/out/kernel', out_kernel(heads, head_dim, width), (f'{out}.weight',)),
  ]
  if qkv_biases:
    biases = tuple(f'{name}.bias' for name in qkv)
    rows.append((f'{path}/qkv/bias', qkv_bias(heads, kv_heads, head_dim), biases))
  if out_bias:
    rows.append((f'{path}/out/bias', same(width), (f'{out}.bias',)))
  return rows


def cross_attention_rows(
  path: str, names: Sequence[str], width: int, heads: int, head_dim: int, bias: bool
) -> list[Row]:
  """Returns the rows of cross-attention; `names` are those of q, k, v and the output."""
  q, k, v, out = names
  parts = _grouped(heads, heads, head_dim)[1:]
  kernels: list[Row] = [
    (f'{path}/q/kernel', linear(width, heads, 1, head_dim), (f'{q}.weight',)),
    (f'{path}/kv/kernel', _joined_kernel(width, parts), (f'{k}.weight', f'{v}.weight')),
    (f'{path}/out/kernel', out_kernel(heads, head_dim, width), (f'{out}.weight',)),
  ]
  biases: list[Row] = [
    (f'{path}/q/bias', reshaped((heads * head_dim,), (heads, 1, head_dim)), (f'{q}.bias',)),
    (f'{path}/kv/bias', _joined_bias(parts), (f'{k}.bias', f'{v}.bias')),
    (f'{path}/out/bias', same(width), (f'{out}.bias',)),
  ]
  return kernels + (biases if bias else [])


def entries_of(rows: Sequence[Row], path: str = '', name: str = '') -> list[Entry]:
  """Returns the entries of parameters outside of layers, with prefixes of paths and names."""
  return [Entry(path + p, tuple(name + n for n in names), t) for p, t, names in rows]


def layer_entries(
  rows: Sequence[Row], stack: str, name: str, depth: int, group: int = 1
) -> list[Entry]:
  """Returns the entries of a stack of `depth` layers.

  Args:
    rows: of one layer.
    stack: path of the stack, such as 'decoder'.
    name: prefix of the names, with '{}' for the index of the layer.
    depth: number of layers.
    group: number of layers in the pattern that repeats.
  """
  return [
    Entry(
      f'{stack}/layers/layer_{i}/{path}',
      tuple(name + n for n in names),
      transform,
      tuple(range(i, depth, group)),
    )
    for i in range(group)
    for path, transform, names in rows
  ]


def join(entry: Entry, read: Callable[[str], np.ndarray]) -> np.ndarray:
  """Returns the parameter of an entry; `read` returns the tensor of a name.

  One layer is in memory besides the result.
  """
  layers = (entry.transform.join([read(n) for n in names]) for names in entry.tensor_names())
  first = next(layers)
  if not entry.layers:
    return np.ascontiguousarray(first)
  joined = np.empty((len(entry.layers), *first.shape), first.dtype)
  joined[0] = first
  for i, layer in enumerate(layers, 1):
    joined = joined.astype(np.result_type(joined, layer), copy=False)  # dtypes may differ by layer
    joined[i] = layer
  return joined


def split(entry: Entry, x: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
  """Yields the tensors of a parameter by name; they may be views."""
  for names, layer in zip(entry.tensor_names(), x if entry.layers else [x], strict=True):
    yield from zip(names, entry.transform.split(layer), strict=True)


def shapes_of(entries: Sequence[Entry]) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of the tensors by name, in the order of the entries."""
  return {
    name: shape
    for entry in entries
    for names in entry.tensor_names()
    for name, shape in zip(names, entry.transform.shapes, strict=True)
  }


def check_tensors(
  entries: Sequence[Entry], shapes: Mapping[str, tuple[int, ...]], source: str
) -> None:
  """Raises UserError with one table of the missing, unexpected and misshapen tensors.

  Args:
    entries: of the model.
    shapes: of the tensors of a checkpoint, without those that are known to carry nothing.
    source: names the checkpoint in the error.
  """
  wanted = shapes_of(entries)
  lines = [
    f'missing {name} {wanted[name]}{did_you_mean(name, shapes.keys() - wanted.keys())}'
    for name in sorted(wanted.keys() - shapes.keys())
  ]
  lines += [
    f'unexpected {_printable(name)} {shapes[name]}'
    + did_you_mean(name, wanted.keys() - shapes.keys())
    for name in sorted(shapes.keys() - wanted.keys())
  ]
  lines += [
    f'{name} is {shapes[name]} and should be {shape}'
    for name, shape in sorted(wanted.items())
    if name in shapes and tuple(shapes[name]) != shape
  ]
  if lines:
    more = f'; and {len(lines) - 8} more' if len(lines) > 8 else ''
    raise UserError(f'{source} does not fit its config: {"; ".join(lines[:8])}{more}')


def _printable(name: str) -> str:
  """Returns a name from a file, quoted if a terminal would not show it."""
  return name if name.isprintable() else repr(name)
