import json
import pathlib

import jax
import numpy as np
import pytest

import lm
from lm.errors import UserError
from lm.pretrained import checkpoint, safetensors

gguf = pytest.importorskip('gguf')

LLAMA = pathlib.Path(__file__).parent / 'checkpoints' / 'llama_tied'
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


def write(file, **fields):
  """Writes the tiny Llama as llama.cpp's converter does, with some fields changed."""
  config = json.loads((LLAMA / 'config.json').read_text())
  tensors = {k: t.read() for k, t in safetensors.read_folder(LLAMA).items()}
  vocabulary = json.loads((LLAMA / 'tokenizer.json').read_text())['model']['vocab']
  writer = gguf.GGUFWriter(file, fields.get('architecture', 'llama'))
  writer.add_context_length(config['max_position_embeddings'])
  writer.add_embedding_length(config['hidden_size'])
  writer.add_block_count(config['num_hidden_layers'])
  writer.add_feed_forward_length(config['intermediate_size'])
  writer.add_head_count(config['num_attention_heads'])
  writer.add_head_count_kv(config['num_key_value_heads'])
  writer.add_layer_norm_rms_eps(config['rms_norm_eps'])
  writer.add_rope_freq_base(config['rope_parameters']['rope_theta'])
  writer.add_key_length(config['head_dim'])
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre(fields.get('pre', 'gpt-2'))
  # A merge needs its result in the vocabulary, in place of the last token.
  tokens = [*sorted(vocabulary, key=vocabulary.get)[:-1], fields.get('last', '!"')]
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
  ('fields', 'message'),
  [
    ({'architecture': 'falcon'}, "general.architecture='falcon' is not supported"),
    ({'pre': 'tekken'}, "tokenizer.ggml.pre='tekken' is not supported"),
    ({'last': 'x'}, 'its tokenizer is damaged'),
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
