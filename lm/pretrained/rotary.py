"""The rotary positions that a config.json describes."""

from collections.abc import Mapping
from typing import Any

from lm.errors import UserError
from lm.pretrained.family import Reader, import_path, positive

_KEYS = {
  'default': set(),
  'linear': {'factor'},
  'llama3': {
    'factor',
    'low_freq_factor',
    'high_freq_factor',
    'original_max_position_embeddings',
  },
  'yarn': {
    'factor',
    'original_max_position_embeddings',
    'beta_fast',
    'beta_slow',
    'attention_factor',
  },
}


def described(hf: Reader) -> Mapping[str, Any]:
  """Returns the description of rotary positions; its key differs by version of transformers."""
  hf.only(original_max_position_embeddings=None)
  return hf.mapping('rope_scaling') or hf.mapping('rope_parameters')


def rope(hf: Reader) -> str:
  """Returns the position scheme of rotary embeddings."""
  hf.only(partial_rotary_factor=1.0)
  values, theta = described(hf), hf.get('rope_theta', 10000.0)
  if values.get('partial_rotary_factor', 1.0) != 1:
    raise UserError('config.json: partial_rotary_factor must be 1')
  return scheme(values, theta, hf.size('max_position_embeddings'))


def scheme(values: Mapping[str, Any], theta: Any, context: int) -> str:
  """Returns the position scheme of rotary embeddings.

  Args:
    values: of `rope_parameters` or `rope_scaling`, for one type of layers.
    theta: if they have none.
    context: of the model, which is that of pretraining if they have none.

  Raises:
    UserError: the kind or a key is not supported, or a value is no positive number.
  """
  values = {key: value for key, value in values.items() if value is not None}
  kind = values.pop('rope_type', values.pop('type', 'default'))
  if values.get('truncate') is True:  # the default
    del values['truncate']
  known = {'rope_theta', 'partial_rotary_factor', *_KEYS.get(str(kind), ())}
  needed = {'factor', 'low_freq_factor', 'high_freq_factor'} & known
  if str(kind) not in _KEYS or values.keys() - known or needed - values.keys():
    raise UserError(f'config.json: rope_scaling={dict(values, rope_type=kind)!r} is not supported')
  v = {key: positive(f'rope_scaling.{key}', value) for key, value in values.items()}
  theta = float(positive('rope_theta', v.get('rope_theta', theta)))
  fraction = v.get('partial_rotary_factor', 1.0)
  if fraction > 1:
    raise UserError(f'config.json: partial_rotary_factor={fraction!r} must be at most 1')
  original = int(v.get('original_max_position_embeddings', context))
  common = {'theta': theta, 'fraction': None if fraction == 1 else fraction}
  if kind == 'default':
    return import_path('lm.nn.position:rope', **common)
  common['factor'] = v['factor']
  if kind == 'linear':
    return import_path('lm.nn.position:rope_linear', **common)
  if kind == 'llama3':
    return import_path(
      'lm.nn.position:rope_llama3',
      **common,
      low=v['low_freq_factor'],
      high=v['high_freq_factor'],
      original_context=original,
    )
  return import_path(
    'lm.nn.position:rope_yarn',
    **common,
    original_context=original,
    fast=v.get('beta_fast', 32),
    slow=v.get('beta_slow', 1),
    scale=v.get('attention_factor'),
  )
