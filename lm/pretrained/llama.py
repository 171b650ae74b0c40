"""Llama and its relatives: Mistral, Qwen and Gemma."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from lm.config import base
from lm.errors import UserError
from lm.pretrained.family import ACTIVATIONS, Family, Reader, import_path
from lm.pretrained.layout import (
  Row,
  attention_rows,
  entries_of,
  layer_entries,
  linear_rows,
  same,
)
from lm.pretrained.rotary import rope, scheme

_FULL, _SLIDING = 'full_attention', 'sliding_attention'
_PRE_NORMS = MappingProxyType(
  {'attention_norm': 'input_layernorm', 'mlp_norm': 'post_attention_layernorm'}
)
_SANDWICH_NORMS = {
  'attention_norm': 'input_layernorm',
  'attention_post_norm': 'post_attention_layernorm',
  'mlp_norm': 'pre_feedforward_layernorm',
  'mlp_post_norm': 'post_feedforward_layernorm',
}


class Biases(NamedTuple):
  """Which layers of a relative of Llama have biases."""

  qkv: bool = False
  out: bool = False
  mlp: bool = False


_NO_BIASES = Biases()


def llama(hf: Reader) -> Family:
  """Llama 1 to 3 (Touvron et al. 2023)."""
  hf.only(pretraining_tp=1, layer_types=None)
  attention = hf.flag('attention_bias')
  biases = Biases(qkv=attention, out=attention, mlp=hf.flag('mlp_bias'))
  return _llama(hf, [{}] * hf.size('num_hidden_layers'), biases=biases)


def mistral(hf: Reader) -> Family:
  """Mistral (Jiang et al. 2023): Llama with a window."""
  hf.only(layer_types=None)
  hf = hf.with_defaults(sliding_window=4096, num_key_value_heads=8)
  layer = {} if hf.get('sliding_window') is None else {'window': hf.size('sliding_window')}
  return _llama(hf, [layer] * hf.size('num_hidden_layers'))


def qwen2(hf: Reader) -> Family:
  """Qwen 2 and 2.5: Llama with biases of queries, keys and values."""
  return _llama(hf, _qwen_layers(hf), biases=Biases(qkv=True))


def qwen3(hf: Reader) -> Family:
  """Qwen 3: Llama with normalized queries and keys."""
  norm = import_path('lm.nn.layers:RMSNorm', epsilon=hf.positive('rms_norm_eps', 1e-6))
  layers = [{**layer, 'qk_norm': norm} for layer in _qwen_layers(hf)]
  attention = hf.flag('attention_bias')
  return _llama(hf.with_defaults(head_dim=128), layers, biases=Biases(attention, attention))


def _qwen_layers(hf: Reader) -> list[dict[str, Any]]:
  """Returns the arguments of attention of each layer: the first ones may lack the window."""
  N, hf = hf.size('num_hidden_layers'), hf.with_defaults(sliding_window=4096)
  windows, first = hf.flag('use_sliding_window'), hf.get('max_window_layers', 28)
  if not isinstance(first, int):
    raise UserError(f'config.json: max_window_layers={first!r} must be an integer')
  used = windows and hf.get('sliding_window') is not None
  types = [_SLIDING if used and i >= first else _FULL for i in range(N)]
  return [{'window': window} for window in _windows(hf, types, used)]


def gemma(hf: Reader) -> Family:
  """Gemma 1 (Gemma Team 2024a)."""
  hf = hf.with_defaults(
    hidden_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=16,
    intermediate_size=24576,
    vocab_size=256000,
    max_position_embeddings=8192,
    hidden_act='gelu_pytorch_tanh',
  )
  hf.only(layer_types=None, hidden_activation='gelu_pytorch_tanh')
  # The first releases say gelu, and their code computes its tanh form.
  activation = hf.one_of('hidden_act', {**ACTIVATIONS, 'gelu': 'lm.nn.layers:gelu'}, '')
  return _gemma(hf, [{}] * hf.size('num_hidden_layers'), _PRE_NORMS, activation, [rope(hf)])


_GEMMA_2 = {
  'hidden_size': 2304,
  'num_hidden_layers': 26,
  'num_attention_heads': 8,
  'num_key_value_heads': 4,
  'intermediate_size': 9216,
  'vocab_size': 256000,
  'max_position_embeddings': 8192,
  'sliding_window': 4096,
  'final_logit_softcapping': 30.0,
  'attn_logit_softcapping': 50.0,
}
_GEMMA_3 = {
  **_GEMMA_2,
  'vocab_size': 262208,
  'max_position_embeddings': 131072,
  'final_logit_softcapping': None,
  'attn_logit_softcapping': None,
}


def gemma2(hf: Reader) -> Family:
  """Gemma 2 (Gemma Team 2024b): soft caps, norms around sublayers, every other layer a window."""
  hf = hf.with_defaults(**_GEMMA_2)
  types = [_FULL if i % 2 else _SLIDING for i in range(hf.size('num_hidden_layers'))]
  layers = [{'window': window} for window in _windows(hf, types)]
  return _gemma(hf, layers, _SANDWICH_NORMS, _gemma_activation(hf), [rope(hf)])


def gemma3_text(hf: Reader) -> Family:
  """Gemma 3 (Gemma Team 2025): normalized queries and keys, two kinds of rotary positions."""
  hf.only(attn_logit_softcapping=None)  # which transformers ignores
  hf = hf.with_defaults(**_GEMMA_3)
  each = hf.size('sliding_window_pattern', 6)
  N = hf.size('num_hidden_layers')
  windows = _windows(hf, [_SLIDING if (i + 1) % each else _FULL for i in range(N)])
  norm = import_path('lm.nn.layers:ShiftedRMSNorm', epsilon=hf.positive('rms_norm_eps', 1e-6))
  nested = hf.mapping('rope_parameters')
  if unknown := nested.keys() - {_FULL, _SLIDING}:
    raise UserError(f'config.json: rope_parameters has {min(unknown)!r} among the types of layers')
  context = hf.size('max_position_embeddings')
  # Only layers without a window are scaled.
  of_layers = hf.section('rope_parameters')
  full = {**of_layers.mapping(_FULL), **hf.mapping('rope_scaling')}
  far = scheme(full, hf.get('rope_theta', 1e6), context)
  near = scheme(of_layers.mapping(_SLIDING), hf.get('rope_local_base_freq', 10000.0), context)
  return _gemma(
    hf,
    [{'window': window, 'qk_norm': norm} for window in windows],
    _SANDWICH_NORMS,
    _gemma_activation(hf),
    [far if window is None else near for window in windows],
  )


def gemma3(hf: Reader) -> Family:
  """The text model of a Gemma 3 for images and texts, if the checkpoint has no other tensors."""
  if hf.has_tensor_of('vision_tower') or hf.has_tensor_of('multi_modal_projector'):
    raise UserError(
      "config.json: model_type='gemma3' with a vision tower is not supported; "
      'save its language model alone (Gemma3ForCausalLM)'
    )
  renamed = {
    'model.language_model.lm_head.': 'lm_head.',
    'model.language_model.model.': 'model.',
    'model.language_model.': 'model.',
  }
  return gemma3_text(hf.section('text_config'))._replace(renamed=renamed)


def _gemma_activation(hf: Reader) -> str:
  return hf.one_of('hidden_activation', ACTIVATIONS, 'gelu_pytorch_tanh')


def _gemma(
  hf: Reader,
  layers: Sequence[Mapping[str, Any]],
  norms: Mapping[str, str],
  activation: str,
  positions: Sequence[str],
) -> Family:
  """Returns a Gemma: Llama with scaled embeddings and norms of 1 + w."""
  hf.only(use_bidirectional_attention=False)
  hf = hf.with_defaults(tie_word_embeddings=True, head_dim=256)
  K, D = hf.size('head_dim'), hf.size('hidden_size')
  divisor = hf.positive('query_pre_attn_scalar', 256 if norms is _SANDWICH_NORMS else K)
  attention_fn, cap = 'lm.nn.attention:fused', hf.get('attn_logit_softcapping')
  if cap is not None:
    cap = hf.positive('attn_logit_softcapping', cap)
    attention_fn = import_path('lm.nn.attention:blockwise', cap=cap)
  biases = Biases(qkv=hf.flag('attention_bias'), out=hf.flag('attention_bias'))
  family = _llama(
    hf,
    [{'scale': None if divisor == K else divisor**-0.5, **layer} for layer in layers],
    positions,
    biases,
    'lm.nn.layers:ShiftedRMSNorm',
    norms,
    activation,
  )
  cap = hf.get('final_logit_softcapping')
  with family.model.unlocked():
    family.model.update({
      'attention_fn': attention_fn,
      'embed_scale': D**0.5,
      'logit_soft_cap': None if cap is None else float(hf.positive('final_logit_softcapping', cap)),
    })  # fmt: skip
    if norms is _SANDWICH_NORMS:
      family.model.block_layout = 'lm.nn.layers:sandwich_norm'
  return family


def _llama(
  hf: Reader,
  layers: Sequence[Mapping[str, Any]],
  positions: Sequence[str] = (),
  biases: Biases = _NO_BIASES,
  norm: str = 'lm.nn.layers:RMSNorm',
  norms: Mapping[str, str] = _PRE_NORMS,
  activation: str | None = None,
) -> Family:
  """Returns a relative of Llama.

  Args:
    hf: the config.
    layers: arguments of `lm.nn.layers:Attention`, of each layer.
    positions: the scheme of each layer, or one for all; none for what `rope` reads.
    biases: which layers have them.
    norm: the path of norms.
    norms: the names of the norms of a layer, here and there.
    activation: the path of the activation; None for that of the key `hidden_act`.
  """
  hf.only(is_causal=True)
  D, N, H, F = (
    hf.size(key)
    for key in ('hidden_size', 'num_hidden_layers', 'num_attention_heads', 'intermediate_size')
  )
  G, V, T = (
    hf.size('num_key_value_heads', H),
    hf.size('vocab_size'),
    hf.size('max_position_embeddings'),
  )
  K = hf.size('head_dim', D // H)
  tied, epsilon = hf.flag('tie_word_embeddings'), hf.positive('rms_norm_eps', 1e-6)
  activation = activation or hf.one_of('hidden_act', ACTIVATIONS, 'silu')
  # The field `bias` is that of the feed-forward layer; attention has the same unless a key differs.
  own = {'qkv_bias': biases.qkv, 'out_bias': biases.out}
  own = {name: value for name, value in own.items() if value != biases.mlp}
  paths = [import_path('lm.nn.layers:Attention', **layer, **own) for layer in layers]
  positions = list(positions) or [rope(hf)]
  positions = positions * (N if len(positions) == 1 else 1)
  pattern = _period(list(zip(paths, positions, strict=True)))
  attention_layer, position = zip(*pattern, strict=True)
  model = base.llama(depth=N, d_model=D, heads=H, kv_heads=G, d_mlp=F, context=T)
  with model.unlocked(), model.ignore_type():
    model.update({
      'vocab_size': V,
      'head_dim': K,
      'attention_layer': attention_layer if len(pattern) > 1 else attention_layer[0],
      'position': position if len(set(position)) > 1 else position[0],
      'norm': import_path(norm, epsilon=epsilon),
      'mlp': import_path('lm.nn.layers:GatedMlp', activation=activation),
      'bias': biases.mlp,
      'tie_embeddings': tied,
    })  # fmt: skip
  names = [f'self_attn.{part}_proj' for part in 'qkvo']
  rows: list[Row] = [
    *((f'{here}/scale', same(D), (f'{there}.weight',)) for here, there in norms.items()),
    *attention_rows('attention', names, D, H, G, K, biases.qkv, biases.out),
    *linear_rows('mlp/gate', 'mlp.gate_proj', D, F, biases.mlp),
    *linear_rows('mlp/up', 'mlp.up_proj', D, F, biases.mlp),
    *linear_rows('mlp/down', 'mlp.down_proj', F, D, biases.mlp),
  ]
  if 'qk_norm' in layers[0]:
    for part in 'qk':
      rows.append((f'attention/{part}_norm/scale', same(K), (f'self_attn.{part}_norm.weight',)))
  outside: list[Row] = [
    ('embedding', same(V, D), ('model.embed_tokens.weight',)),
    ('decoder/final_norm/scale', same(D), ('model.norm.weight',)),
    ('unembedding', same(V, D), ('lm_head.weight',)),
  ]
  entries = entries_of(outside[: 2 if tied else 3])
  entries += layer_entries(rows, 'decoder', 'model.layers.{}.', N, len(pattern))
  copies = {'lm_head.weight': 'model.embed_tokens.weight'} if tied else {}
  # Old files have the frequencies of rotary positions.
  unused = r'.*\.self_attn\.rotary_emb\.inv_freq$'
  return Family(model, tuple(entries), 'model.', tied=copies, unused=unused)


def _period(layers: list[Any]) -> list[Any]:
  """Returns the shortest start of a list that, repeated, is the list."""
  N = len(layers)
  return next(layers[:n] for n in range(1, N + 1) if N % n == 0 and layers[:n] * (N // n) == layers)


def _windows(hf: Reader, types: Sequence[str], used: bool = True) -> list[int | None]:
  """Returns the window of each layer, or None.

  Args:
    hf: the config; its `layer_types` are those of the layers.
    types: without `layer_types`.
    used: whether `sliding_window` counts.

  Raises:
    UserError: `layer_types` is not understood, or a layer lacks its window.
  """
  count, types = len(types), hf.get('layer_types', types)
  if not isinstance(types, Sequence) or len(types) != count or set(types) - {_FULL, _SLIDING}:
    raise UserError(
      f'config.json: layer_types={types!r} is not supported; it must have {_FULL} or {_SLIDING} '
      f'for each of {count} layers'
    )
  if _SLIDING not in types:
    return [None] * count
  if not used:
    raise UserError(f'config.json: layer_types has {_SLIDING}, but use_sliding_window is false')
  window = hf.size('sliding_window')
  return [window if kind == _SLIDING else None for kind in types]
