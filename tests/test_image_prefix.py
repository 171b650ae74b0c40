"""A decoder that reads images names them: features of arrays, init from a row, and its prompts."""

import json
import pathlib

import jax
import numpy as np
import pytest

import lm
from lm.parallel.host import Never
from lm.training import trainer
from lm.workdir import experiment
from lm.workdir.run_data import metrics_at

FILE = pathlib.Path(__file__).parent.parent / 'experiments/image_prefix.py'


pytestmark = pytest.mark.slow  # trains 100 steps and generates, 15 s


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  config = experiment.load(str(FILE))
  config.steps = config.eval.every = config.checkpoint.every = 100
  config.batch_size, config.model.depth = 8, 1
  config.optim.warmup_steps, config.optim.learning_rate = 10, 5e-3
  config.eval.evaluators = ('lm.evaluation.sets:sets',)
  config.report = ''
  folder = tmp_path_factory.mktemp('images') / 'run'
  trainer.train(config, str(FILE), folder, Never())
  return folder


def test_a_decoder_names_images_and_not_shuffled_ones(workdir):
  values = metrics_at(workdir, 100)
  named, shuffled = (values[f'eval/{s}/exact_match'] for s in ('validation', 'shuffled'))
  assert named > 0.35 and shuffled < 0.25 and named > 2 * shuffled
  assert values['eval/shuffled/loss'] > 1.5 * values['eval/validation/loss']


def test_a_workdir_knows_its_row_and_loads(workdir):
  row = json.loads((workdir / 'data.json').read_text())['row']
  assert row['patches'] == ['uint8', 64, 16]
  run = lm.load(workdir)
  assert run.params['decoder']['patches']['kernel'].shape == (16, 64)
  ids = np.arange(32).reshape(2, 16)
  assert run.logits(ids).shape == (2, 16, run.model.vocab_size)
  assert jax.tree.all(jax.tree.map(lambda x: np.isfinite(x).all(), run.params))
