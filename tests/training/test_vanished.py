"""Runs that would train nothing stop, and name the cause."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config.base import base
from lm.errors import UserError
from lm.optim.wrappers import path_name
from lm.training import diagnostics
from lm.types import Objective

PARAMS = {'embedding': jnp.ones((3, 2)), 'net': {'kernel': jnp.ones((2, 2)), 'norm': jnp.ones(2)}}
NAMES = ('embedding', 'net/kernel', 'net/norm')
OBJECTIVE = Objective(None, lambda batch: {'loss': jnp.sum(batch['weights'])})


def _config(**changes):
  config = base()
  config.update_from_flattened_dict(changes)
  return config


def _zeros(*names):
  return jnp.asarray([float(name in names) for name in NAMES])


def test_a_gradient_of_0_stops_the_run():
  diagnostics.check_gradients(PARAMS, _zeros(), _config())
  with pytest.raises(UserError, match=r'net/kernel and of 1 more is exactly 0 in step 1') as e:
    diagnostics.check_gradients(PARAMS, _zeros('net/kernel', 'net/norm'), _config())
  assert "allow_zero='net/kernel'" in str(e.value)


@pytest.mark.parametrize(
  'changes',
  [
    {'allow_zero': '^net/kernel$'},
    {'optim.freeze': '^net/'},
    {'optim.lr_multipliers': ('kernel -> 0',)},
  ],
)
def test_what_is_allowed_or_not_trained_may_have_none(changes):
  config = _config(**changes)
  diagnostics.check_gradients(PARAMS, _zeros('net/kernel'), config)
  with pytest.raises(UserError, match='embedding'):
    diagnostics.check_gradients(PARAMS, _zeros('embedding', 'net/kernel'), config)


@pytest.mark.parametrize(
  ('weights', 'cause'),
  [([0.0, 0.0], 'no target of its batch'), ([1.0, 0.0], 'targets have weights above 0')],
)
def test_a_loss_of_0_stops_the_run_and_names_the_cause(weights, cause):
  def batch():
    return {'weights': jnp.asarray(weights)}

  of_step = {'gradient_norm': 0.0, 'learning_rate': 0.1, 'skipped': 2.0, 'streak': 0.0}
  values = of_step | {'loss': 0.0, 'z_loss': 0.0}
  with pytest.raises(UserError, match=f'step 5 is exactly 0, .*{cause}'):
    diagnostics.check_loss(5, values, OBJECTIVE, batch, _config())
  diagnostics.check_loss(5, values, OBJECTIVE, batch, _config(allow_zero='loss'))
  for term in (1e-30, float('nan')):
    diagnostics.check_loss(5, values | {'loss': term}, OBJECTIVE, batch, _config())


class Rows:
  """Rows whose targets all have one weight."""

  def __init__(self, weight):
    self.weight = weight

  def __len__(self):
    return 8

  def batch(self, indices):
    return {'weights': np.full((len(indices), 4), self.weight, np.float32)}

  def drawn(self, indices, keys):
    return self.batch(indices)

  def order(self, positions, seed):
    return positions // 8, positions % 8


def _masked(row, rng):
  return row | {'weights': 0 * row['weights']}


def test_data_without_targets_are_refused_before_anything_is_written():
  diagnostics.check_targets(Rows(0.5), (), _config())
  for rows, transforms in ((Rows(0.0), ()), (Rows(1.0), (_masked,))):
    with pytest.raises(UserError, match='all targets in the first batch have weight 0'):
      diagnostics.check_targets(rows, transforms, _config())
    diagnostics.check_targets(rows, transforms, _config(allow_zero='loss'))


def test_a_pattern_that_is_none_is_told():
  with pytest.raises(UserError, match=r"allow_zero='\('"):
    diagnostics.check_pattern(_config(allow_zero='('))


def test_names_are_those_of_parameter_paths():
  paths = jax.tree_util.tree_leaves_with_path(PARAMS)
  assert tuple(path_name(path) for path, _ in paths) == NAMES
