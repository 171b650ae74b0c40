"""Decoder-only families with layer norms: GPT-2 and GPT-NeoX."""

import numpy as np

from lm.config import base
from lm.errors import UserError
from lm.pretrained.family import ACTIVATIONS, Family, Reader, import_path
from lm.pretrained.layout import (
  Row,
  entries_of,
  layer_entries,
  linear,
  linear_rows,
  norm_rows,
  of_one,
  out_kernel,
  qkv_bias,
  qkv_kernel,
  reshaped,
  same,
  transposed,
)
from lm.pretrained.rotary import described, scheme


def gpt2(hf: Reader) -> Family:
  """GPT-2 (Radford et al. 2019). Kernels are stored transposed; q, k and v are one tensor."""
  hf.only(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
  hf.only(add_cross_attention=False, is_causal=True)
  D, N, H, T = (hf.size(key) for key in ('n_embd', 'n_layer', 'n_head', 'n_positions'))
  if D % H:
    raise UserError(f'config.json: n_embd={D} is not a multiple of n_head={H}')
  F, V, K = hf.size('n_inner', 4 * D), hf.size('vocab_size'), D // H
  model = base.gpt2(depth=N, d_model=D, heads=H, context=T)
  activation = hf.one_of('activation_function', ACTIVATIONS, 'gelu_new')
  epsilon, tied = hf.positive('layer_norm_epsilon', 1e-5), hf.flag('tie_word_embeddings', True)
  with model.unlocked():
    model.update({
      'vocab_size': V,
      'd_mlp': F,
      'norm': import_path('lm.nn.layers:LayerNorm', epsilon=epsilon),
      'mlp': import_path('lm.nn.layers:Mlp', activation=activation),
      'dropout': hf.rate('resid_pdrop', 0.1),
      'tie_embeddings': tied,
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
  if not tied:
    entries += entries_of([('unembedding', same(V, D), ('lm_head.weight',))])

  def buffers(name: str) -> np.ndarray | None:
    if name.endswith('.attn.bias'):
      return np.tril(np.ones((T, T)))[None, None]
    return np.array(-1e4) if name.endswith('.attn.masked_bias') else None

  copies = {'lm_head.weight': 'transformer.wte.weight'} if tied else {}
  return Family(model, tuple(entries), 'transformer.', buffers, copies)


def gpt_neox(hf: Reader) -> Family:
  """GPT-NeoX and Pythia (Black et al. 2022). q, k and v are one tensor, interleaved by head."""
  D, N, H, F = (
    hf.size(key)
    for key in ('hidden_size', 'num_hidden_layers', 'num_attention_heads', 'intermediate_size')
  )
  V, T, K = hf.size('vocab_size'), hf.size('max_position_embeddings'), D // H
  if D % H:
    raise UserError(f'config.json: hidden_size={D} is not a multiple of num_attention_heads={H}')
  hf.only(is_decoder=False, layer_types=None, is_causal=True)
  tied, parallel = hf.flag('tie_word_embeddings'), hf.flag('use_parallel_residual', True)
  bias, epsilon = hf.flag('attention_bias', True), hf.positive('layer_norm_eps', 1e-5)
  activation = hf.one_of('hidden_act', ACTIVATIONS, 'gelu')
  values = {'partial_rotary_factor': hf.get('rotary_pct', 0.25), **described(hf)}
  model = base.gpt2(depth=N, d_model=D, heads=H, context=T)
  no_bias = {} if bias else {'qkv_bias': False, 'out_bias': False}
  with model.unlocked():
    model.update({
      'vocab_size': V,
      'd_mlp': F,
      'attention_layer': import_path('lm.nn.layers:Attention', **no_bias),
      'position': scheme(values, hf.get('rotary_emb_base', 10000.0), T),
      'norm': import_path('lm.nn.layers:LayerNorm', epsilon=epsilon),
      'mlp': import_path('lm.nn.layers:Mlp', activation=activation),
      'block_layout': f'lm.nn.layers:{"parallel_norms" if parallel else "pre_norm"}',
      'tie_embeddings': tied,
      'dropout': hf.rate('hidden_dropout', 0.0),
    })  # fmt: skip
  qkv = 'attention.query_key_value'
  rows: list[Row] = [
    *norm_rows('attention_norm', 'input_layernorm', D),
    ('attention/qkv/kernel', linear(D, H, 3, K), (f'{qkv}.weight',)),
    ('attention/out/kernel', out_kernel(H, K, D), ('attention.dense.weight',)),
    *norm_rows('mlp_norm', 'post_attention_layernorm', D),
    *linear_rows('mlp/up', 'mlp.dense_h_to_4h', D, F),
    *linear_rows('mlp/down', 'mlp.dense_4h_to_h', F, D),
  ]
  if bias:
    rows += [
      ('attention/qkv/bias', reshaped((3 * D,), (H, 3, K)), (f'{qkv}.bias',)),
      ('attention/out/bias', same(D), ('attention.dense.bias',)),
    ]
  outside: list[Row] = [
    ('embedding', same(V, D), ('gpt_neox.embed_in.weight',)),
    *norm_rows('decoder/final_norm', 'gpt_neox.final_layer_norm', D),
    ('unembedding', same(V, D), ('embed_out.weight',)),
  ]
  entries = entries_of(outside[: 3 if tied else 4])
  entries += layer_entries(rows, 'decoder', 'gpt_neox.layers.{}.', N)
  return Family(
    model,
    tuple(entries),
    'gpt_neox.',
    tied={'embed_out.weight': 'gpt_neox.embed_in.weight'} if tied else {},
    unused=r'.*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$',
    renamed={'lm_head.': 'embed_out.'},
  )
