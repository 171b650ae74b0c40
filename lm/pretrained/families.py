"""Families: the model and the layout of tensors that a config.json describes.

One function per `model_type`. A key that changes the model and is not understood is refused: a
model that is nearly right is worse than none.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from lm.config import base
from lm.errors import UserError, did_you_mean
from lm.pretrained.layout import (
  Entry,
  linear,
  of_one,
  out_kernel,
  qkv_bias,
  qkv_kernel,
  reshaped,
  same,
  transposed,
)


class Family(NamedTuple):
  """A model of a family.

  Attributes:
    model: the model section of the config.
    entries: of all parameters.
    prefix: of most names; checkpoints of the model without its head lack it.
    buffers: `name -> value` of tensors that are no parameters; None for a name that is none.
    tied: the name of the output head, whose tensor is the embedding where a checkpoint has it.
  """

  model: ConfigDict
  entries: tuple[Entry, ...]
  prefix: str
  buffers: Callable[[str], np.ndarray | None]
  tied: str | None = None


class _Reader:
  """Reads the keys of a config.json, and refuses those with a value that is not understood."""

  def __init__(self, values: Mapping[str, Any]):
    self._values = values

  def get(self, key: str, default: Any = None) -> Any:
    """Returns the value of a key, or the default where it is absent or null."""
    value = self._values.get(key)
    return default if value is None else value

  def size(self, key: str, default: int | None = None) -> int:
    """Returns a positive integer."""
    value = self.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
      raise UserError(f'config.json: {key}={value!r} must be a positive integer')
    return value

  def one_of(self, key: str, choices: Mapping[Any, Any], default: Any) -> Any:
    """Returns the choice of a key.

    Raises:
      UserError: the value is none of the choices.
    """
    value = self.get(key, default)
    if value not in choices:
      known = ', '.join(map(repr, choices))
      near = did_you_mean(str(value), choices)
      raise UserError(
        f'config.json: {key}={value!r} is not supported{near}; it must be one of {known}'
      )
    return choices[value]

  def only(self, **values: Any) -> None:
    """Raises UserError where a key has another value than the only one that is supported."""
    for key, value in values.items():
      if self.get(key, value) != value:
        raise UserError(
          f'config.json: {key}={self.get(key)!r} is not supported; it must be {value!r}'
        )


_GELU_TANH, _GELU, _RELU, _SILU = (
  'lm.nn.layers:gelu', 'jax.nn:gelu(approximate=False)', 'jax.nn:relu', 'jax.nn:silu'
)  # fmt: skip
ACTIVATIONS = {
  'gelu_new': _GELU_TANH,
  'gelu_pytorch_tanh': _GELU_TANH,
  'gelu': _GELU,
  'relu': _RELU,
  'silu': _SILU,
  'swish': _SILU,
}


def family_of(config: Mapping[str, Any]) -> Family:
  """Returns the family of a config.json.

  Raises:
    UserError: the family is not known, or a value is not supported.
  """
  kind = config.get('model_type')
  if kind not in FAMILIES:
    known = ', '.join(FAMILIES)
    raise UserError(
      f'config.json: model_type={kind!r} is not supported{did_you_mean(str(kind), FAMILIES)}; '
      f'it must be one of {known}'
    )
  return FAMILIES[kind](_Reader(config))


def _path(function: str, **arguments: Any) -> str:
  given = ', '.join(f'{key}={value!r}' for key, value in arguments.items() if value is not None)
  return f'{function}({given})' if given else function


def _no_buffers(name: str) -> np.ndarray | None:
  del name
  return None


def gpt2(hf: _Reader) -> Family:
  """GPT-2 (Radford et al. 2019). Kernels are stored transposed; q, k and v are one tensor."""
  hf.only(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
  hf.only(add_cross_attention=False, tie_word_embeddings=True)
  D, N, H, T = (hf.size(key) for key in ('n_embd', 'n_layer', 'n_head', 'n_positions'))
  if D % H:
    raise UserError(f'config.json: n_embd={D} is not a multiple of n_head={H}')
  F, V, K = hf.size('n_inner', 4 * D), hf.size('vocab_size'), D // H
  model = base.gpt2(depth=N, d_model=D, heads=H, context=T)
  activation = hf.one_of('activation_function', ACTIVATIONS, 'gelu_new')
  epsilon = hf.get('layer_norm_epsilon', 1e-5)
  with model.unlocked():
    model.update({
      'vocab_size': V,
      'd_mlp': F,
      'norm': _path('lm.nn.layers:LayerNorm', epsilon=epsilon),
      'mlp': _path('lm.nn.layers:Mlp', activation=activation),
      'dropout': float(hf.get('resid_pdrop', 0.1)),
    })  # fmt: skip
  layer, ours, all_layers = 'transformer.h.{}.', 'decoder/layers/layer_0/', tuple(range(N))

  def norm(path: str, name: str) -> list[Entry]:
    pairs = (('scale', 'weight'), ('bias', 'bias'))
    return [
      Entry(f'{ours}{path}/{o}', (f'{layer}{name}.{t}',), same(D), all_layers) for o, t in pairs
    ]

  def of_layers(path: str, name: str, transform: Any) -> Entry:
    return Entry(ours + path, (layer + name,), transform, all_layers)

  entries = [
    Entry('embedding', ('transformer.wte.weight',), same(V, D)),
    Entry('decoder/position', ('transformer.wpe.weight',), same(T, D)),
    *norm('attention_norm', 'ln_1'),
    of_layers(
      'attention/qkv/kernel', 'attn.c_attn.weight', of_one(transposed(qkv_kernel(D, H, H, K)), 1)
    ),
    of_layers('attention/qkv/bias', 'attn.c_attn.bias', of_one(qkv_bias(H, H, K), 0)),
    of_layers('attention/out/kernel', 'attn.c_proj.weight', reshaped((D, D), (H, K, D))),
    of_layers('attention/out/bias', 'attn.c_proj.bias', same(D)),
    *norm('mlp_norm', 'ln_2'),
    of_layers('mlp/up/kernel', 'mlp.c_fc.weight', same(D, F)),
    of_layers('mlp/up/bias', 'mlp.c_fc.bias', same(F)),
    of_layers('mlp/down/kernel', 'mlp.c_proj.weight', same(F, D)),
    of_layers('mlp/down/bias', 'mlp.c_proj.bias', same(D)),
    Entry('decoder/final_norm/scale', ('transformer.ln_f.weight',), same(D)),
    Entry('decoder/final_norm/bias', ('transformer.ln_f.bias',), same(D)),
  ]

  def buffers(name: str) -> np.ndarray | None:
    if name.endswith('.attn.bias'):
      return np.tril(np.ones((T, T)))[None, None]
    return np.array(-1e4) if name.endswith('.attn.masked_bias') else None

  return Family(model, tuple(entries), 'transformer.', buffers, 'lm_head.weight')


def llama(hf: _Reader) -> Family:
  """Llama 1 to 3 (Touvron et al. 2023)."""
  hf.only(attention_bias=False, mlp_bias=False, pretraining_tp=1)
  return _llama(hf, {})


def mistral(hf: _Reader) -> Family:
  """Mistral (Jiang et al. 2023): Llama with a window."""
  return _llama(hf, {'window': hf.get('sliding_window')})


def qwen2(hf: _Reader) -> Family:
  """Qwen 2 and 2.5: Llama with biases of queries, keys and values."""
  hf.only(use_sliding_window=False)
  return _llama(hf, {'qkv_bias': True})


def qwen3(hf: _Reader) -> Family:
  """Qwen 3: Llama with normalized queries and keys."""
  hf.only(use_sliding_window=False, attention_bias=False)
  norm = _path('lm.nn.layers:RMSNorm', epsilon=hf.get('rms_norm_eps', 1e-6))
  return _llama(hf, {'qk_norm': norm}, 128)


def _llama(hf: _Reader, attention: Mapping[str, Any], head_dim: int | None = None) -> Family:
  """Returns a relative of Llama.

  Args:
    hf: the config.
    attention: arguments of `lm.nn.layers:Attention`.
    head_dim: the default of the key `head_dim`; None for hidden_size / num_attention_heads.
  """
  D, N, H, F = (
    hf.size(key)
    for key in ('hidden_size', 'num_hidden_layers', 'num_attention_heads', 'intermediate_size')
  )
  G, V, T = (
    hf.size('num_key_value_heads', H),
    hf.size('vocab_size'),
    hf.size('max_position_embeddings'),
  )
  K = hf.size('head_dim', head_dim or D // H)
  tied = bool(hf.get('tie_word_embeddings', False))
  model = base.llama(depth=N, d_model=D, heads=H, kv_heads=G, d_mlp=F, context=T)
  activation = hf.one_of('hidden_act', ACTIVATIONS, 'silu')
  with model.unlocked():
    model.update({
      'vocab_size': V,
      'head_dim': K,
      'attention_layer': _path('lm.nn.layers:Attention', **attention),
      'position': _rope(hf),
      'norm': _path('lm.nn.layers:RMSNorm', epsilon=hf.get('rms_norm_eps', 1e-6)),
      'mlp': _path('lm.nn.layers:GatedMlp', activation=activation),
      'tie_embeddings': tied,
    })  # fmt: skip
  layer, ours, all_layers = 'model.layers.{}.', 'decoder/layers/layer_0/', tuple(range(N))

  def of_layers(path: str, transform: Any, *names: str) -> Entry:
    return Entry(
      ours + path, tuple(f'{layer}{name}.weight' for name in names), transform, all_layers
    )

  entries = [
    Entry('embedding', ('model.embed_tokens.weight',), same(V, D)),
    of_layers('attention_norm/scale', same(D), 'input_layernorm'),
    of_layers(
      'attention/qkv/kernel',
      qkv_kernel(D, H, G, K),
      'self_attn.q_proj',
      'self_attn.k_proj',
      'self_attn.v_proj',
    ),
    of_layers('attention/out/kernel', out_kernel(H, K, D), 'self_attn.o_proj'),
    of_layers('mlp_norm/scale', same(D), 'post_attention_layernorm'),
    of_layers('mlp/gate/kernel', linear(D, F), 'mlp.gate_proj'),
    of_layers('mlp/up/kernel', linear(D, F), 'mlp.up_proj'),
    of_layers('mlp/down/kernel', linear(F, D), 'mlp.down_proj'),
    Entry('decoder/final_norm/scale', ('model.norm.weight',), same(D)),
  ]
  if attention.get('qkv_bias'):
    names = tuple(f'{layer}self_attn.{part}_proj.bias' for part in 'qkv')
    entries.append(Entry(ours + 'attention/qkv/bias', names, qkv_bias(H, G, K), all_layers))
  if attention.get('qk_norm'):
    for part in 'qk':
      names = (f'{layer}self_attn.{part}_norm.weight',)
      entries.append(Entry(f'{ours}attention/{part}_norm/scale', names, same(K), all_layers))
  if not tied:
    entries.append(Entry('unembedding', ('lm_head.weight',), same(V, D)))
  return Family(model, tuple(entries), 'model.', _no_buffers, 'lm_head.weight' if tied else None)


def _rope(hf: _Reader) -> str:
  """Returns the position scheme of rotary embeddings; keys differ by version of transformers."""
  values = hf.get('rope_parameters') or hf.get('rope_scaling') or {}
  theta = float(values.get('rope_theta', hf.get('rope_theta', 10000.0)))
  kind = values.get('rope_type', values.get('type', 'default'))
  factor = values.get('factor', 1.0)
  original = values.get('original_max_position_embeddings', hf.get('max_position_embeddings'))
  if kind == 'default':
    return _path('lm.nn.position:rope', theta=theta)
  if kind == 'linear':
    return _path('lm.nn.position:rope_linear', theta=theta, factor=factor)
  if kind == 'llama3' and {'low_freq_factor', 'high_freq_factor'} <= values.keys():
    low, high = values['low_freq_factor'], values['high_freq_factor']
    return _path(
      'lm.nn.position:rope_llama3',
      theta=theta,
      factor=factor,
      low=low,
      high=high,
      original_context=original,
    )
  refused = ('mscale', 'mscale_all_dim', 'truncate') if kind == 'yarn' else (kind,)
  if kind == 'yarn' and not any(values.get(key) for key in refused):
    return _path(
      'lm.nn.position:rope_yarn',
      theta=theta,
      factor=factor,
      original_context=original,
      fast=values.get('beta_fast') or 32,
      slow=values.get('beta_slow') or 1,
      scale=values.get('attention_factor'),
    )
  raise UserError(f'config.json: rope_scaling={values!r} is not supported')


FAMILIES: dict[str, Callable[[_Reader], Family]] = {
  'gpt2': gpt2,
  'llama': llama,
  'mistral': mistral,
  'qwen2': qwen2,
  'qwen3': qwen3,
}
