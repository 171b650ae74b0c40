"""The reader of a model section, for the functions that describe it in a config.json."""

import inspect
from collections.abc import Collection, Sequence
from typing import Any

from ml_collections import ConfigDict

from lm.config import resolve
from lm.pretrained.family import ACTIVATIONS

# Keys that concern training and speed, but not what a trained model computes.
_OF_TRAINING = {'dropout', 'dtype', 'init_std', 'remat_policy', 'scan_unroll', 'vocab_multiple'}


def canonical(value: Any, without: Collection[str] = ('std',)) -> Any:
  """Returns a value of a config so that equal functions compare equal.

  The import path of a function becomes (function, arguments), with the defaults of arguments that
  are not given: 'jax.nn:gelu' equals 'jax.nn:gelu(approximate=True)'. The arguments `without` are
  left out, such as the `std` of initial values.
  """
  if isinstance(value, str) and ':' in value:
    value = resolve.resolve(value, 'model')
  if isinstance(value, list | tuple):
    return tuple(canonical(x, without) for x in value)
  if isinstance(value, ConfigDict):
    return {key: canonical(x, without) for key, x in value.items()}
  if not callable(value):
    return value
  function, given = getattr(value, 'func', value), getattr(value, 'keywords', {})
  if function.__module__ == 'lm.nn.attention':  # its functions compute the same by other kernels
    return 'lm.nn.attention', {'cap': given.get('cap')}
  try:
    parameters = inspect.signature(function).parameters
  except ValueError:  # of a builtin
    return function, given
  defaults = {k: p.default for k, p in parameters.items() if p.default is not p.empty}
  given = {k: x for k, x in (defaults | given).items() if k not in without}
  return function, {k: canonical(x, without) for k, x in given.items()}


def differences(model: ConfigDict, other: ConfigDict) -> list[str]:
  """Returns the keys in which two model sections describe different models."""

  def of(section: ConfigDict, key: str) -> Any:
    return canonical(section.get(key), ('std', 'dropout'))

  keys = [key for key in dict.fromkeys([*model, *other]) if key not in _OF_TRAINING]
  return [key for key in keys if of(model, key) != of(other, key)]


class Section:
  """Reads the keys of a model section; None for those that it lacks.

  Attributes:
    converter: the name of the function of `data.converter`, such as 'tagger'; '' for none.
    labels: `data.labels`.
    start: ids of the tokens from which the decoder of an encoder-decoder starts; those of a run are
      set with its tokenizer if the converter names none.
  """

  def __init__(self, model: ConfigDict, converter: str | None, labels: Sequence[str]):
    self._model, self.labels = model, tuple(labels)
    function, arguments = (None, {}) if converter is None else canonical(converter)
    self.converter = '' if function is None else function.__name__
    self.start: tuple[int, ...] = arguments.get('start') or (0,)

  def get(self, key: str) -> Any:
    """Returns the value of a key."""
    return self._model.get(key)

  def layers(self, key: str) -> list[tuple[Any, dict[str, Any]]]:
    """Returns (function, arguments) of each layer; a tuple of import paths repeats."""
    value = self.get(key)
    pattern = [canonical(x) for x in (value if isinstance(value, list | tuple) else [value])]
    functions = [x if isinstance(x, tuple) else (x, {}) for x in pattern or [None]]
    return [functions[i % len(functions)] for i in range(self.get('depth') or 1)]

  def name(self, key: str) -> str:
    """Returns the name of the function of a key, or that of layer 0; '' for none."""
    return getattr(self.layers(key)[0][0], '__name__', '')

  def argument(self, key: str, name: str) -> Any:
    """Returns an argument of the function of a key, or of that of layer 0."""
    return self.layers(key)[0][1].get(name)

  def attention_dropout(self) -> float:
    """Returns the dropout of the attention weights."""
    return self.argument('attention_layer', 'dropout') or 0.0

  def activation(self, key: str = 'mlp') -> str | None:
    """Returns the name of the activation of the MLP, or of another function."""
    activation = self.argument(key, 'activation')
    names = ACTIVATIONS.items()
    return next((name for name, path in names if canonical(path) == activation), None)
