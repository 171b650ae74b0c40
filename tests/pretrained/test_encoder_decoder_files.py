"""Files of encoder-decoders as others wrote them: bare models, copies, unused tensors."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

import lm
from lm.errors import UserError
from lm.pretrained import checkpoint, safetensors
from lm.pretrained.families import family_of

FOLDER = pathlib.Path(__file__).parent / 'checkpoints'


def changed(name, folder, change, **values):
  """Writes a checkpoint with other tensors, and other values of its config.json."""
  shutil.copytree(FOLDER / name, folder)
  tensors = {k: x.read() for k, x in safetensors.read_folder(folder).items()}
  safetensors.write_file(folder / 'model.safetensors', change(tensors))
  config = json.loads((folder / 'config.json').read_text()) | values
  (folder / 'config.json').write_text(json.dumps(config))
  return np.load(folder / 'golden.npz')


def exported_tensors(run, out):
  checkpoint.export_run(run.workdir, out)
  return safetensors.read_folder(out)


def batch_of(golden):
  mask = np.arange(golden['source'].shape[1])[None] < golden['source_lengths'][:, None]
  return golden['source'], mask, golden['decoder_ids']


def test_an_encoder_of_t5_gives_the_hidden_states_of_the_reference(tmp_path):
  def change(tensors):
    return {k: x for k, x in tensors.items() if k.startswith(('encoder.', 'shared.'))}

  golden = changed('t5', tmp_path / 'source', change, architectures=['T5EncoderModel'])
  checkpoint.import_checkpoint(tmp_path / 'source', tmp_path / 'run')
  run = lm.load(tmp_path / 'run')
  ids, mask, _ = batch_of(golden)
  positions = np.arange(ids.shape[1])[None].repeat(2, 0)
  batch = {'inputs': ids, 'segments': mask.astype(np.int32), 'positions': positions}
  hidden = jax.jit(run.apply)(run.params, batch).hidden
  assert np.allclose(hidden[mask], golden['encoder_hidden'][-1][mask], atol=1e-4)
  names = exported_tensors(run, tmp_path / 'out').keys()
  assert names == safetensors.read_folder(tmp_path / 'source').keys()


def test_a_bare_bart_gives_the_hidden_states_of_the_reference(tmp_path):
  def change(tensors):
    del tensors['final_logits_bias']
    return {k.removeprefix('model.'): x for k, x in tensors.items()}

  golden = changed('bart', tmp_path / 'source', change, architectures=['BartModel'])
  checkpoint.import_checkpoint(tmp_path / 'source', tmp_path / 'run')
  run = lm.load(tmp_path / 'run')
  ids, mask, decoder_ids = batch_of(golden)
  segments = {'segments': np.ones(decoder_ids.shape, np.int32), 'source_segments': mask * 1}
  positions = {
    f'{prefix}positions': np.arange(x.shape[1], dtype=np.int32)[None].repeat(2, 0)
    for prefix, x in (('source_', ids), ('', decoder_ids))
  }
  batch = {'source': ids, 'inputs': decoder_ids, **segments, **positions}
  hidden = jax.jit(run.apply)(run.params, batch).hidden
  assert np.allclose(hidden, golden['decoder_hidden'][-1], atol=1e-4)
  assert run.logits(ids, mask, decoder_ids).shape == (*decoder_ids.shape, 0)
  assert run.config.data.task is None
  names = exported_tensors(run, tmp_path / 'out').keys()
  assert names == safetensors.read_folder(tmp_path / 'source').keys()


def test_without_a_bias_the_logits_of_bart_have_none(tmp_path):
  def change(tensors):
    del tensors['final_logits_bias']
    return tensors

  changed('bart', tmp_path / 'source', change)
  checkpoint.import_checkpoint(tmp_path / 'source', tmp_path / 'run')
  run = lm.load(tmp_path / 'run')
  assert run.config.model.head is None and 'head_bias' not in run.params


OLD = 'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'


def test_copies_and_unused_tensors_of_old_files_come_back(tmp_path):
  def change(tensors):
    tensors |= {f'{side}.embed_tokens.weight': tensors['shared.weight'] for side in ('encoder',)}
    # The decoder's copy replaces the table that is missing.
    tensors['decoder.embed_tokens.weight'] = tensors.pop('shared.weight')
    tensors['lm_head.weight'] = tensors['encoder.embed_tokens.weight']
    return tensors | {OLD: np.ones((8, 3), np.float32)}

  changed('t5', tmp_path / 'source', change)
  checkpoint.import_checkpoint(tmp_path / 'source', tmp_path / 'run')
  run = lm.load(tmp_path / 'run')
  table = safetensors.read_folder(FOLDER / 't5')['shared.weight'].read()
  assert np.array_equal(run.params['embedding'], table)
  before = safetensors.read_folder(tmp_path / 'source')
  after = exported_tensors(run, tmp_path / 'out')
  assert before.keys() == after.keys() and OLD in after
  for name, tensor in before.items():
    assert np.array_equal(tensor.read(), after[name].read())


def sinusoids(count, width):
  """Returns Marian's positions, by the formula of Vaswani et al. 2017, 3.5."""
  table = np.zeros((count, width), np.float32)
  for position in range(count):
    for i in range(width // 2):
      angle = position / 10000 ** (2 * i / width)
      table[position, i], table[position, width // 2 + i] = np.sin(angle), np.cos(angle)
  return table


@pytest.mark.parametrize('factor', [1, 2])
def test_stored_sinusoids_of_marian_are_checked_and_come_back(factor, tmp_path):
  def change(tensors):
    table = factor * sinusoids(24, 16)
    sides = 'encoder', 'decoder'
    return tensors | {f'model.{side}.embed_positions.weight': table for side in sides}

  changed('marian', tmp_path / 'source', change)
  if factor != 1:
    with pytest.raises(UserError, match=r'embed_positions\.weight differs from the config'):
      checkpoint.import_checkpoint(tmp_path / 'source', tmp_path / 'run')
    return
  checkpoint.import_checkpoint(tmp_path / 'source', tmp_path / 'run')
  after = exported_tensors(lm.load(tmp_path / 'run'), tmp_path / 'out')
  before = safetensors.read_folder(tmp_path / 'source')
  assert before.keys() == after.keys()
  for name, tensor in before.items():
    assert tensor.read().tobytes() == after[name].read().tobytes()


REFUSED = [
  ('t5', {'feed_forward_proj': 'gated-quick_gelu'}, 'feed_forward_proj'),
  ('t5', {'architectures': ['T5ForTokenClassification']}, 'architectures'),
  ('t5', {'is_decoder': True}, 'is_decoder'),
  ('t5', {'decoder_start_token_id': 60}, 'decoder_start_token_id'),
  ('bart', {'architectures': ['BartForSequenceClassification']}, 'architectures'),
  ('bart', {'decoder_attention_heads': 2}, 'decoder_attention_heads=2'),
  ('bart', {'decoder_ffn_dim': 32}, 'decoder_ffn_dim=32'),
  ('bart', {'encoder_attention_heads': 3, 'decoder_attention_heads': 3}, 'd_model=16'),
  ('bart', {'normalize_before': True}, 'normalize_before'),
  ('bart', {'tie_word_embeddings': False}, 'tie_word_embeddings'),
  ('bart', {'forced_bos_token_id': [2, 3]}, 'forced_bos_token_id'),
  ('mbart', {'add_final_layer_norm': False}, 'add_final_layer_norm'),
  ('marian', {'share_encoder_decoder_embeddings': False}, 'share_encoder_decoder_embeddings'),
  ('marian', {'bad_words_ids': [[1, 2]]}, 'bad_words_ids'),
  ('marian', {'bad_words_ids': [1]}, 'bad_words_ids'),
]


@pytest.mark.parametrize(('name', 'values', 'message'), REFUSED)
def test_other_values_of_encoder_decoders_are_refused_in_one_line(name, values, message):
  config = json.loads((FOLDER / name / 'config.json').read_text())
  family_of(config)
  with pytest.raises(UserError, match=message) as error:
    family_of(config | values)
  assert '\n' not in str(error.value)


def test_generation_config_comes_before_config():
  config = json.loads((FOLDER / 'bart' / 'config.json').read_text())
  found = family_of(config | {'forced_bos_token_id': 5}, generation={'forced_bos_token_id': 7})
  assert 'start=(0, 7)' in found.data['converter']
  assert 'start=(0, 5)' in family_of(config | {'forced_bos_token_id': 5}).data['converter']
  unnamed = {'model_type': 'mbart', 'architectures': None, 'decoder_start_token_id': None}
  assert 'task' not in family_of(config | unnamed).data


def test_a_larger_vocabulary_has_rows_of_the_bias_too(tmp_path):
  checkpoint.import_checkpoint(FOLDER / 'marian', tmp_path / 'run', new_tokens=['<new>'])
  run = lm.load(tmp_path / 'run')
  bias = run.params['head_bias']
  assert bias.shape == (61,) and np.isclose(bias[60], bias[:60].mean(), atol=1e-6)
  assert run.config.decode.forbidden == (1,)


def test_the_old_key_of_bart_forces_the_first_token():
  config = json.loads((FOLDER / 'bart/config.json').read_text())
  for key in ('forced_bos_token_id', 'force_bos_token_to_be_generated'):
    config.pop(key, None)
  old = config | {'bos_token_id': 3, 'force_bos_token_to_be_generated': True}

  def start(config, generation=None):
    return family_of(config, None, generation or {}).data['converter'].partition('start=')[2]

  first = config['decoder_start_token_id']
  assert start(config).startswith(f'({first},)')
  assert start(old).startswith(f'({first}, 3)')
  # A generation_config.json says all.
  assert start(old, {'decoder_start_token_id': first}).startswith(f'({first},)')
