"""The config.json of encoder-decoders: the inverse of `lm.pretrained.encoder_decoders`."""

from typing import Any

from lm.pretrained.encoder_decoders import STARTS
from lm.pretrained.section import Section

_HEAD = 'ForConditionalGeneration'


def bart(model: Section) -> dict[str, Any]:
  """BART."""
  return _bart(model, 'Bart')


def mbart(model: Section) -> dict[str, Any]:
  """MBART."""
  return _bart(model, 'MBart')


def marian(model: Section) -> dict[str, Any]:
  """Marian."""
  return _bart(model, 'Marian', 'MTModel')


def pegasus(model: Section) -> dict[str, Any]:
  """PEGASUS."""
  return _bart(model, 'Pegasus')


def _bart(model: Section, prefix: str, of_texts: str = _HEAD) -> dict[str, Any]:
  """Returns the keys that BART and its relatives share; their models differ without a key.

  Args:
    model: the section.
    prefix: of the names of the architectures.
    of_texts: the ending of that with logits.
  """
  sides = {'attention_heads': model.get('heads'), 'ffn_dim': model.get('d_mlp')}
  return {
    'architectures': [prefix + ('Model' if model.name('head') == 'none' else of_texts)],
    'vocab_size': model.get('vocab_size'),
    'max_position_embeddings': model.get('context'),
    'd_model': model.get('d_model'),
    'encoder_layers': model.get('encoder_depth'),
    'decoder_layers': model.get('depth'),
    **{f'{side}_{key}': x for side in ('encoder', 'decoder') for key, x in sides.items()},
    'activation_function': model.activation(),
    'scale_embedding': model.get('embed_scale') != 1,
    'dropout': model.get('dropout'),
    'attention_dropout': model.attention_dropout(),
    'activation_dropout': 0.0,
    'init_std': model.get('init_std'),
    'tie_word_embeddings': True,
    **_start(model),
  }


def t5(model: Section) -> dict[str, Any]:
  """T5. Its key of tied embeddings says whether hidden states are divided by sqrt(D)."""
  is_encoder, head = model.name('fn') == 'Encoder', model.name('head')
  bare = 'EncoderModel' if is_encoder else 'Model'
  # With a gate, `gelu` is its tanh form.
  gated = {'gelu_new': 'gelu', 'gelu': 'gelu_python'}
  activation = model.activation()
  if model.name('mlp') == 'GatedMlp':
    activation = f'gated-{gated.get(activation or "", activation)}'
  return {
    'architectures': [f'T5{bare if head == "none" else _HEAD}'],
    'vocab_size': model.get('vocab_size'),
    'n_positions': model.get('context'),
    'd_model': model.get('d_model'),
    'd_kv': model.get('head_dim'),
    'd_ff': model.get('d_mlp'),
    'num_layers': model.get('depth' if is_encoder else 'encoder_depth'),
    'num_decoder_layers': model.get('depth'),
    'num_heads': model.get('heads'),
    'relative_attention_num_buckets': model.argument('position', 'buckets'),
    'relative_attention_max_distance': model.argument('position', 'max_distance'),
    'feed_forward_proj': activation,
    'layer_norm_epsilon': model.argument('norm', 'epsilon'),
    'dropout_rate': model.get('dropout'),
    'tie_word_embeddings': head == 'scaled',
    **({} if is_encoder else _start(model)),
  }


def _start(model: Section) -> dict[str, Any]:
  """Returns the keys of the tokens from which the decoder starts."""
  return {'is_encoder_decoder': True, **dict(zip(STARTS, model.start, strict=False))}
