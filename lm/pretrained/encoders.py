"""Encoder families: BERT and its relatives, with the heads of their tasks."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from lm.config import base
from lm.errors import UserError, did_you_mean
from lm.pretrained.family import ACTIVATIONS, Family, Reader, import_path
from lm.pretrained.layout import (
  Entry,
  Row,
  attention_rows,
  entries_of,
  layer_entries,
  linear,
  linear_rows,
  norm_rows,
  of_one,
  qkv_bias,
  qkv_kernel,
  reshaped,
  same,
)

_TEMPLATE = "(special_tokens='template')"  # of converters: [CLS] and [SEP] as in pretraining
_GELU = ACTIVATIONS['gelu']

# The import path of a head and its rows, by kind; None for the linear layer of the stack.
Heads = Mapping[str, tuple[str | None, list[Row]]]


def bert(hf: Reader) -> Family:
  """BERT (Devlin et al. 2019). The head of next sentences is kept, and not used."""
  model, entries = _bert_body(hf, 'bert.')
  kind, data = _task(hf, 'Bert', model, {'ForPreTraining': 'ForMaskedLM'})
  D, C = model.d_model, model.num_classes
  pooler = linear_rows('pooler', 'bert.pooler.dense', D, D)
  transform = 'cls.predictions.transform'
  heads: Heads = {
    'Model': _pooler(hf, pooler),
    'ForMaskedLM': _masked(
      model,
      hf.one_of('hidden_act', ACTIVATIONS, 'gelu'),
      (f'{transform}.dense', f'{transform}.LayerNorm', 'cls.predictions.bias'),
    ),
    'ForSequenceClassification': (
      'lm.nn.heads:pooled',
      [*pooler, *_classes('classifier', C, D)],
    ),
    'ForTokenClassification': (None, _classes('classifier', C, D)),
    'ForQuestionAnswering': (None, _classes('qa_outputs', C, D)),
  }
  tied = {
    'cls.predictions.decoder.weight': 'bert.embeddings.word_embeddings.weight',
    'cls.predictions.decoder.bias': 'cls.predictions.bias',
  }
  unused = r'bert\.pooler\.|cls\.' + (r'seq_relationship\.' if kind == 'ForMaskedLM' else '')
  return _family(hf, 'bert.', model, entries, heads[kind], tied, unused, data)


def roberta(hf: Reader, prefix: str = 'Roberta') -> Family:
  """RoBERTa (Liu et al. 2019): BERT with positions from the row after that of the padding token."""
  offset = 1 + int(hf.not_negative('pad_token_id', 1))
  model, entries = _bert_body(hf, 'roberta.', offset)
  kind, data = _task(hf, prefix, model)
  D, C = model.d_model, model.num_classes
  dense = linear_rows('pooler', 'classifier.dense', D, D)
  heads: Heads = {
    'Model': _pooler(hf, linear_rows('pooler', 'roberta.pooler.dense', D, D)),
    'ForMaskedLM': _masked(model, _GELU, ('lm_head.dense', 'lm_head.layer_norm', 'lm_head.bias')),
    'ForSequenceClassification': (
      'lm.nn.heads:pooled',
      [*dense, *_classes('classifier.out_proj', C, D)],
    ),
    'ForTokenClassification': (None, _classes('classifier', C, D)),
    'ForQuestionAnswering': (None, _classes('qa_outputs', C, D)),
  }
  tied = {
    'lm_head.decoder.weight': 'roberta.embeddings.word_embeddings.weight',
    'lm_head.decoder.bias': 'lm_head.bias',
  }
  unused = r'roberta\.pooler\.' + ('' if kind == 'ForMaskedLM' else r'|lm_head\.')
  return _family(hf, 'roberta.', model, entries, heads[kind], tied, unused, data)


def xlm_roberta(hf: Reader) -> Family:
  """XLM-RoBERTa (Conneau et al. 2020): RoBERTa in 100 languages."""
  return roberta(hf, 'XLMRoberta')


def camembert(hf: Reader) -> Family:
  """CamemBERT (Martin et al. 2020): RoBERTa in French."""
  return roberta(hf, 'Camembert')


def electra(hf: Reader) -> Family:
  """ELECTRA (Clark et al. 2020): the discriminator, `ForPreTraining`, and the generator."""
  model, entries = _bert_body(hf, 'electra.', width=hf.size('embedding_size', 128))
  kind, data = _task(hf, 'Electra', model, {'ForPreTraining': 'ForPreTraining'})
  D, C = model.d_model, model.num_classes
  activation = hf.one_of('hidden_act', ACTIVATIONS, 'gelu')
  dense = linear_rows('pooler', 'classifier.dense', D, D)
  judge = 'discriminator_predictions'
  generator = 'generator_predictions.dense', 'generator_predictions.LayerNorm'
  heads: Heads = {
    'Model': ('lm.nn.heads:none', []),
    'ForMaskedLM': _masked(
      model, _GELU, (*generator, 'generator_lm_head.bias'), hf.size('embedding_size', 128)
    ),
    'ForPreTraining': (
      import_path('lm.nn.heads:pooled', activation=activation),
      [
        *linear_rows('pooler', f'{judge}.dense', D, D),
        *_classes(f'{judge}.dense_prediction', C, D),
      ],
    ),
    'ForSequenceClassification': (
      import_path('lm.nn.heads:pooled', activation=_GELU),
      [*dense, *_classes('classifier.out_proj', C, D)],
    ),
    'ForTokenClassification': (None, _classes('classifier', C, D)),
    'ForQuestionAnswering': (None, _classes('qa_outputs', C, D)),
  }
  tied = {'generator_lm_head.weight': 'electra.embeddings.word_embeddings.weight'}
  others = {'ForMaskedLM': 'discriminator', 'ForPreTraining': 'generator'}
  unused = others.get(kind, '(generator|discriminator)') + r'_(predictions|lm_head)\.'
  return _family(hf, 'electra.', model, entries, heads[kind], tied, unused, data)


def distilbert(hf: Reader) -> Family:
  """DistilBERT (Sanh et al. 2019): BERT without types. Sinusoidal positions are a table too."""
  keys = 'dim', 'n_layers', 'n_heads', 'hidden_dim'
  model = _encoder(hf, keys, 'activation', hf.size('max_position_embeddings', 512))
  norm = import_path('lm.nn.layers:LayerNorm', epsilon=1e-12)
  with model.unlocked():
    model.update({
      'input_layer': import_path('lm.nn.embedding:normed', norm=norm),
      'norm': norm,
      'dropout': hf.rate('dropout', 0.1),
    })  # fmt: skip
  D, V, H, F = model.d_model, model.vocab_size, model.heads, model.d_mlp
  attention = [f'attention.{part}_lin' for part in ('q', 'k', 'v', 'out')]
  rows: list[Row] = [
    *attention_rows('attention', attention, D, H, H, D // H, True, True),
    *norm_rows('attention_norm', 'sa_layer_norm', D),
    *linear_rows('mlp/up', 'ffn.lin1', D, F),
    *linear_rows('mlp/down', 'ffn.lin2', F, D),
    *norm_rows('mlp_norm', 'output_layer_norm', D),
  ]
  embeddings: list[Row] = [
    ('embedding', same(V, D), ('word_embeddings.weight',)),
    ('encoder/position', same(model.context, D), ('position_embeddings.weight',)),
    *norm_rows('encoder/embedding_norm', 'LayerNorm', D),
  ]
  entries = [
    *entries_of(embeddings, name='distilbert.embeddings.'),
    *layer_entries(rows, 'encoder', 'distilbert.transformer.layer.{}.', model.depth),
  ]
  kind, data = _task(hf, 'DistilBert', model)
  C, dense = model.num_classes, linear_rows('pooler', 'pre_classifier', D, D)
  transform = 'vocab_transform', 'vocab_layer_norm', 'vocab_projector.bias'
  heads: Heads = {
    'Model': ('lm.nn.heads:none', []),
    'ForMaskedLM': _masked(model, hf.one_of('activation', ACTIVATIONS, 'gelu'), transform),
    'ForSequenceClassification': (
      import_path('lm.nn.heads:pooled', activation=ACTIVATIONS['relu']),
      [*dense, *_classes('classifier', C, D)],
    ),
    'ForTokenClassification': (None, _classes('classifier', C, D)),
    'ForQuestionAnswering': (None, _classes('qa_outputs', C, D)),
  }
  tied = {'vocab_projector.weight': 'distilbert.embeddings.word_embeddings.weight'}
  unused = '$.' if kind == 'ForMaskedLM' else r'vocab_(transform|layer_norm|projector)\.'
  return _family(hf, 'distilbert.', model, entries, heads[kind], tied, unused, data)


def modernbert(hf: Reader) -> Family:
  """ModernBERT (Warner et al. 2024): pre-norm, gated, with rotary positions and local attention.

  Layer 0 has no norm before its attention, so that the pattern of layers is as long as the stack.
  """
  keys = 'hidden_size', 'num_hidden_layers', 'num_attention_heads', 'intermediate_size'
  model = _encoder(hf, keys, 'hidden_activation', hf.size('max_position_embeddings', 8192))
  D, N, H, F, V = model.d_model, model.depth, model.heads, model.d_mlp, model.vocab_size
  bias = bool(hf.get('norm_bias', False))
  hf.only(rope_scaling=None)
  if any(bool(hf.get(key, False)) != bias for key in ('attention_bias', 'mlp_bias')):
    raise UserError('config.json: norm_bias, attention_bias and mlp_bias must be equal')
  norm = import_path('lm.nn.layers:LayerNorm', bias=bias, epsilon=hf.not_negative('norm_eps', 1e-5))
  local = _local_layers(hf, N)
  window = import_path('lm.nn.layers:Attention', window=hf.size('local_attention', 128) // 2 + 1)
  ropes = _rope(hf, 'full_attention', 160000.0), _rope(hf, 'sliding_attention', 10000.0)
  activation = hf.one_of('hidden_activation', ACTIVATIONS, 'gelu')
  with model.unlocked(), model.ignore_type():  # patterns are tuples of import paths
    model.update({
      'input_layer': import_path('lm.nn.embedding:normed', norm=norm),
      'norm': norm,
      'bias': bias,
      'attention_layer': tuple(window if near else 'lm.nn.layers:Attention' for near in local),
      'position': tuple(ropes[near] for near in local),
      'mlp': import_path('lm.nn.layers:FusedGatedMlp', activation=activation),
      'block_layout': ('lm.nn.layers:mlp_pre_norm', *['lm.nn.layers:pre_norm'] * (N - 1)),
      'final_norm': True,
      'dropout': hf.rate('mlp_dropout', 0.0),
    })  # fmt: skip

  def norm_of(path: str, name: str) -> list[Row]:
    return norm_rows(path, name, D)[: 1 + bias]

  rows: list[Row] = [
    *norm_of('attention_norm', 'attn_norm'),
    ('attention/qkv/kernel', of_one(qkv_kernel(D, H, H, D // H), 0), ('attn.Wqkv.weight',)),
    *attention_rows('attention', (*'qkv', 'attn.Wo'), D, H, H, D // H, False, bias)[1:],
    *norm_of('mlp_norm', 'mlp_norm'),
    ('mlp/up/kernel', linear(D, 2, F), ('mlp.Wi.weight',)),
    *linear_rows('mlp/down', 'mlp.Wo', F, D, bias),
  ]
  if bias:
    rows += [
      ('attention/qkv/bias', of_one(qkv_bias(H, H, D // H), 0), ('attn.Wqkv.bias',)),
      ('mlp/up/bias', reshaped((2 * F,), (2, F)), ('mlp.Wi.bias',)),
    ]
  outside: list[Row] = [
    ('embedding', same(V, D), ('embeddings.tok_embeddings.weight',)),
    *norm_of('encoder/embedding_norm', 'embeddings.norm'),
    *norm_of('encoder/final_norm', 'final_norm'),
  ]
  layers = layer_entries(rows, 'encoder', 'model.layers.{}.', N, N)
  entries = entries_of(outside, name='model.')
  entries += [x for x in layers if not x.path.startswith('encoder/layers/layer_0/attention_norm/')]
  kind, data = _task(hf, 'ModernBert', model)
  if kind == 'ForSequenceClassification':
    poolings = {'cls': 'lm.nn.pooling:first', 'mean': 'lm.nn.pooling:mean'}
    model.pooling = hf.one_of('classifier_pooling', poolings, 'cls')
  dense = bool(hf.get('classifier_bias', False))
  transform: list[Row] = [
    *linear_rows('transform', 'head.dense', D, D, dense),
    *norm_of('transform_norm', 'head.norm'),
  ]
  arguments = {
    'activation': hf.one_of('classifier_activation', ACTIVATIONS, 'gelu'),
    'norm': norm,
    'bias': dense,
  }
  if kind == 'Model':
    head: tuple[str | None, list[Row]] = ('lm.nn.heads:none', [])
  elif kind == 'ForMaskedLM':
    hf.only(decoder_bias=True)
    bias_V: Row = ('head_bias', same(V), ('decoder.bias',))
    head = import_path('lm.nn.heads:masked', **arguments), [*transform, bias_V]
  else:
    path = import_path('lm.nn.heads:transformed', **arguments)
    head = path, [*transform, *_classes('classifier', model.num_classes, D)]
  tied = {'decoder.weight': 'model.embeddings.tok_embeddings.weight'}
  unused = r'head\.|decoder\.' if kind == 'Model' else '$.'
  return _family(hf, 'model.', model, entries, head, tied, unused, data)


def _local_layers(hf: Reader, depth: int) -> tuple[bool, ...]:
  """Returns whether the attention of each layer of a ModernBERT has a window."""
  every = hf.size('global_attn_every_n_layers', 3)
  names = ['sliding_attention' if i % every else 'full_attention' for i in range(depth)]
  types = hf.strings('layer_types', names)
  allowed = 'sliding_attention', 'full_attention'
  if len(types) != depth or any(each not in allowed for each in types):
    raise UserError(
      f'config.json: layer_types={types!r} must have full_attention or sliding_attention for each '
      f'of the num_hidden_layers={depth}'
    )
  return tuple(each == 'sliding_attention' for each in types)


def _rope(hf: Reader, layers: str, theta: float) -> str:
  """Returns the position scheme of the layers of a type; keys differ by version of transformers."""
  old = {'full_attention': 'global_rope_theta', 'sliding_attention': 'local_rope_theta'}[layers]
  values = hf.section('rope_parameters').mapping(layers)
  if values.get('rope_type', 'default') != 'default':
    raise UserError(f'config.json: rope_parameters={values!r} of {layers} is not supported')
  theta = Reader({old: values.get('rope_theta', hf.get(old))}).not_negative(old, theta)
  return import_path('lm.nn.position:rope', theta=theta)


def _encoder(hf: Reader, keys: tuple[str, ...], activation: str, context: int) -> ConfigDict:
  """Returns the model section of a post-norm encoder.

  Args:
    hf: the config.
    keys: of the width, the layers, the heads and the width of the feed-forward.
    activation: key of the activation.
    context: count of positions.
  """
  D, N, H, F = (hf.size(key) for key in keys)
  if D % H:
    raise UserError(f'config.json: {keys[0]}={D} is not a multiple of {keys[2]}={H}')
  model = base.encoder(depth=N, d_model=D, heads=H, context=context)
  function = hf.one_of(activation, ACTIVATIONS, 'gelu')
  with model.unlocked():
    model.update({
      'vocab_size': hf.size('vocab_size'),
      'd_mlp': F,
      'mlp': import_path('lm.nn.layers:Mlp', activation=function),
      'block_layout': 'lm.nn.layers:post_norm',
      'final_norm': False,
      'pooling': placeholder(str),
    })  # fmt: skip
  return model


def _bert_body(
  hf: Reader, prefix: str, offset: int = 0, width: int | None = None
) -> tuple[ConfigDict, list[Entry]]:
  """Returns the model section and the entries of all but the head, with the names of BERT.

  Args:
    hf: the config.
    prefix: of the names.
    offset: rows of the table of positions before the first one.
    width: of the embeddings; None for that of the model.
  """
  hf.only(position_embedding_type='absolute', is_decoder=False, add_cross_attention=False)
  rows = hf.size('max_position_embeddings', 512)
  if not 0 <= offset < rows:
    raise UserError(f'config.json: max_position_embeddings={rows} has no row from {offset} on')
  keys = 'hidden_size', 'num_hidden_layers', 'num_attention_heads', 'intermediate_size'
  model = _encoder(hf, keys, 'hidden_act', rows - offset)
  D, V, H, F = model.d_model, model.vocab_size, model.heads, model.d_mlp
  types, E = hf.size('type_vocab_size', 2), width or D
  norm = import_path('lm.nn.layers:LayerNorm', epsilon=hf.not_negative('layer_norm_eps', 1e-12))
  projected = None if E == D else E
  with model.unlocked():
    model.update({
      'input_layer': import_path(
        'lm.nn.embedding:normed', norm=norm, types=types, width=projected
      ),
      'position': import_path('lm.nn.position:learned', offset=offset or None),
      'norm': norm,
      'dropout': hf.rate('hidden_dropout_prob', 0.1),
    })  # fmt: skip
  attention = ('attention.self.query', 'attention.self.key', 'attention.self.value')
  layer: list[Row] = [
    *attention_rows(
      'attention', (*attention, 'attention.output.dense'), D, H, H, D // H, True, True
    ),
    *norm_rows('attention_norm', 'attention.output.LayerNorm', D),
    *linear_rows('mlp/up', 'intermediate.dense', D, F),
    *linear_rows('mlp/down', 'output.dense', F, D),
    *norm_rows('mlp_norm', 'output.LayerNorm', D),
  ]
  outside: list[Row] = [
    ('embedding', same(V, E), ('embeddings.word_embeddings.weight',)),
    ('encoder/position', same(rows, E), ('embeddings.position_embeddings.weight',)),
    ('encoder/types', same(types, E), ('embeddings.token_type_embeddings.weight',)),
    *norm_rows('encoder/embedding_norm', 'embeddings.LayerNorm', E),
  ]
  if projected:
    outside += [
      ('encoder/projection', linear(E, D), ('embeddings_project.weight',)),
      ('encoder/projection_bias', same(D), ('embeddings_project.bias',)),
    ]
  entries = entries_of(outside, name=prefix)
  return model, entries + layer_entries(layer, 'encoder', prefix + 'encoder.layer.{}.', model.depth)


def _family(
  hf: Reader,
  prefix: str,
  model: ConfigDict,
  entries: list[Entry],
  head: tuple[str | None, list[Row]],
  tied: Mapping[str, str],
  unused: str,
  data: Mapping[str, Any],
) -> Family:
  """Returns the family of a model with a head; see `Family` and `Heads`."""
  path, rows = head
  if any(name == 'head_bias' for name, _, _ in rows):
    hf.only(tie_word_embeddings=True)
  if path:
    model.head = path
  positions = next((x for x in entries if x.path == 'encoder/position'), None)

  def buffers(name: str) -> np.ndarray | None:
    if positions is None or not name.endswith('.position_ids'):
      return None
    return np.arange(positions.transform.shapes[0][0])[None]

  renamed = {'LayerNorm.gamma': 'LayerNorm.weight', 'LayerNorm.beta': 'LayerNorm.bias'}
  every = (*entries, *entries_of(rows))
  # An export writes the trained parameter for its copies, also for those of a head without use.
  names = {name for entry in every for names in entry.tensor_names() for name in names}
  copies = [re.escape(copy) for copy, original in tied.items() if original in names]
  unused = f'(?!({"|".join(copies)})$)({unused})'
  return Family(model, every, prefix, buffers, tied, unused, renamed, data)


def _pooler(hf: Reader, rows: list[Row]) -> tuple[str | None, list[Row]]:
  """Returns the head of a model without one, which may lack the pooler."""
  has_pooler = hf.has_tensor('pooler.dense.weight')
  return ('lm.nn.heads:pooler', rows) if has_pooler else ('lm.nn.heads:none', [])


def _masked(
  model: ConfigDict, activation: str, names: tuple[str, str, str], width: int | None = None
) -> tuple[str | None, list[Row]]:
  """Returns the head of a masked language model.

  Args:
    model: the model section.
    activation: import path of a function.
    names: of the dense layer, the norm and the bias of the vocabulary.
    width: of the embeddings; None for that of the model.
  """
  E = width or model.d_model
  rows: list[Row] = [
    *linear_rows('transform', names[0], model.d_model, E),
    *norm_rows('transform_norm', names[1], E),
    ('head_bias', same(model.vocab_size), (names[2],)),
  ]
  return import_path('lm.nn.heads:masked', activation=activation, norm=model.norm), rows


def _classes(name: str, classes: int | None, width: int) -> list[Row]:
  """Returns the rows of the last linear layer; of no use where `classes` is None."""
  C = classes or 0
  return [
    ('head/kernel', same(C, width), (f'{name}.weight',)),
    ('head/bias', same(C), (f'{name}.bias',)),
  ]


_PROBLEMS = {  # task and converter
  'single_label_classification': ('classification', 'classifier'),
  'multi_label_classification': ('multilabel', 'multilabel'),
  'regression': ('regression', 'regressor'),
}
_KINDS = (
  'Model',
  'ForMaskedLM',
  'ForSequenceClassification',
  'ForTokenClassification',
  'ForQuestionAnswering',
)


def _task(
  hf: Reader, prefix: str, model: ConfigDict, more: Mapping[str, str] | None = None
) -> tuple[str, dict[str, Any]]:
  """Sets the classes and the pooling of a model; returns the kind of its head, and its data.

  Args:
    hf: the config; the first of its `architectures` names the head.
    prefix: of the names of architectures, such as 'Bert'.
    model: the model section.
    more: kinds by the endings of the names of the family's own architectures.
  """
  endings = {kind: kind for kind in _KINDS} | dict(more or {})
  kinds = {prefix + name: kind for name, kind in endings.items()}
  found = hf.get('architectures') or [f'{prefix}Model']
  architecture = found[0] if isinstance(found, list) else found
  if architecture not in tuple(kinds):
    raise UserError(
      f'config.json: architectures={architecture!r} is not supported'
      f'{did_you_mean(str(architecture), kinds)}; it must be one of {", ".join(kinds)}'
    )
  kind, data = kinds[architecture], {}
  with model.unlocked():
    if kind == 'ForPreTraining':
      model.num_classes = 1
    elif kind == 'ForSequenceClassification':
      model.pooling, labels = 'lm.nn.pooling:first', _labels(hf)
      model.num_classes = len(labels)
      one = 'regression' if len(labels) == 1 else 'single_label_classification'
      problem = hf.get('problem_type', one)
      if problem not in (one, 'multi_label_classification'):
        hf.only(problem_type=one)
      task, converter = _PROBLEMS[problem]
      data = {
        'task': f'lm.tasks.text:{task}',
        'converter': f'lm.tasks.classification:{converter}{_TEMPLATE}',
        'labels': () if task == 'regression' else labels,
      }
    elif kind == 'ForTokenClassification':
      labels = _labels(hf)
      model.num_classes = len(labels)
      converter = f'lm.tasks.classification:tagger{_TEMPLATE}'
      data = {'task': 'lm.tasks.text:tagging', 'converter': converter, 'labels': labels}
    elif kind == 'ForQuestionAnswering':
      model.num_classes = 2
      converter = f'lm.tasks.extractive_qa:converter{_TEMPLATE}'
      data = {'task': 'lm.tasks.extractive_qa:extraction', 'converter': converter}
  return kind, data


def _labels(hf: Reader) -> tuple[str, ...]:
  """Returns the names of the classes in order."""
  count = hf.size('num_labels', 2)
  names = hf.mapping('id2label') or {str(i): f'LABEL_{i}' for i in range(count)}
  keys = [str(i) for i in range(len(names))]
  if {*names} != {*keys}:
    raise UserError(f'config.json: id2label={names!r} must have one name for each class from 0')
  labels = tuple(names[key] for key in keys)
  if not all(isinstance(name, str) for name in labels) or len({*labels}) < len(labels):
    raise UserError(f'config.json: id2label={names!r} must have a different name for each class')
  return labels
