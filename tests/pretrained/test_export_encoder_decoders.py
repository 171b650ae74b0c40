"""Encoder-decoders that were not imported export as PEGASUS, Marian, BART, mBART or T5."""

import importlib
import json

import jax
import numpy as np
import pytest
import tokenizers as reference
from ml_collections.config_dict import placeholder
from round_trip import equal_tensors
from test_export import write_run

import lm
from lm.config.base import base, encoder_decoder
from lm.config.tasks import translation
from lm.data import features
from lm.decode.batch import generate_batch
from lm.errors import UserError
from lm.evaluation.predict import decode_config
from lm.pretrained import checkpoint, configs, section
from lm.text import tokenizers

SMALL = {'depth': 2, 'd_model': 16, 'heads': 4, 'context': 24}
RELU = 'lm.nn.layers:Mlp(activation="jax.nn:relu")'
POST_NORM = {'block_layout': 'lm.nn.layers:post_norm', 'final_norm': False}
LEARNED = {
  'position': 'lm.nn.position:learned(offset=2)',
  'input_layer': 'lm.nn.embedding:normed(norm="lm.nn.layers:LayerNorm")',
}
T5 = {
  'attention_layer': 'lm.nn.layers:Attention(scale=1.0)',
  'cross_attention': 'lm.nn.layers:Attention(scale=1.0)',
  'position': 'lm.nn.position:relative(buckets=8, max_distance=12)',
  'norm': 'lm.nn.layers:RMSNorm',
  'bias': False,
  'embed_scale': 1.0,
}
MODELS = {
  'pegasus': {},
  'pegasus_depths': {'depth': 1, 'encoder_depth': 3, 'vocab_multiple': 32, 'mlp': RELU},
  'marian': {**POST_NORM, 'head': 'lm.nn.heads:biased'},
  'bart': {**POST_NORM, **LEARNED, 'embed_scale': 1.0},
  'mbart': LEARNED,
  't5': {**T5, 'head_dim': 6, 'head': 'lm.nn.heads:scaled(by=0.25)', 'mlp': RELU},
  't5_gated': {
    **T5,
    'tie_embeddings': False,
    'mlp': 'lm.nn.layers:GatedMlp(activation="lm.nn.layers:gelu")',
  },
  't5_exact': {**T5, 'mlp': 'lm.nn.layers:GatedMlp(activation="jax.nn:gelu(approximate=False)")'},
}
TEXTS = ['abc ba', 'c a b d']


def tokenizer():
  return tokenizers.characters(['abcd '])


def config_of(name, **more):
  """Returns a translation experiment with a model."""
  config = base()
  with config.unlocked(), config.ignore_type():
    config.model = encoder_decoder(**SMALL)
    config.model.update(MODELS[name] | more)
    config.model = config.model.copy_and_resolve_references()
  translation(config, 'en', 'validation')
  config.data.seq_len = config.data.source_len = SMALL['context']
  config.log.sample_prompts = ()
  return config


def write(folder, name):
  config = config_of(name)
  write_run(folder / 'run', config, tokenizer())
  checkpoint.export_run(folder / 'run', folder / 'out')
  return config


def read_json(file):
  return json.loads(file.read_text('utf-8'))


def described(model):
  """Returns the config.json of a model section, after checks that it gives the section back."""
  with model.unlocked():
    model.update({'vocab_size': 300, 'encoder_depth': model.encoder_depth or model.depth})
  found, family = configs.config_of(model, 'lm.tasks.seq2seq:encoder_decoder')
  assert section.differences(model, family.model) == []
  return found


@pytest.mark.parametrize('name', MODELS)
def test_the_config_of_a_model_gives_the_model_back(name):
  assert described(config_of(name).model)['model_type'] == name.partition('_')[0]


def test_an_encoder_of_t5_has_its_own_architecture():
  model = config_of('t5', head='lm.nn.heads:none').model
  with model.unlocked():
    model.fn = 'lm.models.transformer:Encoder'
    for key in ('cross_attention', 'share_embeddings', 'encoder_depth'):
      del model[key]
    model.update({'vocab_size': 300, 'num_classes': placeholder(int), 'pooling': placeholder(str)})
  found, family = configs.config_of(model)
  assert found['architectures'] == ['T5EncoderModel'] and family.model.heads == 4
  assert not any(entry.path.startswith('decoder') for entry in family.entries)


@pytest.mark.parametrize(
  'name', ['dates', 'multi30k_de_en', 'multi30k_multilingual', 'tatoeba_zh_en', 'wmt14_en_de']
)
def test_experiments_of_translation_are_models_of_pegasus(name):
  model = importlib.import_module(f'experiments.{name}').get_config().model
  assert described(model.copy_and_resolve_references())['model_type'] == 'pegasus'


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'position': 'lm.nn.position:rope'}, "(pegasus: 'lm.nn.position:sinusoidal')"),
    ({'share_embeddings': False}, 'model.share_embeddings=False (pegasus: True): '),
    ({'head_dim': 8}, 'model.head_dim=8 (pegasus: 4): no family has it'),
    (POST_NORM | LEARNED | {'embed_scale': 3.0}, 'model.embed_scale=3.0 (bart: 4.0): '),
    (T5 | {'mlp': 'lm.nn.layers:Mlp(activation="jax.nn:tanh")'}, 'model.mlp='),
    (MODELS['t5'] | {'bias': True}, 'model.bias=True (t5: False)'),
  ],
)
def test_what_no_encoder_decoder_has_is_refused_by_key(changes, message):
  with pytest.raises(UserError) as error:
    described(config_of('pegasus', **changes).model)
  assert message in str(error.value) and '\n' not in str(error.value)


def test_a_target_has_at_most_two_first_tokens():
  model = config_of('pegasus', vocab_size=9, encoder_depth=2).model
  start = 'lm.tasks.seq2seq:encoder_decoder(start={})'
  found, _ = configs.config_of(model, start.format((5, 6)))
  assert (found['decoder_start_token_id'], found['forced_bos_token_id']) == (5, 6)
  with pytest.raises(UserError, match=r'data\.converter=.*start=\(5, 6, 7\).* \(pegasus: '):
    configs.config_of(model, start.format((5, 6, 7)))


def slow_unless(*default):
  return [n if n in default else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]


@pytest.mark.parametrize('name', slow_unless('pegasus_depths'))
def test_an_export_comes_in_again_as_the_same_model(name, tmp_path):
  """Equal model sections and equal parameters give equal logits."""
  config = write(tmp_path, name)
  assert read_json(tmp_path / 'out' / 'config.json')['decoder_start_token_id'] == 0
  generation = read_json(tmp_path / 'out' / 'generation_config.json')
  assert generation == {
    **dict.fromkeys(('bos_token_id', 'eos_token_id', 'pad_token_id'), 0),
    'decoder_start_token_id': 0,
    'max_length': config.model.context,
    'bad_words_ids': [[1]],  # <unk>
  }
  framed = reference.Tokenizer.from_file(str(tmp_path / 'out' / 'tokenizer.json'))
  assert framed.encode('ab').tokens == ['a', 'b', '<|end|>']
  checkpoint.import_checkpoint(tmp_path / 'out', tmp_path / 'again')
  run, again = lm.load(tmp_path / 'run'), lm.load(tmp_path / 'again')
  padding = {'vocab_size', 'encoder_depth'}  # those of a run follow the tokenizer and `depth`
  assert {*section.differences(run.config.model, again.config.model)} <= padding
  rows = len(tokenizer().get_vocab())
  for path in ('embedding', 'unembedding', 'head_bias'):
    if path in run.params:
      run.params[path] = run.params[path][:rows]
  jax.tree.map(np.testing.assert_array_equal, run.params, again.params)
  assert 'start=(0,), special_tokens=' in again.config.data.converter
  checkpoint.export_run(tmp_path / 'again', tmp_path / 'twice')
  assert equal_tensors(tmp_path / 'out', tmp_path / 'twice')


@pytest.mark.filterwarnings('ignore')  # of transformers
@pytest.mark.parametrize('name', MODELS)
def test_transformers_gives_the_logits_and_greedy_texts_of_the_run(name, tmp_path):
  torch, transformers = map(pytest.importorskip, ('torch', 'transformers'))
  write(tmp_path, name)
  out, run = tmp_path / 'out', lm.load(tmp_path / 'run')
  model, report = transformers.AutoModelForSeq2SeqLM.from_pretrained(out, output_loading_info=True)
  assert not any(report.values()), report
  found = transformers.AutoTokenizer.from_pretrained(out)
  _, converter = features.build_task(run.config.data)
  encode = converter.encode_prompt(run.tokenizer)
  prompts = [encode({'source': text}) for text in TEXTS]
  sources = [prompt.source['source'].tolist() for prompt in prompts]
  batch = found(TEXTS, padding=True, return_tensors='pt')
  mask = batch['attention_mask'].numpy()
  assert [
    ids[:n].tolist() for ids, n in zip(batch['input_ids'], mask.sum(1), strict=True)
  ] == sources
  size = model.config.vocab_size
  decoder_ids = np.random.default_rng(1).integers(0, size, (2, 10))
  with torch.no_grad():
    expected = model.eval()(**batch, decoder_input_ids=torch.tensor(decoder_ids)).logits
    texts = model.generate(**batch, do_sample=False, num_beams=1)
  logits = run.logits(batch['input_ids'].numpy(), mask, decoder_ids)[..., :size]
  np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)
  decode = decode_config(run.config.decode, run.tokenizer, SMALL['context'] - 1)
  ours = generate_batch(run.model, run.apply, run.params, prompts, decode)
  for (text,), ids in zip(ours, texts.tolist(), strict=True):
    ids = ids[1:]
    assert text.tokens == (ids[: ids.index(0)] if 0 in ids else ids)
