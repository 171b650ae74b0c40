"""Checkpoints of decoders as other versions of transformers wrote them."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm.errors import UserError
from lm.models.transformer import Decoder
from lm.pretrained import checkpoint, safetensors
from lm.types import EmbeddingTable

FOLDER = pathlib.Path(__file__).parent / 'checkpoints'


def rewritten(name, folder, rename=lambda name: name, more=None, config=lambda values: values):
  """Writes a checkpoint with other names, more tensors or another config; returns its tensors."""
  source = FOLDER / name
  tensors = {rename(k): x.read() for k, x in safetensors.read_folder(source).items()}
  tensors |= more or {}
  folder.mkdir()
  safetensors.write_file(folder / 'model.safetensors', tensors)
  values = json.loads((source / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps(config(values)))
  shutil.copy(source / 'tokenizer.json', folder)
  return tensors


def assert_imports_as(name, folder, tensors, tmp_path):
  """Asserts that a checkpoint has the parameters of another, and comes out as it came in."""
  checkpoint.import_checkpoint(FOLDER / name, tmp_path / 'expected')
  checkpoint.import_checkpoint(folder, tmp_path / 'run')
  runs = [lm.load(tmp_path / each) for each in ('expected', 'run')]
  for x, y in zip(*(jax.tree.leaves(run.params) for run in runs), strict=True):
    np.testing.assert_array_equal(x, y)
  checkpoint.export_run(tmp_path / 'run', tmp_path / 'out')
  found = safetensors.read_folder(tmp_path / 'out')
  assert found.keys() == tensors.keys()
  for name, x in tensors.items():
    assert found[name].dtype == x.dtype and found[name].read().tobytes() == x.tobytes()


@pytest.mark.parametrize(('dtype', 'scale'), [('float32', 4.8989797), ('bfloat16', 4.90625)])
def test_the_embedding_scale_is_rounded_to_the_type_of_the_model(dtype, scale):
  sizes = {'d_model': 24, 'depth': 1, 'heads': 1, 'kv_heads': 1, 'head_dim': 24, 'd_mlp': 8}
  model = Decoder(vocab_size=3, context=4, embed_scale=24**0.5, dtype=dtype, **sizes)
  table = EmbeddingTable(jnp.ones((3, 24)))
  found = model.embed(table, jnp.zeros((1, 1), int))
  np.testing.assert_array_equal(found, np.full((1, 1, 24), scale, np.float32))


def test_buffers_of_an_old_gpt_neox_are_kept(tmp_path):
  mask = np.tril(np.ones((1, 1, 24, 24), bool))
  more = {}
  for i in range(2):
    more[f'gpt_neox.layers.{i}.attention.bias'] = mask
    more[f'gpt_neox.layers.{i}.attention.masked_bias'] = np.array(-1e9, np.float32)
    more[f'gpt_neox.layers.{i}.attention.rotary_emb.inv_freq'] = np.array([1.0], np.float16)
  tensors = rewritten('gpt_neox', tmp_path / 'old', more=more)
  assert_imports_as('gpt_neox', tmp_path / 'old', tensors, tmp_path)


def test_frequencies_of_an_old_llama_are_kept(tmp_path):
  more = {'model.layers.0.self_attn.rotary_emb.inv_freq': np.array([1.0, 0.01], np.float32)}
  tensors = rewritten('llama_biases', tmp_path / 'old', more=more)
  assert_imports_as('llama_biases', tmp_path / 'old', tensors, tmp_path)


def text_config(values):
  return {'model_type': 'gemma3', 'text_config': values}


@pytest.mark.parametrize('prefix', ['language_model.model.', 'model.language_model.', 'model.'])
def test_the_text_model_of_a_gemma_for_images_is_one_of_texts(prefix, tmp_path):
  def rename(name):
    return prefix + name.removeprefix('model.')

  tensors = rewritten('gemma3_text', tmp_path / 'old', rename, config=text_config)
  assert_imports_as('gemma3_text', tmp_path / 'old', tensors, tmp_path)


def test_a_vision_tower_is_refused(tmp_path):
  more = {'vision_tower.vision_model.embeddings.weight': np.zeros(3, np.float32)}
  rewritten('gemma3_text', tmp_path / 'old', more=more, config=text_config)
  with pytest.raises(UserError, match='with a vision tower is not supported') as error:
    checkpoint.import_checkpoint(tmp_path / 'old', tmp_path / 'run')
  assert '\n' not in str(error.value)
