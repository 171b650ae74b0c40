"""Fine-tuning: what a config takes from a run, and what stays its own."""

import pytest

from lm.config.base import base, encoder, encoder_decoder, gpt2
from lm.config.pretraining import masked
from lm.config.tasks import classification
from lm.errors import UserError
from lm.text import tokenizers
from lm.workdir import experiment
from lm.workdir.fine_tuning import start_from


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


def test_wrong_runs_are_refused(write, tmp_path):
  with pytest.raises(UserError, match=r"no run in 'nowhere' \(config\.json is missing\)"):
    start_from(task(), 'nowhere')
  run = base()
  run.model = gpt2(depth=1, d_model=8, heads=1, context=8)
  with pytest.raises(UserError, match=r"is 'lm\.models\.transformer:Decoder', and this config"):
    start_from(task(), write(run))
