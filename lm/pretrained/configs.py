"""The inverse of the families: the config.json that describes the model section of a run.

A function per `model_type` maps the section to a config.json. Whether it says all of the section is
checked by the family itself: `family_of(config).model` must equal the section.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from lm.config import resolve
from lm.errors import UserError
from lm.pretrained import families
from lm.pretrained.family import ACTIVATIONS

# Keys that concern training and speed, but not what a trained model computes.
_TASKS = ('task', 'converter')  # of the data section
_HEADS = (
  'ForMaskedLM',
  'ForSequenceClassification',
  'ForTokenClassification',
  'ForQuestionAnswering',
)
_OF_TRAINING = {'dropout', 'dtype', 'init_std', 'remat_policy', 'scan_unroll', 'vocab_multiple'}


def canonical(value: Any) -> Any:
  """Returns a value of a config so that equal functions compare equal.

  The import path of a function becomes (function, arguments), with the defaults of arguments that
  are not given: 'jax.nn:gelu' equals 'jax.nn:gelu(approximate=True)'.
  """
  if isinstance(value, str) and ':' in value:
    value = resolve.resolve(value, 'model')
  if isinstance(value, list | tuple):
    return tuple(map(canonical, value))
  if isinstance(value, ConfigDict):
    return {key: canonical(x) for key, x in value.items()}
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
  return function, {k: canonical(x) for k, x in (defaults | given).items()}


def differences(model: ConfigDict, other: ConfigDict) -> list[str]:
  """Returns the keys in which two model sections describe different models."""
  keys = dict.fromkeys([*model, *other])
  return [
    key
    for key in keys
    if key not in _OF_TRAINING and canonical(model.get(key)) != canonical(other.get(key))
  ]


def config_of(model: ConfigDict, converter: str | None) -> dict[str, Any]:
  """Returns the config.json of a model section.

  Args:
    model: the section, with its vocabulary size.
    converter: `data.converter` of the run.

  Raises:
    UserError: no family has such a model; the message names the keys.
  """
  if converter is not None and canonical(converter)[1].get('prefix_lm'):
    raise UserError(f'data.converter={converter!r}: no family attends to inputs in both directions')
  nearest: tuple[list[str], str, ConfigDict] | None = None
  for kind, describe in CONFIGS.items():
    config = {'model_type': kind, **describe(_Section(model))}
    try:
      found = families.family_of(config).model
    except UserError:  # such as a size that the section lacks
      continue
    different = differences(model, found)
    if not different:
      return config
    if nearest is None or len(different) < len(nearest[0]):
      nearest = different, kind, found
  if nearest is None:
    raise UserError(f'model.fn={model.fn!r}: no family has it; known are {", ".join(CONFIGS)}')
  keys, kind, found = nearest
  parts = [f'model.{key}={model.get(key)!r} ({kind}: {found.get(key)!r})' for key in keys]
  raise UserError(f'{", ".join(parts)}: no family has it; known are {", ".join(CONFIGS)}')


def config_like(
  source: Mapping[str, Any], model: ConfigDict, data: ConfigDict
) -> dict[str, Any] | None:
  """Returns the config.json of a run that was fine-tuned from a checkpoint; None without one.

  It is that of the checkpoint, with the head and the labels of the run.

  Args:
    source: the config.json of the checkpoint.
    model: the model section of the run, with its vocabulary size.
    data: its data section.
  """
  own = (source.get('architectures') or [''])[0]
  prefix = re.sub(r'(Model|LMHeadModel|For[A-Z]\w*)$', '', own)
  labels = {str(i): label for i, label in enumerate(data.labels)}
  more: dict[str, Any] = {'vocab_size': model.vocab_size}
  if labels:
    more |= {'id2label': labels, 'label2id': {label: int(i) for i, label in labels.items()}}
  for architecture in dict.fromkeys([own, *(prefix + kind for kind in _HEADS)]):
    config = {**source, **more, 'architectures': [architecture]}
    try:
      family = families.family_of(config)
    except UserError:
      continue
    head = all(_function(data.get(key)) == _function(family.data.get(key)) for key in _TASKS)
    if head and not differences(model, family.model):
      return config
  return None


def _function(path: str | None) -> Any:
  """Returns the function of an import path without its arguments."""
  return None if path is None else canonical(path)[0]


class _Section:
  """Reads the keys of a model section; None for those that it lacks."""

  def __init__(self, model: ConfigDict):
    self._model = model

  def get(self, key: str) -> Any:
    """Returns the value of a key."""
    return self._model.get(key)

  def argument(self, key: str, name: str) -> Any:
    """Returns an argument of the function that a key names."""
    found = canonical(self.get(key))
    return found[1].get(name) if isinstance(found, tuple) and len(found) == 2 else None

  def activation(self) -> str | None:
    """Returns the name of the activation of the MLP."""
    activation = self.argument('mlp', 'activation')
    names = ACTIVATIONS.items()
    return next((name for name, path in names if canonical(path) == activation), None)


def gpt2(model: _Section) -> dict[str, Any]:
  """GPT-2."""
  return {
    'architectures': ['GPT2LMHeadModel'],
    'vocab_size': model.get('vocab_size'),
    'n_positions': model.get('context'),
    'n_embd': model.get('d_model'),
    'n_layer': model.get('depth'),
    'n_head': model.get('heads'),
    'n_inner': model.get('d_mlp'),
    'activation_function': model.activation(),
    'layer_norm_epsilon': model.argument('norm', 'epsilon'),
    'initializer_range': model.get('init_std'),
    'attn_pdrop': 0.0,
    'embd_pdrop': model.get('dropout'),
    'resid_pdrop': model.get('dropout'),
    'tie_word_embeddings': True,
  }


def _llama(model: _Section) -> dict[str, Any]:
  """Returns the keys that Llama and its relatives share."""
  return {
    'vocab_size': model.get('vocab_size'),
    'max_position_embeddings': model.get('context'),
    'hidden_size': model.get('d_model'),
    'num_hidden_layers': model.get('depth'),
    'num_attention_heads': model.get('heads'),
    'num_key_value_heads': model.get('kv_heads'),
    'head_dim': model.get('head_dim'),
    'intermediate_size': model.get('d_mlp'),
    'hidden_act': model.activation(),
    'rms_norm_eps': model.argument('norm', 'epsilon'),
    'initializer_range': model.get('init_std'),
    'tie_word_embeddings': model.get('tie_embeddings'),
    **_rope(model),
  }


def _rope(model: _Section) -> dict[str, Any]:
  """Returns the keys of rotary positions, as all versions of transformers read them."""

  def of(name: str) -> Any:
    return model.argument('position', name)

  theta = {'rope_theta': of('theta')}
  function = canonical(model.get('position'))
  name = getattr(function[0], '__name__', '') if isinstance(function, tuple) else ''
  scaling: dict[str, Any] = {'factor': of('factor')}
  if name == 'rope_linear':
    scaling |= {'rope_type': 'linear'}
  elif name == 'rope_llama3':
    scaling |= {
      'rope_type': 'llama3',
      'low_freq_factor': of('low'),
      'high_freq_factor': of('high'),
      'original_max_position_embeddings': of('original_context'),
    }
  elif name == 'rope_yarn':
    scaling |= {
      'rope_type': 'yarn',
      'original_max_position_embeddings': of('original_context'),
      'beta_fast': of('fast'),
      'beta_slow': of('slow'),
    } | ({} if of('scale') is None else {'attention_factor': of('scale')})
  else:
    return theta
  return theta | {'rope_scaling': scaling}


def llama(model: _Section) -> dict[str, Any]:
  """Llama."""
  biases = {'attention_bias': _attention_bias(model), 'mlp_bias': model.get('bias')}
  return {'architectures': ['LlamaForCausalLM']} | biases | _llama(model)


def _attention_bias(model: _Section) -> Any:
  own = model.argument('attention_layer', 'out_bias')
  return model.get('bias') if own is None else own


def mistral(model: _Section) -> dict[str, Any]:
  """Mistral."""
  own = {'sliding_window': model.argument('attention_layer', 'window')}
  return {'architectures': ['MistralForCausalLM']} | own | _llama(model)


def qwen2(model: _Section) -> dict[str, Any]:
  """Qwen 2."""
  return {'architectures': ['Qwen2ForCausalLM'], 'use_sliding_window': False} | _llama(model)


def qwen3(model: _Section) -> dict[str, Any]:
  """Qwen 3."""
  own = {'use_sliding_window': False, 'attention_bias': _attention_bias(model)}
  return {'architectures': ['Qwen3ForCausalLM']} | own | _llama(model)


CONFIGS: Mapping[str, Callable[[_Section], dict[str, Any]]] = {
  'gpt2': gpt2,
  'llama': llama,
  'mistral': mistral,
  'qwen2': qwen2,
  'qwen3': qwen3,
}
