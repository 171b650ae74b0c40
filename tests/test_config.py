"""The base configuration: what follows what."""

from lm.config.base import base


def test_following_leaves_follow_one_way():
  config = base()
  config.batch_size = 12
  config.steps = 77
  assert config.eval.batch_size == 12
  assert config.optim.steps == 77
  config.eval.batch_size = 64
  config.optim.steps = 99
  assert config.batch_size == 12, 'a larger evaluation batch changed what is trained'
  assert config.steps == 77
