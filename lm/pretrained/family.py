"""What a family of pretrained models is, and the reader of its config.json."""

import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from lm.errors import UserError, did_you_mean
from lm.pretrained.layout import Entry


def no_buffers(name: str) -> np.ndarray | None:
  """Returns None: a family without buffers."""
  del name
  return None


class Family(NamedTuple):
  """A model of a family.

  Attributes:
    model: the model section of the config.
    entries: of all parameters.
    prefix: of most names; checkpoints of the model without its head lack it.
    buffers: `name -> value` of tensors that are no parameters; None for a name that is none.
    tied: names of tensors that are copies, each with the name of the tensor that it equals.
    unused: a regular expression on names of tensors that the model does not use; a workdir keeps
      them for an export.
    renamed: old names of parts of tensor names, with the new ones.
    data: values of the config's data section, such as the labels of a head.
    decode: values of the config's decode section.
    stored: names of the buffers that a new checkpoint has.
  """

  model: ConfigDict
  entries: tuple[Entry, ...]
  prefix: str
  buffers: Callable[[str], np.ndarray | None] = no_buffers
  tied: Mapping[str, str] = MappingProxyType({})
  unused: str = '$.'
  renamed: Mapping[str, str] = MappingProxyType({})
  data: Mapping[str, Any] = MappingProxyType({})
  decode: Mapping[str, Any] = MappingProxyType({})
  stored: tuple[str, ...] = ()


class Reader:
  """Reads the keys of a config.json, and refuses those with a value that is not understood.

  Args:
    values: the content of config.json.
    names: of the tensors; None for those of a new checkpoint.
    generation: the content of generation_config.json.
  """

  def __init__(
    self,
    values: Mapping[str, Any],
    names: Collection[str] | None = None,
    generation: Mapping[str, Any] = MappingProxyType({}),
  ):
    self._values, self._names, self._generation = values, names, generation

  def has_tensor(self, ending: str) -> bool:
    """Returns whether the checkpoint has a tensor whose name ends in this."""
    return self._names is None or any(name.endswith(ending) for name in self._names)

  def has_tensor_of(self, part: str) -> bool:
    """Returns whether the checkpoint has a tensor of a part of the model, such as 'encoder'."""
    return any(part in name.split('.') for name in self._names or ())

  def get(self, key: str, default: Any = None) -> Any:
    """Returns the value of a key, or the default where it is absent or null."""
    value = self._values.get(key)
    return default if value is None else value

  @property
  def has_generation(self) -> bool:
    """Whether the checkpoint has a generation_config.json."""
    return bool(self._generation)

  def generation(self, key: str, default: Any = None) -> Any:
    """Returns a value of generation_config.json, which older checkpoints have in config.json."""
    value = self._generation.get(key)
    return self.get(key, default) if value is None else value

  def with_defaults(self, **values: Any) -> 'Reader':
    """Returns a reader with values for the keys that are absent; those that are null stay null."""
    return Reader({**values, **self._values}, self._names, self._generation)

  def mapping(self, key: str) -> Mapping[str, Any]:
    """Returns an object, empty where the key is absent or null."""
    values = self.get(key, {})
    if not isinstance(values, Mapping):
      raise UserError(f'config.json: {key}={values!r} must be an object')
    return values

  def section(self, key: str) -> 'Reader':
    """Returns the reader of a section, such as the text model of one for images and texts."""
    return Reader(self.mapping(key), self._names)

  def positive(self, key: str, default: float) -> float:
    """Returns a positive float."""
    return positive(key, self.get(key, default))

  def flag(self, key: str, default: bool = False) -> bool:
    """Returns a boolean."""
    value = self.get(key, default)
    if not isinstance(value, bool):
      raise UserError(f'config.json: {key}={value!r} must be true or false')
    return value

  def size(self, key: str, default: int | None = None) -> int:
    """Returns a positive integer."""
    value = self.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
      raise UserError(f'config.json: {key}={value!r} must be a positive integer')
    return value

  def not_negative(self, key: str, default: float) -> float:
    """Returns a float of at least 0, such as an epsilon."""
    value = self.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
      raise UserError(f'config.json: {key}={value!r} must be at least 0')
    return float(value)

  def rate(self, key: str, default: float) -> float:
    """Returns a rate of dropout, at least 0 and below 1."""
    value = self.not_negative(key, default)
    if value >= 1:
      raise UserError(f'config.json: {key}={value!r} must be below 1')
    return value

  def strings(self, key: str, default: Sequence[str]) -> Sequence[str]:
    """Returns a list of strings, the default where the key is absent, null or empty."""
    values = self.get(key, default) or default
    if not isinstance(values, list | tuple) or not all(isinstance(x, str) for x in values):
      raise UserError(f'config.json: {key}={values!r} must be a list of strings')
    return values

  def one_of(self, key: str, choices: Mapping[Any, Any], default: Any) -> Any:
    """Returns the choice of a key.

    Raises:
      UserError: the value is none of the choices.
    """
    value = self.get(key, default)
    if not isinstance(value, Hashable) or value not in choices:
      known = ', '.join(map(repr, choices))
      near = did_you_mean(str(value), choices)
      raise UserError(
        f'config.json: {key}={value!r} is not supported{near}; it must be one of {known}'
      )
    return choices[value]

  def only(self, **values: Any) -> None:
    """Raises UserError where a key has another value than the only one that is supported."""
    for key, value in values.items():
      if self.get(key, value) != value:
        raise UserError(
          f'config.json: {key}={self.get(key)!r} is not supported; it must be {value!r}'
        )


_GELU_TANH, _GELU, _RELU, _SILU = (
  'lm.nn.layers:gelu', 'jax.nn:gelu(approximate=False)', 'jax.nn:relu', 'jax.nn:silu'
)  # fmt: skip
ACTIVATIONS = {
  'gelu_new': _GELU_TANH,
  'gelu_pytorch_tanh': _GELU_TANH,
  'gelu_fast': _GELU_TANH,
  'gelu': _GELU,
  'gelu_python': _GELU,
  'relu': _RELU,
  'silu': _SILU,
  'swish': _SILU,
}


def positive(key: str, value: Any) -> float:
  """Returns a value of config.json; raises UserError unless it is a finite number above 0."""
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
    raise UserError(f'config.json: {key}={value!r} must be above 0')
  return value


def import_path(function: str, **arguments: Any) -> str:
  """Returns an import path with the arguments that are not None."""
  given = ', '.join(f'{key}={value!r}' for key, value in arguments.items() if value is not None)
  return f'{function}({given})' if given else function
