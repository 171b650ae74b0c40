"""Tokens that are added to a checkpoint."""

import json
import pathlib
import shutil

import in_process
import numpy as np
import pytest

import lm
from lm.pretrained import checkpoint, safetensors

FOLDER = pathlib.Path(__file__).parent / 'checkpoints'
NEW = ['<|user|>', '<|assistant|>']


def convert(source, workdir, *tokens):
  flags = [f'--workdir={workdir}', *([f'--add_tokens={",".join(tokens)}'] if tokens else [])]
  return in_process.run('convert', 'from_hf', str(source), *flags)


def test_a_new_token_has_the_mean_logit_and_changes_no_other(tmp_path):
  name = 'gpt2'  # its table is tied
  result = convert(FOLDER / name, tmp_path / 'new', *NEW)
  assert result.returncode == 0 and '2 rows added: mean of 60 rows' in result.stdout, result.stderr
  checkpoint.import_checkpoint(FOLDER / name, tmp_path / 'old')
  old, new = (lm.load(tmp_path / each) for each in ('old', 'new'))
  ids = np.random.default_rng(0).integers(0, 60, (2, 12))
  logits, found = old.logits(ids), new.logits(ids)
  assert found.shape[-1] == 62
  np.testing.assert_allclose(found[..., :60], logits, atol=1e-5)
  mean = np.asarray(logits).mean(-1, keepdims=True)
  np.testing.assert_allclose(found[..., 60:], mean.repeat(2, -1), atol=1e-4)
  assert [new.tokenizer.token_to_id(token) for token in NEW] == [60, 61]
  # As an input, too, it is the mean.
  table = np.asarray(new.params['embedding'])
  np.testing.assert_allclose(table[60:], table[:60].mean(0)[None].repeat(2, 0), atol=1e-6)
  checkpoint.export_run(tmp_path / 'new', tmp_path / 'out')
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert config == json.loads((FOLDER / name / 'config.json').read_text()) | {'vocab_size': 62}
  again = checkpoint.open_source(tmp_path / 'out')
  assert again.tokenizer.get_vocab() == new.tokenizer.get_vocab()
  shapes = {k: t.shape for k, t in safetensors.read_folder(FOLDER / name).items()}
  assert {k: (60, *s[1:]) if s[0] == 62 else s for k, s in again.shapes.items()} == shapes


def test_unused_rows_are_taken_first(tmp_path):
  """The vocabulary of many checkpoints is padded: Qwen 2 has 271 rows without tokens."""
  folder = pathlib.Path(shutil.copytree(FOLDER / 'llama', tmp_path / 'llama'))
  tokenizer = json.loads((folder / 'tokenizer.json').read_text())
  for token in sorted(tokenizer['model']['vocab'], key=tokenizer['model']['vocab'].get)[-3:]:
    del tokenizer['model']['vocab'][token]
  (folder / 'tokenizer.json').write_text(json.dumps(tokenizer))
  checkpoint.import_checkpoint(folder, tmp_path / 'old')
  checkpoint.import_checkpoint(folder, tmp_path / 'new', new_tokens=NEW)
  for name in ('embedding', 'unembedding'):
    old, new = (np.asarray(lm.load(tmp_path / each).params[name]) for each in ('old', 'new'))
    np.testing.assert_array_equal(np.delete(new, [57, 58], 0), np.delete(old, [57, 58], 0))
    np.testing.assert_allclose(new[57:59], old[:57].mean(0)[None].repeat(2, 0), atol=1e-6)


@pytest.mark.parametrize(
  ('tokens', 'message'),
  [
    (['<|user|>', ''], "the token '' is empty"),
    (['<|user|>', '<|user|>'], "the token '<|user|>' occurs twice"),
    (['<|endoftext|>'], "the token '<|endoftext|>' exists already"),
  ],
)
def test_tokens_that_cannot_be_added_are_refused(tokens, message, tmp_path):
  result = convert(FOLDER / 'llama', tmp_path / 'run', *tokens)
  assert result.returncode == 2 and message in result.stderr
  assert not (tmp_path / 'run').exists()


def test_transformers_knows_the_new_tokens(tmp_path):
  transformers = pytest.importorskip('transformers')
  checkpoint.import_checkpoint(FOLDER / 'llama', tmp_path / 'run', new_tokens=NEW)
  checkpoint.export_run(tmp_path / 'run', tmp_path / 'out')
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  assert tokenizer('<|user|>!', add_special_tokens=False)['input_ids'][0] == 60
  model, report = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'out', output_loading_info=True
  )
  assert not any(report.values()) and model.get_input_embeddings().weight.shape[0] == 62


def text_only(folder):
  """Writes the Gemma 3 as the text model of one for images and texts."""
  shutil.copytree(FOLDER / 'gemma3_text', folder)
  config = json.loads((folder / 'config.json').read_text())
  nested = {'model_type': 'gemma3', 'architectures': ['Gemma3ForConditionalGeneration']}
  (folder / 'config.json').write_text(json.dumps(nested | {'text_config': config}))
  return folder


def test_the_text_model_of_a_gemma_3_is_enlarged(tmp_path):
  result = convert(text_only(tmp_path / 'gemma3'), tmp_path / 'new', *NEW)
  assert result.returncode == 0 and '2 rows added' in result.stdout, result.stderr
  run = lm.load(tmp_path / 'new')
  assert run.model.vocab_size == 62 and len(run.params['embedding']) == 62
  kept = json.loads((tmp_path / 'new/pretrained/config.json').read_text())
  assert kept['text_config']['vocab_size'] == 62


def with_token(folder, special, **changes):
  """Writes a Llama whose tokenizer has a token without a row."""
  shutil.copytree(FOLDER / 'llama', folder)
  tokenizer = json.loads((folder / 'tokenizer.json').read_text())
  form = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
  token = {'id': 60, 'content': '<mask>', 'special': special, **form}
  tokenizer['added_tokens'].append(token)
  (folder / 'tokenizer.json').write_text(json.dumps(tokenizer | changes))
  return folder


def test_a_special_token_without_a_row_is_left_out_and_exported_again(tmp_path):
  folder = with_token(tmp_path / 'llama', special=True)
  result = convert(folder, tmp_path / 'run')
  assert result.returncode == 0 and 'without <mask>' in result.stdout, result.stderr
  run = lm.load(tmp_path / 'run')
  assert run.tokenizer.token_to_id('<mask>') is None and len(run.tokenizer.get_vocab()) == 60
  checkpoint.export_run(tmp_path / 'run', tmp_path / 'out')
  name = 'tokenizer.json'
  assert (tmp_path / 'out' / name).read_bytes() == (folder / name).read_bytes()


def test_other_tokens_without_a_row_are_refused(tmp_path):
  result = convert(with_token(tmp_path / 'llama', special=False), tmp_path / 'run')
  assert result.returncode == 2 and 'its tokenizer has 61 tokens' in result.stderr
  piece = {'SpecialToken': {'id': '<mask>', 'type_id': 0}}
  framed = {
    'type': 'TemplateProcessing',
    'single': [piece, {'Sequence': {'id': 'A', 'type_id': 0}}],
    'pair': [{'Sequence': {'id': name, 'type_id': 0}} for name in 'AB'],
    'special_tokens': {'<mask>': {'id': '<mask>', 'ids': [60], 'tokens': ['<mask>']}},
  }
  folder = with_token(tmp_path / 'framed', special=True, post_processor=framed)
  assert 'its tokenizer has 61 tokens' in convert(folder, tmp_path / 'run').stderr
