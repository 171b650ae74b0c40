"""Encoder-decoder families: T5, BART, Marian and mBART."""

from collections.abc import Mapping
from typing import Any

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
  same,
)


def t5(hf: Reader) -> Family:
  """T5 1.0 and 1.1 (Raffel et al. 2020). Scores are not divided by the square root of head_dim."""
  tied = bool(hf.get('tie_word_embeddings', True))
  scaled = bool(hf.get('scale_decoder_outputs', tied))
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
  context = hf.size('n_positions', 512)
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
      'norm': import_path('lm.nn.layers:RMSNorm', epsilon=hf.get('layer_norm_epsilon', 1e-6)),
      'mlp': import_path(mlp, activation=activation),
      'bias': False,
      'dropout': float(hf.get('dropout_rate', 0.1)),
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
  ups = ('gate', 'up') if 'Gated' in mlp else ('up',)
  stored = ('wi_0', 'wi_1') if 'Gated' in mlp else ('wi',)

  def stack(name: str, depth: int) -> list[Entry]:
    def names(layer: str) -> list[str]:
      return [f'{layer}.{part}' for part in 'qkvo']

    rows: list[Row] = [
      ('attention_norm/scale', same(D), ('layer.0.layer_norm.weight',)),
      *attention_rows('attention', names('layer.0.SelfAttention'), D, H, H, K, False, False),
    ]
    if name == 'decoder':
      across = names('layer.1.EncDecAttention')
      rows += [
        ('cross_attention_norm/scale', same(D), ('layer.1.layer_norm.weight',)),
        *cross_attention_rows('cross_attention', across, D, H, K, False),
      ]
    last = 'layer.2' if name == 'decoder' else 'layer.1'
    rows.append(('mlp_norm/scale', same(D), (f'{last}.layer_norm.weight',)))
    for here, there in zip(ups, stored, strict=True):
      rows += linear_rows(f'mlp/{here}', f'{last}.DenseReluDense.{there}', D, F, False)
    rows += linear_rows('mlp/down', f'{last}.DenseReluDense.wo', F, D, False)
    bias = 'block.0.layer.0.SelfAttention.relative_attention_bias.weight'
    outside: list[Row] = [
      (f'{name}/relative', same(buckets, H), (f'{name}.{bias}',)),
      (f'{name}/final_norm/scale', same(D), (f'{name}.final_layer_norm.weight',)),
    ]
    return [*entries_of(outside), *layer_entries(rows, name, f'{name}.block.{{}}.', depth)]

  tables: list[Row] = [('embedding', same(V, D), ('shared.weight',))]
  tied = {'encoder.embed_tokens.weight': 'shared.weight'}
  entries = stack('encoder', depths[0])
  if kind != 'EncoderModel':
    entries += stack('decoder', depths[1])
    tied['decoder.embed_tokens.weight'] = 'shared.weight'
  if kind == 'ForConditionalGeneration' and separate:
    tables.append(('unembedding', same(V, D), ('lm_head.weight',)))
  elif kind == 'ForConditionalGeneration':
    tied['lm_head.weight'] = 'shared.weight'
  return Family(
    model,
    (*entries_of(tables), *entries),
    '',
    tied=tied,
    # Files of the first releases have a bias of cross-attention, which no code reads.
    unused=r'decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.',
    **_generation(hf, kind, model, hf.get('pad_token_id', 0)),
  )


def _kind(hf: Reader, prefix: str, kinds: tuple[str, ...]) -> str:
  """Returns the kind of the head: the first of the `architectures` without its prefix."""
  known = [prefix + kind for kind in kinds]
  name = (hf.get('architectures') or known)[0]
  if name not in known:
    raise UserError(
      f'config.json: architectures={name!r} is not supported{did_you_mean(str(name), known)}; '
      f'it must be one of {", ".join(known)}'
    )
  return name.removeprefix(prefix)


def _generation(
  hf: Reader, kind: str, model: ConfigDict, start: int | None
) -> dict[str, Mapping[str, Any]]:
  """Returns the sections `data` and `decode` of a model that generates; {} for another kind.

  Args:
    hf: the config.
    kind: of the head.
    model: the model section.
    start: the default of the key `decoder_start_token_id`.
  """
  start = hf.generation('decoder_start_token_id', start)
  if kind != 'ForConditionalGeneration' or start is None:
    return {}
  first = hf.generation('forced_bos_token_id')
  starts = (start,) if first is None else (start, first)
  banned = hf.generation('bad_words_ids') or ()
  if any(len(ids) > 1 for ids in banned):
    raise UserError(f'bad_words_ids={banned!r}: words of several tokens are not supported')
  forbidden = tuple(ids[0] for ids in banned)
  for token in (*starts, *forbidden):
    if not isinstance(token, int) or not 0 <= token < model.vocab_size:
      raise UserError(f'config.json: token {token!r} is not in the vocabulary')
  framing = f"start={starts!r}, special_tokens='template'"
  data = {
    'task': 'lm.tasks.text:text_to_text',
    'converter': f'lm.tasks.seq2seq:encoder_decoder({framing})',
    'source_len': model.context,
  }
  return {'data': data, 'decode': {'forbidden': forbidden} if forbidden else {}}
