"""Runs that were not imported come back with the same logits from what they export."""

import json
import pathlib

import flax.linen as nn
import in_process
import jax
import numpy as np
import pytest
import tokenizers as reference
from ml_collections.config_dict import placeholder

import lm
from lm import components
from lm.config import recurrent
from lm.config.base import base, gpt2, llama
from lm.decode.stream import prompt_encoder
from lm.errors import UserError
from lm.pretrained import checkpoint, configs, families, section
from lm.text import tokenizers
from lm.workdir import experiment, run_data
from lm.workdir.write import write_workdir

BERT = pathlib.Path(__file__).parent / 'checkpoints' / 'bert'
TOKENIZER = tokenizers.bytes([])
SMALL = {'depth': 2, 'd_model': 16, 'heads': 4, 'context': 24}
LLAMA = llama(**SMALL, kv_heads=2, d_mlp=24)
MODELS = {
  'gpt2': (gpt2(**SMALL), {}),
  'gpt2_padded': (gpt2(**SMALL), {'vocab_multiple': 32, 'dropout': 0.1, 'd_mlp': 40}),
  'gpt2_relu': (
    gpt2(**SMALL),
    {'mlp': 'lm.nn.layers:Mlp(activation="jax.nn:relu")', 'vocab_size': 300},
  ),
  'gpt2_untied': (gpt2(**SMALL), {'tie_embeddings': False}),
  'llama': (LLAMA, {}),
  'llama_biases': (LLAMA, {'bias': True}),
  'llama_tied': (LLAMA, {'tie_embeddings': True, 'head_dim': 8, 'kv_heads': 1}),
  'llama_linear': (LLAMA, {'position': 'lm.nn.position:rope_linear(theta=500.0, factor=4.0)'}),
  'llama_31': (
    LLAMA,
    {
      'position': 'lm.nn.position:rope_llama3(theta=500.0, factor=4.0, low=1.0, high=4.0, '
      'original_context=16)'
    },
  ),
  'llama_yarn': (
    LLAMA,
    {'position': 'lm.nn.position:rope_yarn(theta=500.0, factor=4.0, original_context=16)'},
  ),
  'mistral': (LLAMA, {'attention_layer': 'lm.nn.layers:Attention(window=8)'}),
  'qwen2': (LLAMA, {'attention_layer': 'lm.nn.layers:Attention(qkv_bias=True)'}),
  'qwen3': (
    LLAMA,
    {'attention_layer': 'lm.nn.layers:Attention(qk_norm="lm.nn.layers:RMSNorm")'},
  ),
}


def config_of(name, **more):
  model, changes = MODELS[name]
  config = base()
  with config.unlocked():
    config.model = model.copy_and_resolve_references()
    config.model.update(changes | more)
    if 'd_mlp' in changes | more:
      config.model.d_mlp = (changes | more)['d_mlp']
  config.data.seq_len = SMALL['context']
  return config


def write_run(workdir, config, tokenizer=TOKENIZER):
  """Writes a run of random parameters, so large that each of them changes the output."""
  model = components.model(config, tokenizers.vocabulary_size(tokenizer))
  init = components.init_of(model, SMALL['context'])
  rng = np.random.default_rng(0)
  shapes = nn.unbox(jax.eval_shape(init, jax.random.key(0)))
  params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), shapes)
  write_workdir(workdir, config, tokenizer, params)


def write_metrics(run, **metrics):
  """Gives the run evaluations of step 0."""
  names = {f'eval/validation/{name}': value for name, value in metrics.items()}
  run_data.write_directions(run, dict.fromkeys(names, False))
  (run / 'metrics.jsonl').write_text(json.dumps({'step': 0, **names}) + '\n')


@pytest.mark.parametrize('name', MODELS)
def test_the_config_of_a_model_gives_the_model_back(name):
  model = config_of(name, vocab_size=300).model
  found, family = configs.config_of(model)
  assert found['model_type'] == name.partition('_')[0] and found['vocab_size'] == 300
  again = families.family_of(found).model
  assert family.model == again and section.differences(model, again) == []
  assert again.position == config_of(name).model.position or 'rope' in again.position


@pytest.fixture(scope='module', params=['gpt2_padded', 'llama_tied'])
def exported(request, tmp_path_factory):
  """Returns the workdir of a run and the folder that it exports."""
  folder = tmp_path_factory.mktemp('export')
  write_run(folder / 'run', config_of(request.param))
  write_metrics(folder / 'run', loss=1.25)
  assert 'step 0, the best by' in checkpoint.export_run(folder / 'run', folder / 'out')
  return folder / 'run', folder / 'out'


def test_an_export_comes_in_again_with_equal_logits(exported, tmp_path):
  workdir, out = exported
  checkpoint.import_checkpoint(out, tmp_path / 'again')
  run, again = lm.load(workdir), lm.load(tmp_path / 'again')
  ids = np.random.default_rng(1).integers(0, 257, (2, SMALL['context']))
  logits = [each.logits(ids)[..., :257] for each in (run, again)]  # without the padding of a table
  np.testing.assert_allclose(*logits, atol=1e-5)
  assert np.std(logits[0]) > 0.1


def test_the_files_of_an_export_say_what_the_run_knows(exported):
  workdir, out = exported
  run = lm.load(workdir)
  prompt = reference.Tokenizer.from_file(str(out / 'tokenizer.json')).encode('héllo <|end|>'[:6])
  assert prompt.ids == prompt_encoder(run.tokenizer)('héllo ')
  ends = {'bos_token_id': 0, 'eos_token_id': 0}
  assert json.loads((out / 'generation_config.json').read_text()) == ends
  assert json.loads((out / 'tokenizer_config.json').read_text())['eos_token'] == '<|end|>'
  card = (out / 'README.md').read_text()
  assert '| eval/validation/loss | 1.25 |' in card and 'Step: 0' in card and '# run' in card


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'position': 'lm.nn.position:alibi'},
      "model.position='lm.nn.position:alibi' (gpt2: 'lm.nn.position:learned'): no family has it",
    ),
    ({'embed_scale': 4.0}, 'model.embed_scale=4.0 (gpt2: 1.0): no family has it'),
    ({'logit_soft_cap': 5.0}, 'model.logit_soft_cap=5.0 (gpt2: None): no family has it'),
    ({'kv_heads': 2}, 'model.kv_heads=2 (gpt2: 4): no family has it'),
    ({'block_layout': 'lm.nn.layers:post_norm'}, "model.block_layout='lm.nn.layers:post_norm' ("),
    (
      {'attention_layer': 'lm.nn.layers:Attention(qk_norm="lm.nn.layers:RMSNorm(epsilon=1e-3)")'},
      'no family has it',
    ),
    ({'mlp': 'lm.nn.layers:Mlp(activation="jax.nn:tanh")'}, 'no family has it'),
    ({'fn': 'lm.models.transformer:Encoder'}, "model.fn='lm.models.transformer:Encoder' (gpt2: "),
  ],
)
def test_what_no_family_has_is_refused_by_key(changes, message):
  with pytest.raises(UserError) as error:
    configs.config_of(config_of('gpt2', vocab_size=300, **changes).model)
  assert message in str(error.value)


@pytest.fixture
def run(tmp_path):
  """A run that was not imported."""
  write_run(tmp_path / 'run', config_of('gpt2'))
  return tmp_path / 'run'


def test_a_refusal_is_one_line_and_leaves_nothing(run):
  change_model(run, {'position': 'lm.nn.position:alibi'})
  assert "model.position='lm.nn.position:alibi' (gpt2: " in refused(run)


def change_model(workdir, changes):
  config = json.loads((workdir / 'config.json').read_text())
  config['model'] |= changes
  (workdir / 'config.json').write_text(json.dumps(config))


def refused(workdir):
  out = workdir.parent / 'out'
  result = in_process.run('convert', 'to_hf', f'--workdir={workdir}', f'--out={out}')
  assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
  assert not out.exists() and not list(workdir.parent.glob('*.tmp'))
  return result.stderr


def test_a_model_without_relatives_is_refused():
  model = recurrent.recurrent(d_model=8, d_hidden=8, depth=1, context=8)
  with pytest.raises(UserError, match=r"model\.fn='lm\.models\.recurrent:.*': no family has it"):
    configs.config_of(model)


def test_bidirectional_attention_over_inputs_is_refused(run):
  config = json.loads((run / 'config.json').read_text())
  config['data']['converter'] = 'lm.tasks.seq2seq:decoder'
  (run / 'config.json').write_text(json.dumps(config))
  assert 'attends to inputs in both directions' in refused(run)


def test_a_tokenizer_larger_than_the_model_is_refused(run):
  change_model(run, {'vocab_size': 200})
  assert 'model.vocab_size=200: the tokenizer of' in refused(run)


def test_an_imported_run_whose_model_was_changed_is_refused(exported, tmp_path):
  _, out = exported
  checkpoint.import_checkpoint(out, tmp_path / 'run')
  change_model(tmp_path / 'run', {'dropout': 0.5, 'remat_policy': None})
  checkpoint.export_run(tmp_path / 'run', tmp_path / 'same')
  change_model(tmp_path / 'run', {'embed_scale': 2.0})
  assert 'model.embed_scale=2.0 is not that of pretrained/config.json' in refused(tmp_path / 'run')


def test_dropout_of_attention_weights_is_exported():
  model = gpt2(**SMALL)
  model.vocab_size, model.attention_layer = 300, 'lm.nn.layers:Attention(dropout=0.2)'
  assert configs.config_of(model)[0]['attn_pdrop'] == 0.2


HEADS = {
  'BertForSequenceClassification': (
    'lm.nn.heads:pooled',
    'lm.nn.pooling:first',
    'lm.tasks.text:classification(fields=("title",))',
    'lm.tasks.classification:classifier(special_tokens="template")',
  ),
  'BertForTokenClassification': (
    None,
    None,
    'lm.tasks.text:tagging',
    'lm.tasks.classification:tagger(special_tokens="template")',
  ),
}


def fine_tuned(folder, architecture, **data):
  """Writes a run that was fine-tuned from a BERT without a head; returns its export."""
  checkpoint.import_checkpoint(BERT, folder / 'bert')
  config = base()
  head, pooling, task, converter = HEADS[architecture]
  with config.unlocked():
    config.model = experiment.read_config(folder / 'bert').model
    for key, value, kind in (('head', head, str), ('pooling', pooling, str)):
      config.model[key] = placeholder(kind) if value is None else value
    config.model.num_classes = placeholder(int)
    config.data.update({'task': task, 'converter': converter, 'labels': ('x', 'y', 'z')} | data)
  config.data.seq_len = config.model.context
  config.warm_start.workdir = str(folder / 'bert')
  tokenizer = experiment.read_tokenizer(folder / 'bert')
  write_run(folder / 'run', config, tokenizer)
  checkpoint.export_run(folder / 'run', folder / 'out')
  return folder / 'out'


@pytest.mark.parametrize('architecture', HEADS)
def test_a_fine_tuned_run_is_exported_with_its_head_and_labels(architecture, tmp_path):
  out = fine_tuned(tmp_path, architecture)
  described = json.loads((out / 'config.json').read_text())
  assert described['architectures'] == [architecture]
  assert described['id2label'] == {'0': 'x', '1': 'y', '2': 'z'}
  assert (out / 'tokenizer.json').read_bytes() == (BERT / 'tokenizer.json').read_bytes()
  checkpoint.import_checkpoint(out, tmp_path / 'again')
  run, again = lm.load(tmp_path / 'run'), lm.load(tmp_path / 'again')
  jax.tree.map(np.testing.assert_array_equal, run.params, again.params)
  assert again.config.data.labels == ('x', 'y', 'z')


def test_a_head_that_the_family_lacks_is_refused(tmp_path):
  with pytest.raises(UserError, match='no family has it'):
    fine_tuned(
      tmp_path,
      'BertForSequenceClassification',
      converter='lm.tasks.classification:tagger(special_tokens="template")',
    )


@pytest.mark.parametrize('architecture', HEADS)
def test_transformers_loads_a_fine_tuned_run(architecture, tmp_path):
  torch, transformers = map(pytest.importorskip, ('torch', 'transformers'))
  out = fine_tuned(tmp_path, architecture)
  model, report = getattr(transformers, architecture).from_pretrained(out, output_loading_info=True)
  assert not any(report.values()), report
  ids = np.random.default_rng(1).integers(0, 60, (2, 12))
  with torch.no_grad():
    expected = model.eval()(torch.tensor(ids)).logits.numpy()
  found = np.asarray(lm.load(tmp_path / 'run').logits(ids))
  np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=2e-5)


@pytest.mark.parametrize('name', MODELS)
def test_transformers_loads_an_export_with_equal_logits(name, tmp_path):
  torch, transformers = map(pytest.importorskip, ('torch', 'transformers'))
  write_run(tmp_path / 'run', config_of(name))
  checkpoint.export_run(tmp_path / 'run', tmp_path / 'out')
  model, report = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'out', output_loading_info=True
  )
  assert not any(report.values()), report
  ids = np.random.default_rng(1).integers(0, 257, (2, SMALL['context']))
  with torch.no_grad():
    expected = model.eval()(torch.tensor(ids)).logits.numpy()
  found = lm.load(tmp_path / 'run').logits(ids)[..., : expected.shape[-1]]
  np.testing.assert_allclose(found, expected, atol=2e-5)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  text = 'Hello, wörld!'
  assert tokenizer(text)['input_ids'] == prompt_encoder(TOKENIZER)(text)
  assert tokenizer.decode(tokenizer(text)['input_ids'], skip_special_tokens=True) == text
  assert tokenizer.eos_token_id == model.config.eos_token_id == 0
