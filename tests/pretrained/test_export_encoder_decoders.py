"""Encoder-decoders that were not imported export as PEGASUS, Marian, BART, mBART or T5."""

import json

import jax
import numpy as np
import pytest
import tokenizers as reference
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


def write(folder, name, converter=None, **more):
  config = config_of(name, **more)
  if converter is not None:
    config.data.converter = converter
  write_run(folder / 'run', config, tokenizer())
  checkpoint.export_run(folder / 'run', folder / 'out')
  return config


def read_json(file):
  return json.loads(file.read_text('utf-8'))


@pytest.mark.parametrize('name', MODELS)
def test_an_export_comes_in_again_as_the_same_model(name, tmp_path):
  """Equal model sections and equal parameters give equal logits."""
  write(tmp_path, name)
  assert read_json(tmp_path / 'out' / 'config.json')['model_type'] == name.partition('_')[0]
  checkpoint.import_checkpoint(tmp_path / 'out', tmp_path / 'again')
  run, again = lm.load(tmp_path / 'run'), lm.load(tmp_path / 'again')
  padding = {'vocab_size', 'encoder_depth'}  # those of a run follow the tokenizer and `depth`
  assert {*section.differences(run.config.model, again.config.model)} <= padding
  rows = len(tokenizer().get_vocab())
  for path in ('embedding', 'unembedding', 'head_bias'):
    if path in run.params:
      run.params[path] = run.params[path][:rows]
  jax.tree.map(np.testing.assert_array_equal, run.params, again.params)
  checkpoint.export_run(tmp_path / 'again', tmp_path / 'twice')
  assert equal_tensors(tmp_path / 'out', tmp_path / 'twice')
