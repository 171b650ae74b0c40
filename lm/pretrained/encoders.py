"""Encoder families: BERT and its relatives, with the heads of their tasks."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from lm.config import base
from lm.errors import UserError, did_you_mean
from lm.pretrained.family import ACTIVATIONS, Family, Reader, import_path
from lm.pretrained.layout import (
  Row,
  attention_rows,
  entries_of,
  layer_entries,
  linear_rows,
  norm_rows,
  same,
)

_TEMPLATE = "(special_tokens='template')"  # of converters: [CLS] and [SEP] as in pretraining


def bert(hf: Reader) -> Family:
  """BERT (Devlin et al. 2019)."""
  hf.only(position_embedding_type='absolute', is_decoder=False, add_cross_attention=False)
  hf.only(tie_word_embeddings=True)
  D, N, H, F = (
    hf.size(key)
    for key in ('hidden_size', 'num_hidden_layers', 'num_attention_heads', 'intermediate_size')
  )
  V, T, types = (
    hf.size(key) for key in ('vocab_size', 'max_position_embeddings', 'type_vocab_size')
  )
  K = D // H
  if D % H:
    raise UserError(f'config.json: hidden_size={D} is not a multiple of num_attention_heads={H}')
  activation = hf.one_of('hidden_act', ACTIVATIONS, 'gelu')
  norm = import_path('lm.nn.layers:LayerNorm', epsilon=hf.get('layer_norm_eps', 1e-12))
  model = base.encoder(depth=N, d_model=D, heads=H, context=T)
  with model.unlocked():
    model.update({
      'vocab_size': V,
      'd_mlp': F,
      'input_layer': import_path('lm.nn.embedding:normed', norm=norm, types=types),
      'norm': norm,
      'mlp': import_path('lm.nn.layers:Mlp', activation=activation),
      'block_layout': 'lm.nn.layers:post_norm',
      'final_norm': False,
      'dropout': float(hf.get('hidden_dropout_prob', 0.1)),
    })  # fmt: skip
  attention = ('attention.self.query', 'attention.self.key', 'attention.self.value')
  rows: list[Row] = [
    *attention_rows('attention', (*attention, 'attention.output.dense'), D, H, H, K, True, True),
    *norm_rows('attention_norm', 'attention.output.LayerNorm', D),
    *linear_rows('mlp/up', 'intermediate.dense', D, F),
    *linear_rows('mlp/down', 'output.dense', F, D),
    *norm_rows('mlp_norm', 'output.LayerNorm', D),
  ]
  embeddings: list[Row] = [
    ('embedding', same(V, D), ('word_embeddings.weight',)),
    ('encoder/position', same(T, D), ('position_embeddings.weight',)),
    ('encoder/types', same(types, D), ('token_type_embeddings.weight',)),
    *norm_rows('encoder/embedding_norm', 'LayerNorm', D),
  ]
  pooler = linear_rows('pooler', 'bert.pooler.dense', D, D)
  mlm: list[Row] = [
    *linear_rows('transform', 'cls.predictions.transform.dense', D, D),
    *norm_rows('transform_norm', 'cls.predictions.transform.LayerNorm', D),
    ('head_bias', same(V), ('cls.predictions.bias',)),
  ]
  kind, data = _head(hf, 'Bert', model)
  unused = r'bert\.pooler\.|cls\.seq_relationship\.'
  if kind == 'Model':
    has_pooler = hf.has_tensor('pooler.dense.weight')
    head, model.head = (pooler, 'lm.nn.heads:pooler') if has_pooler else ([], 'lm.nn.heads:none')
    unused = r'cls\.'
  elif kind == 'ForMaskedLM':
    head = mlm
    model.head = import_path('lm.nn.heads:masked', activation=activation, norm=norm)
  else:
    name, C = 'qa_outputs' if kind == 'ForQuestionAnswering' else 'classifier', model.num_classes
    head = [
      ('head/kernel', same(C, D), (f'{name}.weight',)),
      ('head/bias', same(C), (f'{name}.bias',)),
    ]
    if kind == 'ForSequenceClassification':
      head, model.head, unused = [*pooler, *head], 'lm.nn.heads:pooled', r'cls\.'
  entries = [
    *entries_of(embeddings, name='bert.embeddings.'),
    *layer_entries(rows, 'encoder', 'bert.encoder.layer.{}.', N),
    *entries_of(head),
  ]

  def buffers(name: str) -> np.ndarray | None:
    return np.arange(T)[None] if name.endswith('.position_ids') else None

  tied = {
    'cls.predictions.decoder.weight': 'bert.embeddings.word_embeddings.weight',
    'cls.predictions.decoder.bias': 'cls.predictions.bias',
  }
  renamed = {'LayerNorm.gamma': 'LayerNorm.weight', 'LayerNorm.beta': 'LayerNorm.bias'}
  return Family(model, tuple(entries), 'bert.', buffers, tied, unused, renamed, data)


_KINDS = {
  'Model': 'Model',
  'ForMaskedLM': 'ForMaskedLM',
  'ForPreTraining': 'ForMaskedLM',
  'ForSequenceClassification': 'ForSequenceClassification',
  'ForTokenClassification': 'ForTokenClassification',
  'ForQuestionAnswering': 'ForQuestionAnswering',
}


def _head(hf: Reader, prefix: str, model: ConfigDict) -> tuple[str, dict[str, Any]]:
  """Sets the classes and the pooling of a model; returns the kind of its head, and its data.

  Args:
    hf: the config; the first of its `architectures` names the head.
    prefix: of the names of architectures, such as 'Bert'.
    model: the model section.
  """
  kinds = {prefix + name: kind for name, kind in _KINDS.items()}
  architecture = (hf.get('architectures') or [f'{prefix}Model'])[0]
  if architecture not in kinds:
    raise UserError(
      f'config.json: architectures={architecture!r} is not supported'
      f'{did_you_mean(str(architecture), kinds)}; it must be one of {", ".join(kinds)}'
    )
  kind, data = kinds[architecture], {}
  with model.unlocked():
    model.pooling = placeholder(str)
    if kind == 'ForSequenceClassification':
      model.pooling, labels = 'lm.nn.pooling:first', _labels(hf)
      model.num_classes = len(labels)
      task = 'regression' if len(labels) == 1 else 'classification'
      hf.only(problem_type='regression' if len(labels) == 1 else 'single_label_classification')
      converter = 'regressor' if len(labels) == 1 else 'classifier'
      data = {
        'task': f'lm.tasks.text:{task}',
        'converter': f'lm.tasks.classification:{converter}{_TEMPLATE}',
        'labels': () if len(labels) == 1 else labels,
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
  names = hf.get('id2label') or {}
  count = len(names) or hf.size('num_labels', 2)
  labels = tuple(names.get(str(i), f'LABEL_{i}') for i in range(count))
  if len(set(labels)) < count or not all(isinstance(name, str) for name in labels):
    raise UserError(f'config.json: id2label={names!r} must have one name for each class from 0')
  return labels
