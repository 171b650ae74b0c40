"""Tiny models with random parameters, opened as `lm.load` opens a run."""

import pathlib

import pytest

from lm import components
from lm.config import base as configs
from lm.evaluation.trained_model import TrainedModel
from lm.text.tokenizers import SEPARATOR, characters, with_special_tokens
from lm.types import apply_of

LETTERS = 'abcdefgh é?'


@pytest.fixture(scope='session')
def asked(params_of):
  """Makes a tiny model with random parameters that does a task."""

  def make(task, converter, model=configs.encoder, seed=3, special=(SEPARATOR,), **changes):
    config = configs.base()
    with config.unlocked():
      config.model = model(depth=1, d_model=16, heads=2, context=24)
    config.data.seq_len = config.data.source_len = 24
    config.data.task, config.data.converter = task, converter
    config.update_from_flattened_dict(changes)
    tokenizer = with_special_tokens(characters([LETTERS] * 2), list(special))
    module = components.model(config, tokenizer.get_vocab_size())
    params = params_of(module, seed=seed)
    apply = apply_of(module)
    return TrainedModel(pathlib.Path('run'), config, tokenizer, module, None, params, apply, 0)

  return make
