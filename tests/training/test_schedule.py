"""The learning rate of a run that is resumed with more steps."""

import pytest

from lm.config import resolve
from lm.config.base import base
from lm.training import diagnostics
from lm.workdir import experiment


def _config(steps, fn='lm.optim.optimizers:linear'):
  config = base()
  config.optim.update(
    {'schedule': fn, 'decay_steps': steps, 'warmup_steps': 0, 'final_lr_fraction': 0.1}
  )
  config.optim.learning_rate = 1.0
  return config


def _jump(config, older, updates):
  optimizer = resolve.call(resolve.build_section(config.optim, 'optim'), 'optim')
  return diagnostics.schedule_jump(config, optimizer, older, updates)


def test_a_finished_decay_that_goes_on_is_lifted_and_said_so():
  rates = _jump(_config(200), 100, 100)
  # A line from 1 to 0.1: at its end, and in the middle of one twice as long.
  assert rates == pytest.approx({'before': 0.1, 'after': 0.55})
  line = diagnostics.schedule_jump_line(rates, 100, 200)
  assert '0.55' in line and '0.1' in line and 'optim.decay_steps=200' in line


def test_skipped_steps_are_no_updates():
  assert _jump(_config(200), 100, 80) == pytest.approx({'before': 0.28, 'after': 0.64})


@pytest.mark.parametrize(
  ('config', 'older', 'updates'),
  [
    (_config(200, 'lm.optim.optimizers:constant'), 100, 100),
    (
      _config(200, 'lm.optim.optimizers:warmup_stable_decay'),
      100,
      70,
    ),  # before the decay of either
    (_config(200), 200, 100),
    (_config(200), None, 100),
    (_config(200), 100, 0),
  ],
)
def test_where_the_rate_is_the_same_nothing_is_said(config, older, updates):
  assert _jump(config, older, updates) is None


def test_the_length_is_that_of_the_workdir(tmp_path):
  assert diagnostics.schedule_length(tmp_path) is None
  (tmp_path / 'config.json').write_text(experiment.to_json(_config(120)))
  assert diagnostics.schedule_length(tmp_path) == 120
  (tmp_path / 'config.json').write_text('{')
  assert diagnostics.schedule_length(tmp_path) is None
