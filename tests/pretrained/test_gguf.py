import json
import pathlib

import jax
import numpy as np
import pytest

import lm
from lm.errors import UserError
from lm.pretrained import checkpoint, safetensors

gguf = pytest.importorskip('gguf')

FOLDER = pathlib.Path(__file__).parent / 'checkpoints'
LLAMA, GEMMA = FOLDER / 'llama_tied', FOLDER / 'gemma3_text'
LAYER = {
  'input_layernorm': 'attn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'post_attention_layernorm': 'ffn_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
}


def interleaved(x, heads):
  """Returns the rows of a projection in the order of llama.cpp: neighbors turn together."""
  half = x.shape[0] // heads // 2
  order = [
    h * 2 * half + part * half + i for h in range(heads) for i in range(half) for part in (0, 1)
  ]
  return x[order]


def writer_of(file, architecture, config):
  """Returns a writer that has the sizes of a model."""
  writer = gguf.GGUFWriter(file, architecture)
  writer.add_context_length(config['max_position_embeddings'])
  writer.add_embedding_length(config['hidden_size'])
  writer.add_block_count(config['num_hidden_layers'])
  writer.add_feed_forward_length(config['intermediate_size'])
  writer.add_head_count(config['num_attention_heads'])
  writer.add_head_count_kv(config['num_key_value_heads'])
  writer.add_layer_norm_rms_eps(config['rms_norm_eps'])
  writer.add_key_length(config['head_dim'])
  return writer


def write(file, **fields):
  """Writes the tiny Llama as llama.cpp's converter does, with some fields changed."""
  config = json.loads((LLAMA / 'config.json').read_text())
  tensors = {k: t.read() for k, t in safetensors.read_folder(LLAMA).items()}
  vocabulary = json.loads((LLAMA / 'tokenizer.json').read_text())['model']['vocab']
  writer = writer_of(file, fields.get('architecture', 'llama'), config)
  writer.add_rope_freq_base(config['rope_parameters']['rope_theta'])
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre(fields.get('pre', 'gpt-2'))
  # A merge needs its result in the vocabulary, in place of the last token.
  tokens = [*sorted(vocabulary, key=vocabulary.get)[:-2], 'AB', fields.get('last', '!"')]
  writer.add_bos_token_id(fields.get('bos', 1))
  if 'add_bos' in fields:
    writer.add_add_bos_token(fields['add_bos'])
  writer.add_token_list(tokens)
  writer.add_token_types([3, *[1] * (len(tokens) - 1)])
  writer.add_token_merges(['! "'])
  for name, x in tensors.items():
    parts = name.removesuffix('.weight').split('.', 3)
    if name.startswith('model.layers.'):
      heads = {'q': config['num_attention_heads'], 'k': config['num_key_value_heads']}
      for part, count in heads.items():
        x = interleaved(x, count) if name.endswith(f'self_attn.{part}_proj.weight') else x
      own = f'blk.{parts[2]}.{LAYER[parts[3]]}.weight'
    else:
      own = {
        'model.embed_tokens.weight': 'token_embd.weight',
        'model.norm.weight': 'output_norm.weight',
      }[name]
    writer.add_tensor(own, np.ascontiguousarray(x))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def test_a_gguf_file_has_the_parameters_of_its_source(tmp_path):
  write(tmp_path / 'a.gguf')
  checkpoint.import_checkpoint(tmp_path / 'a.gguf', tmp_path / 'run')
  checkpoint.import_checkpoint(LLAMA, tmp_path / 'expected')
  run, expected = lm.load(tmp_path / 'run'), lm.load(tmp_path / 'expected')
  for x, y in zip(jax.tree.leaves(run.params), jax.tree.leaves(expected.params), strict=True):
    np.testing.assert_array_equal(x, y)
  assert run.config.model.position == expected.config.model.position
  assert run.tokenizer.encode('!!"A').tokens == ['!', '!"', 'A']
  # What comes out has the canonical names, and comes in again.
  checkpoint.export_run(tmp_path / 'run', tmp_path / 'out')
  assert safetensors.read_folder(tmp_path / 'out').keys() == safetensors.read_folder(LLAMA).keys()
  checkpoint.import_checkpoint(tmp_path / 'out', tmp_path / 'again')
  again = lm.load(tmp_path / 'again')
  for x, y in zip(jax.tree.leaves(run.params), jax.tree.leaves(again.params), strict=True):
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
  ('fields', 'start', 'words'),
  [
    ({}, (), ['A', 'B']),
    ({'add_bos': True}, (1,), ['A', 'B']),
    ({'pre': 'llama-bpe'}, (1,), ['AB']),  # both are what llama.cpp does for Llama 3
    ({'pre': 'llama-bpe', 'add_bos': False}, (), ['AB']),
  ],
)
def test_texts_begin_and_divide_as_in_llama_cpp(fields, start, words, tmp_path):
  write(tmp_path / 'a.gguf', **fields)
  checkpoint.import_checkpoint(tmp_path / 'a.gguf', tmp_path / 'run')
  run = lm.load(tmp_path / 'run')
  assert tuple(run.config.decode.start) == start
  assert run.tokenizer.encode('AB').tokens[len(start) :] == words


def write_gemma(file):
  """Writes the tiny Gemma 3 as llama.cpp's converter does, with a tokenizer of SentencePiece."""
  config = json.loads((GEMMA / 'config.json').read_text())
  writer = writer_of(file, 'gemma3', config)
  writer.add_rope_freq_base(1e6)
  writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
  writer.add_rope_scaling_factor(8.0)
  writer.add_sliding_window(config['sliding_window'])
  writer.add_tokenizer_model('llama')
  bytes_ = [f'<0x{b:02X}>' for b in range(32)]  # as many as the vocabulary of the model allows
  tokens = [
    '<pad>',
    '<eos>',
    '<bos>',
    '<unk>',
    '  ',
    *bytes_,
    *'abc',
    '\u2581',
    '\u2581a',
    'ab',
    'bc',
  ]
  normal = len(tokens) - 5 - len(bytes_)
  writer.add_token_list(tokens)
  # 'bc' is joined before 'ab', and '\u2581a' after both.
  writer.add_token_scores([0.0] * (len(tokens) - 3) + [-3.0, -2.0, -1.0])
  writer.add_token_types([3, 3, 3, 2, 4, *[6] * len(bytes_), *[1] * normal])
  writer.add_bos_token_id(2)
  writer.add_eos_token_id(1)
  writer.add_unk_token_id(3)
  writer.add_add_space_prefix(False)
  names = {
    'model.embed_tokens': 'token_embd',
    'model.norm': 'output_norm',
    'post_attention_layernorm': 'post_attention_norm',
    'pre_feedforward_layernorm': 'ffn_norm',
    'post_feedforward_layernorm': 'post_ffw_norm',
    'self_attn.q_norm': 'attn_q_norm',
    'self_attn.k_norm': 'attn_k_norm',
  }
  for name, tensor in safetensors.read_folder(GEMMA).items():
    stem = name.removesuffix('.weight')
    if stem.startswith('model.layers.'):
      _, _, layer, stem = stem.split('.', 3)
      own = f'blk.{layer}.{(LAYER | names)[stem]}.weight'
    else:
      own = f'{names[stem]}.weight'
    x = tensor.read()
    writer.add_tensor(own, x + 1 if 'norm' in own else x)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def test_a_gguf_file_of_gemma_has_the_parameters_of_its_source(tmp_path):
  write_gemma(tmp_path / 'a.gguf')
  checkpoint.import_checkpoint(tmp_path / 'a.gguf', tmp_path / 'run')
  run = lm.load(tmp_path / 'run')
  checkpoint.export_run(tmp_path / 'run', tmp_path / 'out')
  expected = safetensors.read_folder(GEMMA)
  found = safetensors.read_folder(tmp_path / 'out')
  assert found.keys() == expected.keys()
  for name, tensor in expected.items():
    np.testing.assert_allclose(found[name].read(), tensor.read(), atol=1e-6)
  model = run.config.model
  # The pattern has six layers, of which the model has the first two.
  assert 'window=4' in model.attention_layer
  assert model.position == 'lm.nn.position:rope(theta=10000.0)'

  def encode(text):
    return run.tokenizer.encode(text, add_special_tokens=False).tokens

  assert encode('abc ab') == ['a', 'bc', '\u2581', 'ab']
  assert encode('c ac') == ['c', '\u2581a', 'c']
  assert encode('a  b\n') == ['a', '  ', 'b', '<0x0A>']
  assert run.tokenizer.encode('a').tokens == ['<bos>', 'a']
  ids = run.tokenizer.encode('abc  ab\n', add_special_tokens=False).ids
  assert run.tokenizer.decode(ids) == 'abc  ab\n'
  assert run.tokenizer.id_to_token(59) is None  # the table has more rows than tokens


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'architecture': 'falcon'}, "general.architecture='falcon' is not supported"),
    ({'pre': 'tekken'}, "tokenizer.ggml.pre='tekken' is not supported"),
    ({'last': 'x'}, 'its tokenizer is damaged'),
    ({'bos': 999, 'add_bos': True}, 'damaged: ValueError: bos_token_id=999 is none of 60 tokens'),
  ],
)
def test_other_kinds_are_refused_in_one_line(fields, message, tmp_path):
  write(tmp_path / 'a.gguf', **fields)
  with pytest.raises(UserError) as error:
    checkpoint.import_checkpoint(tmp_path / 'a.gguf', tmp_path / 'run')
  assert message in str(error.value) and '\n' not in str(error.value)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('size', [0, 3, 20, 300, 2000])
def test_damaged_files_are_refused_in_one_line(size, tmp_path):
  write(tmp_path / 'a.gguf')
  content = (tmp_path / 'a.gguf').read_bytes()
  (tmp_path / 'b.gguf').write_bytes(content[:size])
  with pytest.raises(UserError, match=r'b\.gguf is no GGUF file, or damaged') as error:
    checkpoint.import_checkpoint(tmp_path / 'b.gguf', tmp_path / 'run')
  assert '\n' not in str(error.value)
