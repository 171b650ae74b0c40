"""A value of a config is taken away on the command line by None, where it may be empty."""

import pytest
from ml_collections import ConfigDict

from lm import cli
from lm.config.base import base, encoder_decoder
from lm.errors import UserError


def override(config, *given):
  cli._override(config, argv := [f'--config.{one}' for one in given])
  assert argv == []
  return config


@pytest.mark.parametrize('nothing', ['None', ''])
def test_what_may_be_empty_is_emptied(nothing):
  config = base()
  config.data.task, config.data.count = 'lm.tasks.text:classification', 'lm.data.cooccurrence:count'
  config.optim.freeze_until, config.model.logit_soft_cap = 5, 30.0
  config.init.step = 7
  keys = ('data.task', 'data.count', 'optim.freeze_until', 'model.logit_soft_cap', 'init.step')
  override(config, *(f'{key}={nothing}' for key in keys), 'steps=9')
  assert config.data.task is None and config.data.count is None and config.init.step is None
  assert config.optim.freeze_until is None and config.model.logit_soft_cap is None
  assert config.steps == config.optim.steps == 9
  override(config, 'data.task=lm.tasks.text:tagging', 'model.logit_soft_cap=2')
  assert (config.data.task, config.model.logit_soft_cap) == ('lm.tasks.text:tagging', 2.0)


def test_what_the_function_of_a_section_may_have_empty_is_emptied():
  config = base()
  with config.unlocked():
    config.model = encoder_decoder(2, 16, 2, 8)
  config.model.encoder_depth = 3  # no key of the base config
  override(config, 'model.encoder_depth=None')
  assert config.model.encoder_depth is None
  with config.unlocked():
    config.model = ConfigDict(
      {'fn': 'lm.models.transformer:Encoder', 'pooling': 'lm.nn.pooling:mean'}
    )
  override(config, 'model.pooling=None')
  assert config.model.pooling is None


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ('steps=None', r'--config.steps=None: the key needs a value; it is 1000'),
    ('model.bias=None', r'--config.model.bias=None: the key needs a value; it is True'),
    ('log.prompts=None', r"--config.log.prompts=None: .* it is \('The ',\)"),
    ('optim=None', r'--config.optim=None: the key is a section'),
    ('steps=', r'--config.steps= must be an integer'),
  ],
)
def test_what_always_has_a_value_keeps_it(given, message):
  with pytest.raises(UserError, match=message) as e:
    override(base(), given)
  assert '\n' not in str(e.value)


def test_a_string_may_be_without_characters_or_any_word():
  config = override(base(), 'data.cache=', 'init.workdir=None')
  assert (config.data.cache, config.init.workdir) == ('', 'None')
