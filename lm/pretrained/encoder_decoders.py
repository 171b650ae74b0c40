"""Encoder-decoder families: T5, BART, Marian, mBART and PEGASUS."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lm.config import base
from lm.errors import UserError, did_you_mean
from lm.pretrained.family import ACTIVATIONS, Family, Reader, import_path
from lm.pretrained.layout import (
  Entry,
  Row,
  attention_rows,
  cross_attention_rows,
  entries_of,
  layer_entries,
  linear_rows,
  norm_rows,
  reshaped,
  same,
)

STARTS = 'decoder_start_token_id', 'forced_bos_token_id'  # keys of the tokens before a target


def t5(hf: Reader) -> Family:
  """T5 1.0 and 1.1 (Raffel et al. 2020). Scores are not divided by the square root of head_dim."""
  tied = hf.flag('tie_word_embeddings', True)
  scaled = hf.flag('scale_decoder_outputs', tied)  # a key of transformers 5
  separate = not (tied and scaled) and hf.has_tensor('lm_head.weight')
  return _t5(hf, 'T5', 'relu', scaled, separate)


def mt5(hf: Reader) -> Family:
  """mT5 (Xue et al. 2021): T5 1.1 in 101 languages."""
  return _t5(hf, 'MT5', 'gated-gelu', False, hf.has_tensor('lm_head.weight'))


def _t5(hf: Reader, prefix: str, feed_forward: str, scaled: bool, separate: bool) -> Family:
  """Returns a T5.

  Args:
    hf: the config.
    prefix: of the names of its architectures.
    feed_forward: the default of the key `feed_forward_proj`.
    scaled: whether hidden states are divided by sqrt(D) before the logits.
    separate: whether the output has a table of its own.
  """
  hf.only(is_decoder=False)
  D, H, K, F, V = (hf.size(key) for key in ('d_model', 'num_heads', 'd_kv', 'd_ff', 'vocab_size'))
  depths = hf.size('num_layers'), hf.size('num_decoder_layers', hf.size('num_layers'))
  buckets = hf.size('relative_attention_num_buckets', 32)
  kind = _kind(hf, prefix, ('ForConditionalGeneration', 'Model', 'EncoderModel'))
  plain = {name: ('lm.nn.layers:Mlp', path) for name, path in ACTIVATIONS.items()}
  gated = {f'gated-{name}': ('lm.nn.layers:GatedMlp', path) for name, path in ACTIVATIONS.items()}
  gated['gated-gelu'] = gated['gated-gelu_new']
  mlp, activation = hf.one_of('feed_forward_proj', plain | gated, feed_forward)
  context, epsilon = hf.size('n_positions', 512), hf.not_negative('layer_norm_epsilon', 1e-6)
  make = base.encoder if kind == 'EncoderModel' else base.encoder_decoder
  model = make(depth=depths[0], d_model=D, heads=H, context=context)
  attention = import_path('lm.nn.layers:Attention', scale=1.0)
  with model.unlocked():
    model.update({
      'vocab_size': V,
      'head_dim': K,
      'd_mlp': F,
      'attention_layer': attention,
      'position': import_path(
        'lm.nn.position:relative',
        buckets=buckets,
        max_distance=hf.size('relative_attention_max_distance', 128),
      ),
      'norm': import_path('lm.nn.layers:RMSNorm', epsilon=epsilon),
      'mlp': import_path(mlp, activation=activation),
      'bias': False,
      'dropout': hf.rate('dropout_rate', 0.1),
      'embed_scale': 1.0,
    })  # fmt: skip
    if kind == 'EncoderModel':
      model.pooling = None
    else:
      model.update({'depth': depths[1], 'encoder_depth': depths[0], 'cross_attention': attention})
    if kind != 'ForConditionalGeneration':
      model.head = 'lm.nn.heads:none'
    elif scaled:
      model.head = import_path('lm.nn.heads:scaled', by=D**-0.5)
    model.tie_embeddings = not separate
  tables: list[Row] = [('embedding', same(V, D), ('shared.weight',))]
  tied = {'encoder.embed_tokens.weight': 'shared.weight'}
  entries = _t5_stack('encoder', model, depths[0], buckets)
  if kind != 'EncoderModel':
    entries += _t5_stack('decoder', model, depths[1], buckets)
    tied['decoder.embed_tokens.weight'] = 'shared.weight'
  if kind == 'ForConditionalGeneration' and separate:
    tables.append(('unembedding', same(V, D), ('lm_head.weight',)))
  elif kind == 'ForConditionalGeneration':
    tied['lm_head.weight'] = 'shared.weight'
  data, decode = _generation(hf, kind, model, hf.get('pad_token_id', 0))
  return Family(
    model,
    (*entries_of(tables), *entries),
    '',
    tied=tied,
    # Files of the first releases have a bias of cross-attention, which no code reads.
    unused=r'decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.',
    data=data,
    decode=decode,
  )


def _t5_stack(name: str, model: ConfigDict, depth: int, buckets: int) -> list[Entry]:
  """Returns the entries of a stack of T5, 'encoder' or 'decoder'."""
  D, H, K, F = model.d_model, model.heads, model.head_dim, model.d_mlp
  is_gated, is_decoder = 'Gated' in model.mlp, name == 'decoder'
  ups = {'gate': 'wi_0', 'up': 'wi_1'} if is_gated else {'up': 'wi'}
  last = 'layer.2' if is_decoder else 'layer.1'

  def names(layer: str) -> list[str]:
    return [f'{layer}.{part}' for part in 'qkvo']

  rows: list[Row] = [
    ('attention_norm/scale', same(D), ('layer.0.layer_norm.weight',)),
    *attention_rows('attention', names('layer.0.SelfAttention'), D, H, H, K, False, False),
  ]
  if is_decoder:
    across = names('layer.1.EncDecAttention')
    rows += [
      ('cross_attention_norm/scale', same(D), ('layer.1.layer_norm.weight',)),
      *cross_attention_rows('cross_attention', across, D, H, K, False),
    ]
  rows.append(('mlp_norm/scale', same(D), (f'{last}.layer_norm.weight',)))
  for here, there in ups.items():
    rows += linear_rows(f'mlp/{here}', f'{last}.DenseReluDense.{there}', D, F, False)
  rows += linear_rows('mlp/down', f'{last}.DenseReluDense.wo', F, D, False)
  bias = 'block.0.layer.0.SelfAttention.relative_attention_bias.weight'
  outside: list[Row] = [
    (f'{name}/relative', same(buckets, H), (f'{name}.{bias}',)),
    (f'{name}/final_norm/scale', same(D), (f'{name}.final_layer_norm.weight',)),
  ]
  return [*entries_of(outside), *layer_entries(rows, name, f'{name}.block.{{}}.', depth)]


def bart(hf: Reader) -> Family:
  """BART (Lewis et al. 2020)."""
  hf.only(normalize_before=False, normalize_embedding=True, add_final_layer_norm=False)
  return _bart(hf, 'Bart', start=2)


def mbart(hf: Reader) -> Family:
  """mBART (Liu et al. 2020): BART with pre-norm and final norms, in many languages.

  A token of the target language starts the decoder; many checkpoints name none.
  """
  hf.only(normalize_before=True, normalize_embedding=True, add_final_layer_norm=True)
  return _bart(hf, 'MBart', pre_norm=True)


def marian(hf: Reader) -> Family:
  """Marian (Junczys-Dowmunt et al. 2018), as in the models of OPUS-MT."""
  hf.only(normalize_before=False, normalize_embedding=False, add_final_layer_norm=False)
  hf.only(static_position_embeddings=True, share_encoder_decoder_embeddings=True)
  return _with_sines(_bart(hf, 'Marian', learned=False, start=hf.get('pad_token_id', 58100)))


def pegasus(hf: Reader) -> Family:
  """PEGASUS (Zhang et al. 2020): Marian with pre-norm and final norms."""
  hf.only(normalize_before=True, normalize_embedding=False, add_final_layer_norm=True)
  hf.only(static_position_embeddings=True)
  found = _bart(hf, 'Pegasus', pre_norm=True, learned=False, start=0)
  sides = 'encoder', 'decoder'
  return _with_sines(found)._replace(
    stored=tuple(f'model.{side}.embed_positions.weight' for side in sides)
  )


def _with_sines(family: Family) -> Family:
  """Returns the family with sinusoidal positions as its buffers."""
  D, T = family.model.d_model, family.model.context
  angles = np.arange(T)[:, None] / np.power(10000, np.arange(0, D, 2) / D)[None]
  sines = np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)

  def buffers(name: str) -> np.ndarray | None:
    return sines if name.endswith('.embed_positions.weight') else None

  return family._replace(buffers=buffers)


def _bart(
  hf: Reader, prefix: str, pre_norm: bool = False, learned: bool = True, start: int | None = None
) -> Family:
  """Returns a relative of BART.

  Args:
    hf: the config.
    prefix: of the names of its architectures.
    pre_norm: whether norms are before sublayers and after each stack.
    learned: whether positions are learned, with a norm after the embeddings.
    start: the default of the key `decoder_start_token_id`.
  """
  hf.only(is_decoder=False, tie_word_embeddings=True)
  heads = 'MTModel' if prefix == 'Marian' else 'ForConditionalGeneration'
  kind = _kind(hf, prefix, (heads, 'Model')).replace('MTModel', 'ForConditionalGeneration')
  D, V, T = hf.size('d_model'), hf.size('vocab_size'), hf.size('max_position_embeddings', 1024)
  depths = hf.size('encoder_layers', 12), hf.size('decoder_layers', 12)
  H, F = hf.size('encoder_attention_heads', 16), hf.size('encoder_ffn_dim', 4096)
  for key, size in (('attention_heads', H), ('ffn_dim', F)):
    if hf.size(f'decoder_{key}', size) != size:
      raise UserError(
        f'config.json: decoder_{key}={hf.get(f"decoder_{key}")} is not supported; '
        f'it must be encoder_{key}={size}'
      )
  if D % H:
    raise UserError(f'config.json: d_model={D} is not a multiple of encoder_attention_heads={H}')
  K = D // H
  activation = hf.one_of('activation_function', ACTIVATIONS, 'gelu')
  model = base.encoder_decoder(depth=depths[1], d_model=D, heads=H, context=T)
  with model.unlocked():
    model.update({
      'vocab_size': V,
      'd_mlp': F,
      'encoder_depth': depths[0],
      'mlp': import_path('lm.nn.layers:Mlp', activation=activation),
      'block_layout': f'lm.nn.layers:{"pre" if pre_norm else "post"}_norm',
      'final_norm': pre_norm,
      'dropout': hf.rate('dropout', 0.1),
      'embed_scale': D**0.5 if hf.flag('scale_embedding') else 1.0,
    })  # fmt: skip
    if learned:
      model.position = import_path('lm.nn.position:learned', offset=2)
      model.input_layer = import_path('lm.nn.embedding:normed', norm='lm.nn.layers:LayerNorm')
  has_bias = kind == 'ForConditionalGeneration' and hf.has_tensor('final_logits_bias')
  if has_bias or kind == 'Model':
    model.head = 'lm.nn.heads:biased' if has_bias else 'lm.nn.heads:none'

  def stack(name: str, depth: int) -> list[Entry]:
    def names(attention: str) -> list[str]:
      return [f'{attention}.{part}_proj' for part in ('q', 'k', 'v', 'out')]

    rows = attention_rows('attention', names('self_attn'), D, H, H, K, True, True)
    rows += norm_rows('attention_norm', 'self_attn_layer_norm', D)
    if name == 'decoder':
      rows += cross_attention_rows('cross_attention', names('encoder_attn'), D, H, K, True)
      rows += norm_rows('cross_attention_norm', 'encoder_attn_layer_norm', D)
    rows += linear_rows('mlp/up', 'fc1', D, F) + linear_rows('mlp/down', 'fc2', F, D)
    rows += norm_rows('mlp_norm', 'final_layer_norm', D)
    outside: list[Row] = []
    if learned:
      outside.append(('position', same(T + 2, D), ('embed_positions.weight',)))
      outside += norm_rows('embedding_norm', 'layernorm_embedding', D)
    if pre_norm:
      outside += norm_rows('final_norm', 'layer_norm', D)
    layers = layer_entries(rows, name, f'model.{name}.layers.{{}}.', depth)
    return [*entries_of(outside, f'{name}/', f'model.{name}.'), *layers]

  tables: list[Row] = [('embedding', same(V, D), ('model.shared.weight',))]
  if has_bias:
    tables.append(('head_bias', reshaped((1, V), (V,)), ('final_logits_bias',)))
  copies = ('model.encoder.embed_tokens', 'model.decoder.embed_tokens', 'lm_head')
  data, decode = _generation(hf, kind, model, start)
  return Family(
    model,
    (*entries_of(tables), *stack('encoder', depths[0]), *stack('decoder', depths[1])),
    'model.',
    tied={f'{name}.weight': 'model.shared.weight' for name in copies},
    unused=r'model\.(encoder|decoder)\.version$',
    data=data,
    decode=decode,
  )


def _kind(hf: Reader, prefix: str, kinds: tuple[str, ...]) -> str:
  """Returns the kind of the head: the first of the `architectures` without its prefix."""
  known = [prefix + kind for kind in kinds]
  name = hf.strings('architectures', known)[0]
  if name not in known:
    raise UserError(
      f'config.json: architectures={name!r} is not supported{did_you_mean(name, known)}; '
      f'it must be one of {", ".join(known)}'
    )
  return name.removeprefix(prefix)


def _generation(
  hf: Reader, kind: str, model: ConfigDict, start: int | None
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns values of the sections `data` and `decode`; a task only for a model that generates.

  Args:
    hf: the config.
    kind: of the head.
    model: the model section.
    start: the default of the key `decoder_start_token_id`.
  """
  start = hf.generation('decoder_start_token_id', start)
  data: dict[str, Any] = {} if kind == 'EncoderModel' else {'source_len': model.context}
  if kind != 'ForConditionalGeneration' or start is None:
    return data, {}

  def token(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < model.vocab_size:
      raise UserError(f'config.json: {key}={value!r} must be a token below {model.vocab_size}')
    return value

  first, words = hf.generation('forced_bos_token_id'), hf.generation('bad_words_ids', [])
  if first is None and not hf.has_generation and hf.flag('force_bos_token_to_be_generated'):
    first = hf.get('bos_token_id')  # of the first releases of BART
  starts: tuple[int, ...] = (token('decoder_start_token_id', start),)
  if first is not None:
    starts += (token('forced_bos_token_id', first),)
  if not isinstance(words, list) or not all(isinstance(w, list) and len(w) == 1 for w in words):
    raise UserError(f'config.json: bad_words_ids={words!r:.60} must be lists of one token each')
  forbidden = tuple(token('bad_words_ids', word[0]) for word in words)
  framing = f"start={starts!r}, special_tokens='template'"
  data['task'] = 'lm.tasks.text:text_to_text'
  data['converter'] = f'lm.tasks.seq2seq:encoder_decoder({framing})'
  return data, {'forbidden': forbidden}
