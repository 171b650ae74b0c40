"""Decoder-only families: GPT-2, Llama and its relatives."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lm.config import base
from lm.errors import UserError
from lm.pretrained.family import ACTIVATIONS, Family, Reader, import_path
from lm.pretrained.layout import (
  Row,
  attention_rows,
  entries_of,
  layer_entries,
  linear_rows,
  norm_rows,
  of_one,
  qkv_bias,
  qkv_kernel,
  reshaped,
  same,
  transposed,
)


def gpt2(hf: Reader) -> Family:
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
      'norm': import_path('lm.nn.layers:LayerNorm', epsilon=epsilon),
      'mlp': import_path('lm.nn.layers:Mlp', activation=activation),
      'dropout': float(hf.get('resid_pdrop', 0.1)),
    })  # fmt: skip
  rows: list[Row] = [
    *norm_rows('attention_norm', 'ln_1', D),
    (
      'attention/qkv/kernel',
      of_one(transposed(qkv_kernel(D, H, H, K)), 1),
      ('attn.c_attn.weight',),
    ),
    ('attention/qkv/bias', of_one(qkv_bias(H, H, K), 0), ('attn.c_attn.bias',)),
    ('attention/out/kernel', reshaped((D, D), (H, K, D)), ('attn.c_proj.weight',)),
    ('attention/out/bias', same(D), ('attn.c_proj.bias',)),
    *norm_rows('mlp_norm', 'ln_2', D),
    ('mlp/up/kernel', same(D, F), ('mlp.c_fc.weight',)),
    ('mlp/up/bias', same(F), ('mlp.c_fc.bias',)),
    ('mlp/down/kernel', same(F, D), ('mlp.c_proj.weight',)),
    ('mlp/down/bias', same(D), ('mlp.c_proj.bias',)),
  ]
  outside: list[Row] = [
    ('embedding', same(V, D), ('wte.weight',)),
    ('decoder/position', same(T, D), ('wpe.weight',)),
    *norm_rows('decoder/final_norm', 'ln_f', D),
  ]
  entries = entries_of(outside, name='transformer.')
  entries += layer_entries(rows, 'decoder', 'transformer.h.{}.', N)

  def buffers(name: str) -> np.ndarray | None:
    if name.endswith('.attn.bias'):
      return np.tril(np.ones((T, T)))[None, None]
    return np.array(-1e4) if name.endswith('.attn.masked_bias') else None

  tied = {'lm_head.weight': 'transformer.wte.weight'}
  return Family(model, tuple(entries), 'transformer.', buffers, tied)


def llama(hf: Reader) -> Family:
  """Llama 1 to 3 (Touvron et al. 2023)."""
  hf.only(attention_bias=False, mlp_bias=False, pretraining_tp=1)
  return _llama(hf, {})


def mistral(hf: Reader) -> Family:
  """Mistral (Jiang et al. 2023): Llama with a window."""
  return _llama(hf, {'window': hf.get('sliding_window')})


def qwen2(hf: Reader) -> Family:
  """Qwen 2 and 2.5: Llama with biases of queries, keys and values."""
  hf.only(use_sliding_window=False)
  return _llama(hf, {'qkv_bias': True})


def qwen3(hf: Reader) -> Family:
  """Qwen 3: Llama with normalized queries and keys."""
  hf.only(use_sliding_window=False, attention_bias=False)
  norm = import_path('lm.nn.layers:RMSNorm', epsilon=hf.get('rms_norm_eps', 1e-6))
  return _llama(hf, {'qk_norm': norm}, 128)


def _llama(hf: Reader, attention: Mapping[str, Any], head_dim: int | None = None) -> Family:
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
      'attention_layer': import_path('lm.nn.layers:Attention', **attention),
      'position': rope(hf),
      'norm': import_path('lm.nn.layers:RMSNorm', epsilon=hf.get('rms_norm_eps', 1e-6)),
      'mlp': import_path('lm.nn.layers:GatedMlp', activation=activation),
      'tie_embeddings': tied,
    })  # fmt: skip
  names = [f'self_attn.{part}_proj' for part in 'qkvo']
  biases = bool(attention.get('qkv_bias'))
  rows: list[Row] = [
    ('attention_norm/scale', same(D), ('input_layernorm.weight',)),
    *attention_rows('attention', names, D, H, G, K, biases, False),
    ('mlp_norm/scale', same(D), ('post_attention_layernorm.weight',)),
    *linear_rows('mlp/gate', 'mlp.gate_proj', D, F, False),
    *linear_rows('mlp/up', 'mlp.up_proj', D, F, False),
    *linear_rows('mlp/down', 'mlp.down_proj', F, D, False),
  ]
  if attention.get('qk_norm'):
    for part in 'qk':
      rows.append((f'attention/{part}_norm/scale', same(K), (f'self_attn.{part}_norm.weight',)))
  outside: list[Row] = [
    ('embedding', same(V, D), ('model.embed_tokens.weight',)),
    ('decoder/final_norm/scale', same(D), ('model.norm.weight',)),
    ('unembedding', same(V, D), ('lm_head.weight',)),
  ]
  entries = entries_of(outside[: 2 if tied else 3])
  entries += layer_entries(rows, 'decoder', 'model.layers.{}.', N)
  copies = {'lm_head.weight': 'model.embed_tokens.weight'} if tied else {}
  return Family(model, tuple(entries), 'model.', tied=copies)


def rope(hf: Reader) -> str:
  """Returns the position scheme of rotary embeddings; keys differ by version of transformers."""
  values = hf.get('rope_parameters') or hf.get('rope_scaling') or {}
  theta = float(values.get('rope_theta', hf.get('rope_theta', 10000.0)))
  kind = values.get('rope_type', values.get('type', 'default'))
  factor = values.get('factor', 1.0)
  original = values.get('original_max_position_embeddings', hf.get('max_position_embeddings'))
  if kind == 'default':
    return import_path('lm.nn.position:rope', theta=theta)
  if kind == 'linear':
    return import_path('lm.nn.position:rope_linear', theta=theta, factor=factor)
  if kind == 'llama3' and {'low_freq_factor', 'high_freq_factor'} <= values.keys():
    low, high = values['low_freq_factor'], values['high_freq_factor']
    return import_path(
      'lm.nn.position:rope_llama3',
      theta=theta,
      factor=factor,
      low=low,
      high=high,
      original_context=original,
    )
  refused = ('mscale', 'mscale_all_dim', 'truncate') if kind == 'yarn' else (kind,)
  if kind == 'yarn' and not any(values.get(key) for key in refused):
    return import_path(
      'lm.nn.position:rope_yarn',
      theta=theta,
      factor=factor,
      original_context=original,
      fast=values.get('beta_fast') or 32,
      slow=values.get('beta_slow') or 1,
      scale=values.get('attention_factor'),
    )
  raise UserError(f'config.json: rope_scaling={values!r} is not supported')
