"""Fine-tuning: what a config takes from a run, and what stays its own."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from lm import components
from lm.config.base import base, encoder, encoder_decoder, gpt2
from lm.config.pretraining import masked
from lm.config.recurrent import recurrent
from lm.config.tasks import classification
from lm.errors import UserError
from lm.text import tokenizers
from lm.workdir import experiment
from lm.workdir.fine_tuning import reads_left_to_right, start_from


@pytest.fixture
def write(tmp_path):
  """Returns a function that writes the config and the tokenizer of a run."""

  def run(config, name='run'):
    folder = tmp_path / name
    folder.mkdir()
    (folder / 'config.json').write_text(experiment.to_json(config))
    (folder / 'tokenizer.json').write_text(tokenizers.bytes([]).to_str())
    return str(folder)

  return run


def pretrained(position='lm.nn.position:rope'):
  config = base()
  config.model = encoder(depth=3, d_model=48, heads=3, context=128)
  config.model.position, config.model.dropout = position, 0.1
  return masked(config)


def task():
  config = base()
  config.model = encoder(depth=1, d_model=8, heads=1, context=8)
  return classification(config, ('a', 'b'), 'dev')


def test_classifier_has_the_sizes_of_the_run_and_its_own_head(write):
  config = start_from(task(), workdir := write(pretrained()))
  assert (config.model.depth, config.model.d_model, config.model.dropout) == (3, 48, 0.1)
  assert config.model.head is None
  assert config.model.pooling == 'lm.nn.pooling:mean'
  assert config.model.num_classes is None
  config.model.num_classes, config.model.head = 2, 'lm.nn.heads:pooled'  # their types are kept
  assert config.warm_start.workdir == workdir
  assert config.warm_start.rules == ('^(head|pooler)/ ->',)
  assert config.data.tokenizer.file == f'{workdir}/tokenizer.json'


def test_rows_may_be_longer_without_a_table_of_positions(write):
  config = start_from(task(), write(pretrained()))
  config.data.seq_len = 384
  assert config.model.context == 384
  config = start_from(task(), write(pretrained('lm.nn.position:learned'), 'learned'))
  config.data.seq_len = 384
  assert config.model.context == 128


def test_head_is_kept_for_the_same_objective(write):
  config = start_from(pretrained(), write(pretrained()), keep_head=True)
  assert config.model.head == 'lm.nn.heads:masked'
  assert config.warm_start.rules == ()


def test_head_of_the_same_function_keeps_its_arguments(write):
  run, config = pretrained(), task()
  run.model.head = 'lm.nn.heads:pooled(activation="jax.nn:gelu")'
  config.model.head = 'lm.nn.heads:pooled'
  config = start_from(config, write(run))
  config.data.seq_len = 384
  assert config.model.context == 384  # no table of positions
  assert config.model.head == run.model.head
  assert config.warm_start.rules == ('^head/ ->',)  # and its dense layer


def test_encoder_decoder_reads_both_lengths(write):
  run = base()
  run.model = encoder_decoder(depth=1, d_model=16, heads=2, context=128)
  config = base()
  config.model = encoder_decoder(depth=2, d_model=8, heads=2, context=8)
  config.data.seq_len, config.data.source_len = 64, 512
  config = start_from(config, write(run))
  assert (config.model.depth, config.model.context) == (1, 512)
  assert config.warm_start.rules == ()


@pytest.mark.parametrize('share', [True, False])
def test_encoder_of_an_encoder_decoder_classifies(write, share):
  run = base()
  run.model = encoder_decoder(depth=1, d_model=16, heads=2, context=128)
  run.model.encoder_depth, run.model.share_embeddings = 3, share
  config = start_from(task(), write(run))
  assert (config.model.fn, config.model.depth) == ('lm.models.transformer:Encoder', 3)
  assert config.model.embed_scale == 4.0
  assert not reads_left_to_right(config)
  renamed = () if share else ('^embedding$ -> source_embedding',)
  assert config.warm_start.rules == ('^(head|pooler)/ ->', *renamed)
  parameters(config)


def test_layers_of_a_decoder_classify(write):
  """The states are those of the decoder, in packed rows too."""
  run = base()
  run.model = gpt2(depth=2, d_model=16, heads=2, context=128)
  config = start_from(task(), write(run))
  assert reads_left_to_right(config)
  decoder = components.model(run, 257)
  batch = {
    'inputs': jnp.arange(32).reshape(2, 16),
    'segments': jnp.array([[1] * 9 + [2] * 5 + [0] * 2, [1] * 16]),
    'positions': jnp.array([[*range(9), *range(5), 0, 0], [*range(16)]]),
    'examples': jnp.zeros((2, 3), jnp.int32),
  }
  params = nn.unbox(decoder.init(jax.random.key(1), batch)['params'])
  taken = renamed(config, params, parameters(config))
  config.model.pooling, config.model.head = None, 'lm.nn.heads:none'
  got = components.model(config, 257).apply({'params': taken}, batch).hidden
  want = decoder.apply({'params': params}, batch).hidden
  real = batch['segments'] > 0
  np.testing.assert_allclose(got[real], want[real], atol=1e-5)
  config.model.causal = False
  assert not reads_left_to_right(config)
  got = components.model(config, 257).apply({'params': taken}, batch).hidden
  assert np.abs(got - want)[:, 0].min(axis=-1).max() > 1e-3  # the first token knows the last one


def test_layers_of_a_recurrent_decoder_classify(write):
  run = base()
  run.model = recurrent(d_model=8, d_hidden=12, depth=2, context=128)
  config = task()
  config.model.head = 'lm.nn.heads:pooled'
  config = start_from(config, write(run))
  config.data.seq_len = 384
  assert config.model.context == 384  # no table of positions
  assert reads_left_to_right(config)
  decoder = components.model(run, 257)
  batch = {
    'inputs': jnp.arange(16).reshape(1, 16),
    'segments': jnp.array([[1] * 9 + [2] * 7]),
    'positions': jnp.array([[*range(9), *range(7)]]),
    'examples': jnp.zeros((1, 2), jnp.int32),
  }
  params = nn.unbox(decoder.init(jax.random.key(1), batch)['params'])
  shapes = parameters(config)
  config.model.head = config.model.pooling = None
  config.data.labels = ()
  config.model.tie_embeddings = False  # the states themselves are the output
  taken = renamed(config, params, shapes)
  taken |= {'unembedding': jnp.zeros((257, 12)), 'bias': jnp.zeros(257)}
  got = components.model(config, 257).apply({'params': taken}, batch).hidden
  want, x = decoder.apply({'params': params}, batch).hidden, params['out']['kernel']
  np.testing.assert_allclose(got @ x, want, atol=1e-5)


def parameters(config):
  """Returns the shapes of the parameters of a config by path."""
  init = components.init_of(components.model(config, 257), 16)
  return flatten_dict(nn.unbox(jax.eval_shape(init, jax.random.key(0))), sep='/')


def renamed(config, params, wanted):
  """Returns the parameters of a run under the paths of another, by the rules of its warm start."""
  there, found = flatten_dict(params, sep='/'), {}
  for path in wanted:
    source = path
    for rule in config.warm_start.rules:
      pattern, _, name = (part.strip() for part in rule.partition('->'))
      if re.search(pattern, path):
        source = name and re.sub(pattern, name, path)
        break
    if source:
      found[path] = there[source]
      assert found[path].shape == wanted[path].shape
  return unflatten_dict(found, sep='/')


def test_wrong_runs_are_refused(write, tmp_path):
  with pytest.raises(UserError, match=r"no run in 'nowhere' \(config\.json is missing\)"):
    start_from(task(), 'nowhere')
  run = base()
  run.model = gpt2(depth=1, d_model=8, heads=1, context=8)
  with pytest.raises(UserError, match=r"is 'lm\.models\.transformer:Decoder', and this config"):
    start_from(pretrained(), write(run), keep_head=True)
  run.model.fn = 'lm.models.ngram:NGram'
  with pytest.raises(
    UserError, match=r"is 'lm\.models\.ngram:NGram'; this config needs an encoder"
  ):
    start_from(task(), write(run, 'ngram'))
