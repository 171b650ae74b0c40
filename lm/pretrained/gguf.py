"""GGUF files of llama.cpp: config, tokenizer and dequantized tensors under Hugging Face's names.

The package `gguf` (extra `gguf`) reads the file and dequantizes its tensors.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, processors

from lm.errors import UserError, first_line
from lm.pretrained import pieces

# Names of llama.cpp (gguf.constants) -> names of Llama and Gemma 3.
_NAMES = {
  'token_embd.weight': 'model.embed_tokens.weight',
  'output_norm.weight': 'model.norm.weight',
  'output.weight': 'lm_head.weight',
}
_LAYER_NAMES = {
  'attn_norm': 'input_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj',
  'ffn_norm': 'post_attention_layernorm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}
_GEMMA_NAMES = _LAYER_NAMES | {
  'attn_q_norm': 'self_attn.q_norm',
  'attn_k_norm': 'self_attn.k_norm',
  'post_attention_norm': 'post_attention_layernorm',
  'ffn_norm': 'pre_feedforward_layernorm',
  'post_ffw_norm': 'post_feedforward_layernorm',
}
# The pre-tokenizers of llama.cpp (tokenizer.ggml.pre) as regular expressions of pieces.
_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
_CASELESS = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"""
_REST = r"""| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
_LLAMA_3 = 'llama-bpe'  # its words of the vocabulary need no merges
_PIECES = {
  'gpt-2': _WORDS,
  'smollm': _WORDS,
  _LLAMA_3: _CASELESS + r'\p{N}{1,3}' + _REST,
  'qwen2': _CASELESS + r'\p{N}' + _REST,
}
_CONTROL = 3  # of tokenizer.ggml.token_type


class Source(NamedTuple):
  """A GGUF file, opened.

  Attributes:
    config: as config.json has it.
    shapes: of the tensors by Hugging Face's name.
    read: `name -> tensor`, dequantized to float32 unless it is stored in float16 or float32.
    tokenizer: the file's own.
  """

  config: dict[str, Any]
  shapes: dict[str, tuple[int, ...]]
  read: Callable[[str], np.ndarray]
  tokenizer: tokenizers.Tokenizer


def open_file(file: Path) -> Source:
  """Opens a GGUF file of a Llama or a Gemma 3.

  Raises:
    UserError: the package `gguf` is missing, the file is malformed, or its kind is not supported.
  """
  try:
    import gguf
  except ImportError as e:
    raise UserError(f"{file}: GGUF files need the package gguf: pip install 'lm[gguf]'") from e
  try:
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
  except Exception as e:  # the package raises many types for malformed files
    raise UserError(f'{file} is no GGUF file, or damaged: {first_line(e)}') from e
  kind = fields.get('general.architecture')
  if kind not in ('llama', 'gemma3'):
    raise UserError(
      f'{file}: general.architecture={kind!r} is not supported; it must be llama or gemma3'
    )
  layer_names = _LAYER_NAMES if kind == 'llama' else _GEMMA_NAMES

  def field(name: str) -> Any:
    if name not in fields:
      raise UserError(f'{file} lacks the field {name}')
    return fields[name]

  heads = field(f'{kind}.attention.head_count')
  groups = fields.get(f'{kind}.attention.head_count_kv', heads)
  names = {}
  for name in tensors:
    block, _, rest = name.removeprefix('blk.').partition('.')
    known = layer_names.get(rest.removesuffix('.weight')) if block.isdecimal() else None
    names[f'model.layers.{block}.{known}.weight' if known else _NAMES.get(name, name)] = name

  def read(name: str) -> np.ndarray:
    tensor = tensors[names[name]]
    x = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    x = np.asarray(x).reshape(shapes[name])
    if kind == 'gemma3':  # llama.cpp stores the factor 1 + w of norms
      return x - 1 if name.endswith('norm.weight') else x
    rows = {'self_attn.q_proj.weight': heads, 'self_attn.k_proj.weight': groups}
    for suffix, count in rows.items():
      if name.endswith(suffix):  # llama.cpp rotates neighbors, and Hugging Face halves
        return x.reshape(count, -1, 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
    return x

  shapes = {name: tuple(map(int, tensors[n].shape[::-1])) for name, n in names.items()}
  config = {
    'model_type': 'llama',
    'architectures': ['LlamaForCausalLM'],
    'hidden_size': field(f'{kind}.embedding_length'),
    'num_hidden_layers': field(f'{kind}.block_count'),
    'num_attention_heads': heads,
    'num_key_value_heads': groups,
    'head_dim': fields.get(f'{kind}.attention.key_length'),
    'intermediate_size': field(f'{kind}.feed_forward_length'),
    'max_position_embeddings': field(f'{kind}.context_length'),
    'vocab_size': shapes.get('model.embed_tokens.weight', (0,))[0],
    'rms_norm_eps': field(f'{kind}.attention.layer_norm_rms_epsilon'),
    'rope_theta': fields.get(f'{kind}.rope.freq_base', 10000.0),
    'tie_word_embeddings': 'lm_head.weight' not in shapes,
    'bos_token_id': fields.get('tokenizer.ggml.bos_token_id'),
    'eos_token_id': fields.get('tokenizer.ggml.eos_token_id'),
    'hidden_act': 'silu',
    'rope_scaling': _scaling(file, kind, fields),
  }
  if kind == 'gemma3':
    config |= _gemma(field, fields)
  return Source(config, shapes, read, _tokenizer(file, field, fields))


def _scaling(file: Path, kind: str, fields: Mapping[str, Any]) -> dict[str, Any] | None:
  """Returns the scaling of rotary positions; raises UserError where it is not supported."""
  name = fields.get(f'{kind}.rope.scaling.type', 'none')
  if name not in ('none', 'linear'):
    raise UserError(f'{file}: {kind}.rope.scaling.type={name!r} is not supported')
  factor = fields.get(f'{kind}.rope.scaling.factor', 1.0)
  return {'rope_type': 'linear', 'factor': factor} if name == 'linear' else None


def _gemma(field: Callable[[str], Any], fields: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what the config of a Gemma 3 has besides that of a Llama."""
  D, H = field('gemma3.embedding_length'), field('gemma3.attention.head_count')
  # The file does not say it: the model of 27B parameters, with 62 layers, has another scale.
  widest = field('gemma3.block_count') == 62
  return {
    'model_type': 'gemma3_text',
    'architectures': ['Gemma3ForCausalLM'],
    'hidden_activation': 'gelu_pytorch_tanh',
    'hidden_act': None,
    'query_pre_attn_scalar': D // max(H, 1) if widest else field('gemma3.attention.key_length'),
    'sliding_window': field('gemma3.attention.sliding_window'),
    'sliding_window_pattern': fields.get('gemma3.attention.sliding_window_pattern', 6),
    'rope_theta': fields.get('gemma3.rope.freq_base', 1e6),
    'rope_local_base_freq': fields.get('gemma3.rope.freq_base_swa', 10000.0),
    'final_logit_softcapping': fields.get('gemma3.final_logit_softcapping'),
    'pad_token_id': fields.get('tokenizer.ggml.padding_token_id'),
  }


def _tokenizer(
  file: Path, field: Callable[[str], Any], fields: Mapping[str, Any]
) -> tokenizers.Tokenizer:
  try:
    return _assembled(file, field, fields)
  except UserError:
    raise
  except Exception as e:  # the library raises nothing more precise
    raise UserError(f'{file}: its tokenizer is damaged: {first_line(e)}') from e


def _assembled(
  file: Path, field: Callable[[str], Any], fields: Mapping[str, Any]
) -> tokenizers.Tokenizer:
  kind, pre = field('tokenizer.ggml.model'), fields.get('tokenizer.ggml.pre')
  if kind == 'llama':  # the first Llama had one of SentencePiece
    tokens, scores, kinds = (
      field(f'tokenizer.ggml.{name}') for name in ('tokens', 'scores', 'token_type')
    )
    unknown = fields.get('tokenizer.ggml.unknown_token_id', 0)
    model = pieces.bpe_model(tokens, scores, kinds, unknown)
    space_prefix = fields.get('tokenizer.ggml.add_space_prefix', True)
    tokenizer = pieces.assemble(model, tokens, kinds, [], space_prefix)
    return _with_start(tokenizer, fields, tokens, default=True)
  if kind != 'gpt2' or pre not in _PIECES:
    raise UserError(
      f'{file}: tokenizer.ggml.model={kind!r} with tokenizer.ggml.pre={pre!r} is not supported; '
      f'it must be llama, or gpt2 with one of {", ".join(_PIECES)}'
    )
  tokens, kinds = field('tokenizer.ggml.tokens'), field('tokenizer.ggml.token_type')
  vocabulary = {token: i for i, token in enumerate(tokens)}
  merges = [tuple(merge.split(' ')) for merge in field('tokenizer.ggml.merges')]
  bpe = models.BPE(vocabulary, merges, ignore_merges=pre == _LLAMA_3)
  tokenizer = tokenizers.Tokenizer(bpe)
  digits = [pre_tokenizers.Digits(individual_digits=True)] if pre == 'smollm' else []
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
    *digits,
    pre_tokenizers.Split(Regex(_PIECES[pre]), 'isolated'),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
  ])  # fmt: skip
  tokenizer.decoder = decoders.ByteLevel()
  pairs = zip(tokens, kinds, strict=True)
  tokenizer.add_special_tokens([token for token, kind in pairs if kind == _CONTROL])
  return _with_start(tokenizer, fields, tokens, default=pre == _LLAMA_3)


def _with_start(
  tokenizer: tokenizers.Tokenizer, fields: Mapping[str, Any], tokens: Sequence[str], default: bool
) -> tokenizers.Tokenizer:
  """Puts <bos> before texts if the file says so, or else if llama.cpp does by `default`."""
  start = fields.get('tokenizer.ggml.bos_token_id')
  if start is not None and fields.get('tokenizer.ggml.add_bos_token', default):
    if not 0 <= start < len(tokens):
      raise ValueError(f'bos_token_id={start} is none of {len(tokens)} tokens')
    first = tokens[start]
    tokenizer.post_processor = processors.TemplateProcessing(
      single=[first, '$A'], pair=[first, '$A', first, '$B'], special_tokens=[(first, start)]
    )
  return tokenizer


def as_json(config: dict[str, Any]) -> str:
  """Returns the text of config.json."""
  return json.dumps({k: v for k, v in config.items() if v is not None}, indent=2) + '\n'
