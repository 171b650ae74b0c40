"""The config.json of encoders: the inverse of `lm.pretrained.encoders`, checked by it."""

from typing import Any

from lm.pretrained.section import Section


def bert(model: Section) -> dict[str, Any]:
  """BERT."""
  return {'architectures': [f'Bert{_kind(model)}'], **_bert_body(model), **_classes(model)}


def roberta(model: Section) -> dict[str, Any]:
  """RoBERTa. The first position has the row after that of the padding token."""
  offset = model.argument('position', 'offset') or 0
  return {
    'architectures': [f'Roberta{_kind(model)}'],
    **_bert_body(model, offset),
    **_classes(model),
    'pad_token_id': offset - 1,
  }


def electra(model: Section) -> dict[str, Any]:
  """ELECTRA. One logit a token without a task is that of the discriminator."""
  kind = _kind(model)
  if kind == 'ForTokenClassification' and not model.converter and model.name('head') == 'pooled':
    kind = 'ForPreTraining'
  return {
    'architectures': [f'Electra{kind}'],
    **_bert_body(model),
    **({} if kind == 'ForPreTraining' else _classes(model)),
    'embedding_size': model.argument('input_layer', 'width') or model.get('d_model'),
  }


def distilbert(model: Section) -> dict[str, Any]:
  """DistilBERT."""
  return {
    'architectures': [f'DistilBert{_kind(model)}'],
    'vocab_size': model.get('vocab_size'),
    'max_position_embeddings': model.get('context'),
    'dim': model.get('d_model'),
    'n_layers': model.get('depth'),
    'n_heads': model.get('heads'),
    'hidden_dim': model.get('d_mlp'),
    'activation': model.activation(),
    'dropout': model.get('dropout'),
    'attention_dropout': model.attention_dropout(),
    'seq_classif_dropout': model.get('dropout'),
    'qa_dropout': model.get('dropout'),
    'sinusoidal_pos_embds': False,
    'initializer_range': model.get('init_std'),
    'tie_word_embeddings': True,
    **_classes(model),
  }


def modernbert(model: Section) -> dict[str, Any]:
  """ModernBERT; windows and wavelengths have the keys of all versions of transformers."""
  depth, windows = model.get('depth'), model.layers('attention_layer')
  near = [arguments.get('window') is not None for _, arguments in windows]
  types = ['sliding_attention' if x else 'full_attention' for x in near]
  window = next((arguments['window'] for _, arguments in windows if arguments.get('window')), None)
  thetas = {
    kind: of.get('theta') for kind, (_, of) in zip(types, model.layers('position'), strict=True)
  }
  full = [i for i, x in enumerate(near) if not x]
  bias, kind = model.argument('norm', 'bias'), _kind(model)
  of_head = model.name('head') in ('masked', 'transformed')
  pooling = {'first': 'cls', 'mean': 'mean'}.get(model.name('pooling'))
  return {
    'architectures': [f'ModernBert{kind}'],
    'vocab_size': model.get('vocab_size'),
    'max_position_embeddings': model.get('context'),
    'hidden_size': model.get('d_model'),
    'num_hidden_layers': depth,
    'num_attention_heads': model.get('heads'),
    'intermediate_size': model.get('d_mlp'),
    'hidden_activation': model.activation(),
    'norm_eps': model.argument('norm', 'epsilon'),
    'norm_bias': bias,
    'attention_bias': bias,
    'mlp_bias': bias,
    'layer_types': types,
    'global_attn_every_n_layers': [*full, depth][1] if full else None,
    'rope_parameters': {
      kind: {'rope_type': 'default', 'rope_theta': theta} for kind, theta in thetas.items()
    },
    'global_rope_theta': thetas.get('full_attention'),
    'local_rope_theta': thetas.get('sliding_attention'),
    **({} if window is None else {'local_attention': 2 * (window - 1)}),
    **({'classifier_activation': model.activation('head')} if of_head else {}),
    **({'classifier_bias': model.argument('head', 'bias')} if of_head else {}),
    **({} if pooling is None else {'classifier_pooling': pooling}),
    'decoder_bias': True,
    'attention_dropout': model.attention_dropout(),
    'embedding_dropout': model.get('dropout'),
    'mlp_dropout': model.get('dropout'),
    'classifier_dropout': model.get('dropout'),
    'initializer_range': model.get('init_std'),
    'tie_word_embeddings': True,
    **_classes(model),
  }


def _bert_body(model: Section, offset: int = 0) -> dict[str, Any]:
  """Returns the keys that BERT and its relatives share; `offset` rows precede the positions."""
  context = model.get('context')
  return {
    'vocab_size': model.get('vocab_size'),
    'max_position_embeddings': None if context is None else context + offset,
    'type_vocab_size': model.argument('input_layer', 'types'),
    'hidden_size': model.get('d_model'),
    'num_hidden_layers': model.get('depth'),
    'num_attention_heads': model.get('heads'),
    'intermediate_size': model.get('d_mlp'),
    'hidden_act': model.activation(),
    'layer_norm_eps': model.argument('norm', 'epsilon'),
    'hidden_dropout_prob': model.get('dropout'),
    'attention_probs_dropout_prob': model.attention_dropout(),
    'initializer_range': model.get('init_std'),
    'tie_word_embeddings': True,
  }


def _kind(model: Section) -> str:
  """Returns the ending of the name of the architecture, which names the head."""
  head = model.name('head')
  if head in ('none', 'pooler'):
    return 'Model'
  if head == 'masked':
    return 'ForMaskedLM'
  if model.get('pooling') is not None:
    return 'ForSequenceClassification'
  is_span = model.converter == 'converter'  # that of lm.tasks.extractive_qa
  return 'ForQuestionAnswering' if is_span else 'ForTokenClassification'


def _classes(model: Section) -> dict[str, Any]:
  """Returns the keys of the classes of a head; none for a head without classes."""
  count, kind = model.get('num_classes'), _kind(model)
  if count is None or kind == 'ForQuestionAnswering':
    return {}
  names = model.labels or tuple(f'LABEL_{i}' for i in range(count))
  found: dict[str, Any] = {
    'id2label': {str(i): name for i, name in enumerate(names)},
    'label2id': {name: i for i, name in enumerate(names)},
  }
  if kind == 'ForSequenceClassification':
    single = 'regression' if count == 1 else 'single_label_classification'
    several = model.converter == 'multilabel'
    found['problem_type'] = 'multi_label_classification' if several else single
  return found
