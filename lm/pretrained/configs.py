"""The inverse of the families: the config.json that describes the model section of a run.

A function per `model_type` maps the section to a config.json. Whether it says all of the section is
checked by the family itself: `family_of(config).model` must equal the section.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from lm.errors import UserError
from lm.pretrained import encoder_configs, encoder_decoder_configs, families
from lm.pretrained.family import Family
from lm.pretrained.section import Section, canonical, differences

_TASKS = ('task', 'converter')  # of the data section
_HEADS = (
  'ForMaskedLM',
  'ForSequenceClassification',
  'ForTokenClassification',
  'ForQuestionAnswering',
)


def config_of(
  model: ConfigDict, converter: str | None = None, labels: Sequence[str] = ()
) -> tuple[dict[str, Any], Family]:
  """Returns the config.json of a model section, and its family.

  Args:
    model: the section, with the sizes of its vocabulary and of its head.
    converter: `data.converter` of the run.
    labels: `data.labels` of the run.

  Raises:
    UserError: no family has such a model; the message names the keys.
  """
  if converter is not None and canonical(converter)[1].get('prefix_lm'):
    raise UserError(f'data.converter={converter!r}: no family attends to inputs in both directions')
  section = Section(model, converter, labels)
  # Only the tensors of a checkpoint show whether it has these.
  optional = {
    'pooler.dense.weight': section.name('head') != 'none',
    'final_logits_bias': section.name('head') == 'biased',
    'lm_head.weight': not model.get('tie_embeddings'),
  }
  names = [name for name, is_there in optional.items() if is_there]
  nearest: tuple[list[str], str, ConfigDict] | None = None
  for kind, describe in CONFIGS.items():
    config = {'model_type': kind, **describe(section)}
    try:
      family = families.family_of(config, names)
    except UserError:  # such as a size that the section lacks
      continue
    different = differences(model, family.model)
    if not different:
      _check_converter(kind, converter, family)
      return config, family
    if nearest is None or len(different) < len(nearest[0]):
      nearest = different, kind, family.model
  if nearest is None:
    raise UserError(f'model.fn={model.fn!r}: no family has it; known are {", ".join(CONFIGS)}')
  keys, kind, found = nearest
  parts = [f'model.{key}={model.get(key)!r} ({kind}: {found.get(key)!r})' for key in keys]
  raise UserError(f'{", ".join(parts)}: no family has it; known are {", ".join(CONFIGS)}')


def _check_converter(kind: str, converter: str | None, family: Family) -> None:
  """Raises UserError if a head means something else than the converter of the run."""
  of_family = family.data.get('converter')
  if converter is None or of_family is None:
    return
  (own, given), (function, known) = canonical(converter), canonical(of_family)
  if own is not function or given.get('start') not in (None, known.get('start')):
    raise UserError(f'data.converter={converter!r} ({kind}: {of_family!r}): no family has it')


def config_like(
  source: Mapping[str, Any], generation: Mapping[str, Any], model: ConfigDict, data: ConfigDict
) -> tuple[dict[str, Any], Family] | None:
  """Returns the config.json of a run that was fine-tuned from a checkpoint, and its family.

  It is that of the checkpoint, with the head and the labels of the run; None if it has no such
  head, or if other special tokens frame texts or start the decoder.

  Args:
    source: the config.json of the checkpoint.
    generation: its generation_config.json.
    model: the model section of the run, with its vocabulary size.
    data: its data section.
  """
  own = (source.get('architectures') or [''])[0]
  prefix = re.sub(r'(Model|LMHeadModel|For[A-Z]\w*)$', '', own)
  labels = {str(i): label for i, label in enumerate(data.labels)}
  more: dict[str, Any] = {}
  if labels:
    more |= {'id2label': labels, 'label2id': {label: int(i) for i, label in labels.items()}}
  architectures = dict.fromkeys([own, *(prefix + kind for kind in _HEADS)])
  # Without names of tensors, a model has all that are optional, such as a pooler.
  for architecture, names in itertools.product(architectures, (None, ())):
    config = {**families.with_vocabulary(source, model.vocab_size), **more}
    config['architectures'] = [architecture]
    try:
      family = families.family_of(config, names, generation)
    except UserError:
      continue
    head = all(_function(data.get(key)) == _function(family.data.get(key)) for key in _TASKS)
    if head and not differences(model, family.model):
      return config, family
  return None


def _function(path: str | None) -> Any:
  """Returns the function of an import path, and its special tokens, without other arguments."""
  if path is None:
    return None
  function, arguments = canonical(path)
  return function, arguments.get('special_tokens'), arguments.get('start')


def gpt2(model: Section) -> dict[str, Any]:
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
    'attn_pdrop': model.attention_dropout(),
    'embd_pdrop': model.get('dropout'),
    'resid_pdrop': model.get('dropout'),
    'tie_word_embeddings': model.get('tie_embeddings'),
  }


def gpt_neox(model: Section) -> dict[str, Any]:
  """GPT-NeoX."""
  bias, rotary = _attention_bias(model), _rope(model)
  return {
    'architectures': ['GPTNeoXForCausalLM'],
    'vocab_size': model.get('vocab_size'),
    'max_position_embeddings': model.get('context'),
    'hidden_size': model.get('d_model'),
    'num_hidden_layers': model.get('depth'),
    'num_attention_heads': model.get('heads'),
    'intermediate_size': model.get('d_mlp'),
    'hidden_act': model.activation(),
    'layer_norm_eps': model.argument('norm', 'epsilon'),
    'use_parallel_residual': model.name('block_layout') == 'parallel_norms',
    'attention_bias': bias,
    'attention_dropout': model.attention_dropout(),
    'hidden_dropout': model.get('dropout'),
    'initializer_range': model.get('init_std'),
    'rotary_pct': model.argument('position', 'fraction'),
    'rotary_emb_base': rotary.pop('rope_theta'),
    'tie_word_embeddings': model.get('tie_embeddings'),
    **rotary,
  }


def _llama(model: Section, layer: int = 0) -> dict[str, Any]:
  """Returns the keys that Llama and its relatives share; `layer` has the positions of most."""
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
    **_rope(model, layer),
  }


def _rope(model: Section, layer: int = 0) -> dict[str, Any]:
  """Returns the keys of rotary positions, as all versions of transformers read them."""
  function, of = model.layers('position')[layer]
  name = getattr(function, '__name__', '')
  theta = {'rope_theta': of.get('theta')}
  scaling: dict[str, Any] = {'factor': of.get('factor')}
  if name == 'rope_linear':
    scaling |= {'rope_type': 'linear'}
  elif name == 'rope_llama3':
    scaling |= {
      'rope_type': 'llama3',
      'low_freq_factor': of['low'],
      'high_freq_factor': of['high'],
      'original_max_position_embeddings': of['original_context'],
    }
  elif name == 'rope_yarn':
    scaling |= {
      'rope_type': 'yarn',
      'original_max_position_embeddings': of['original_context'],
      'beta_fast': of['fast'],
      'beta_slow': of['slow'],
    } | ({} if of['scale'] is None else {'attention_factor': of['scale']})
  else:
    return theta
  return theta | {'rope_scaling': scaling}


def _attention_bias(model: Section) -> bool:
  """Returns whether queries, keys and values have biases."""
  own = model.argument('attention_layer', 'qkv_bias')
  return model.get('bias') if own is None else own


def _windows(model: Section) -> dict[str, Any]:
  """Returns the keys of windows by layer."""
  windows = [arguments.get('window') for _, arguments in model.layers('attention_layer')]
  types = ['full_attention' if window is None else 'sliding_attention' for window in windows]
  size = next((window for window in windows if window is not None), None)
  return {'layer_types': types} | ({} if size is None else {'sliding_window': size})


def llama(model: Section) -> dict[str, Any]:
  """Llama."""
  biases = {'attention_bias': _attention_bias(model), 'mlp_bias': model.get('bias')}
  return {'architectures': ['LlamaForCausalLM'], **biases, **_llama(model)}


def mistral(model: Section) -> dict[str, Any]:
  """Mistral."""
  own = {'sliding_window': model.argument('attention_layer', 'window')}
  return {'architectures': ['MistralForCausalLM']} | own | _llama(model)


def qwen2(model: Section) -> dict[str, Any]:
  """Qwen 2; only the last layers may have windows."""
  windows = _windows(model)
  near = [kind == 'sliding_attention' for kind in windows['layer_types']]
  # Versions of transformers without layer_types read max_window_layers.
  own = {'max_window_layers': near.index(True), **windows} if any(near) else {}
  own |= {'use_sliding_window': any(near)}
  return {'architectures': ['Qwen2ForCausalLM']} | own | _llama(model)


def qwen3(model: Section) -> dict[str, Any]:
  """Qwen 3."""
  own = {'architectures': ['Qwen3ForCausalLM'], 'attention_bias': _attention_bias(model)}
  return qwen2(model) | own


def gemma(model: Section) -> dict[str, Any]:
  """Gemma 1."""
  own = {'architectures': ['GemmaForCausalLM'], **_gemma_common(model)}
  return _llama(model) | own


def gemma2(model: Section) -> dict[str, Any]:
  """Gemma 2."""
  return {'architectures': ['Gemma2ForCausalLM']} | _llama(model) | _gemma(model)


def gemma3_text(model: Section) -> dict[str, Any]:
  """Gemma 3; layers with windows have another wavelength, and are not scaled."""
  own = _gemma(model)
  types = own['layer_types']
  far, near = (types.index(x) if x in types else 0 for x in ('full_attention', 'sliding_attention'))
  local = model.layers('position')[near][1].get('theta')
  own |= {'architectures': ['Gemma3ForCausalLM'], 'rope_local_base_freq': local}
  return _llama(model, far) | own


def _gemma_common(model: Section) -> dict[str, Any]:
  """Returns the keys that differ from those of Llama."""
  name = model.activation()
  name = 'gelu_pytorch_tanh' if name == 'gelu_new' else name  # the same function
  bias = _attention_bias(model)
  return {'attention_bias': bias, 'hidden_act': name, 'hidden_activation': name}


def _gemma(model: Section) -> dict[str, Any]:
  """Returns the keys of Gemma 2 and 3 that differ from those of Llama."""
  return {
    **_gemma_common(model),
    'query_pre_attn_scalar': _divisor(model),
    'attn_logit_softcapping': model.argument('attention_fn', 'cap'),
    'final_logit_softcapping': model.get('logit_soft_cap'),
    **_windows(model),
  }


def _divisor(model: Section) -> float | None:
  """Returns the value whose square root divides attention scores."""
  scale = model.argument('attention_layer', 'scale')
  if not scale:
    return model.get('head_dim')
  divisor = round(scale**-2, 6)
  return int(divisor) if divisor.is_integer() else divisor


CONFIGS: Mapping[str, Callable[[Section], dict[str, Any]]] = {
  'gpt2': gpt2,
  'llama': llama,
  'mistral': mistral,
  'qwen2': qwen2,
  'qwen3': qwen3,
  'gemma': gemma,
  'gemma2': gemma2,
  'gemma3_text': gemma3_text,
  'gpt_neox': gpt_neox,
  'pegasus': encoder_decoder_configs.pegasus,
  'marian': encoder_decoder_configs.marian,
  'bart': encoder_decoder_configs.bart,
  'mbart': encoder_decoder_configs.mbart,
  't5': encoder_decoder_configs.t5,
  'bert': encoder_configs.bert,
  'roberta': encoder_configs.roberta,
  'distilbert': encoder_configs.distilbert,
  'electra': encoder_configs.electra,
  'modernbert': encoder_configs.modernbert,
}
