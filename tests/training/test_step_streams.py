"""Random streams of a step, and the rate that it logs, on a model of one vector."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.components import Components
from lm.data import batches
from lm.optim import optimizers
from lm.optim.optimizers import sgd
from lm.parallel import mesh
from lm.training.train_step import (
  ZERO_GRADIENTS,
  draw_key,
  init_train_state,
  make_train_step,
  part_key,
  train_step,
)
from lm.types import Objective


def _functions(sums, draw=lambda batch, key: batch, optimizer=None):
  objective = Objective(sums, lambda batch: {'loss': jnp.ones(())}, draw)
  devices = mesh.make_mesh({'data': 1}, jax.devices()[:1])
  optimizer = optimizer or sgd(0.5, optimizers.linear, decay_steps=10, final_lr_fraction=0.0)

  def init(key):
    return {'used': jnp.ones(3), 'unused': jnp.ones(2)}

  return Components(None, None, devices, mesh.RULES, init, objective, optimizer, train_step)


def _step(functions, microbatches=1):
  state, _ = init_train_state(functions, jax.random.key(0))
  return state, make_train_step(functions, 7, microbatches, state)


def test_streams_of_steps_parts_and_draws_never_coincide():
  keys = []
  for step in range(4):
    key = jax.random.fold_in(jax.random.key(7), step)
    keys += [key, draw_key(key), *(part_key(key, i) for i in range(8))]
  assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 4 * 10


def test_microbatches_do_not_repeat_what_is_random_in_the_batch():
  """The difference of both is in the loss: it was 0 for one of the parts."""

  def draw(batch, key):
    return batch | {'drawn': jnp.full(batch['x'].shape, jax.random.uniform(key))}

  def sums(apply, params, batch, key):
    apart = jnp.abs(batch['drawn'][0, 0] - jax.random.uniform(key))
    return {'loss': jnp.sum(params['used']) * jnp.where(apart == 0, jnp.inf, 1.0)}

  state, step = _step(_functions(sums, draw), microbatches=4)
  _, metrics = step(state, {'x': jnp.ones((4, 1))})
  assert np.isfinite(metrics['loss'])


def test_the_logged_rate_is_the_applied_one_after_skipped_steps():
  def sums(apply, params, batch, key):
    return {'loss': jnp.sum(params['used']) * batch['x'][0, 0]}

  state, step = _step(_functions(sums))
  for bad in (False, True, True, False, True, False):
    before = np.asarray(state.params['used'])
    state, metrics = step(state, {'x': jnp.full((1, 1), jnp.nan if bad else 2.0)})
    moved = before - np.asarray(state.params['used'])
    if not bad:
      np.testing.assert_allclose(moved, 2.0 * metrics['learning_rate'], rtol=1e-5)
  assert float(metrics['learning_rate']) == pytest.approx(0.5 * 0.8)  # the third update of ten


def test_a_step_says_which_leaves_have_no_gradient():
  def sums(apply, params, batch, key):
    return {'loss': jnp.sum(params['used'] * jnp.asarray([0.0, 0.0, 1e-12]))}

  state, step = _step(_functions(sums))
  _, metrics = step(state, {'x': jnp.ones((1, 1))})
  assert metrics[ZERO_GRADIENTS].tolist() == [1, 0]  # 'unused' comes first


def test_transforms_do_not_repeat_the_stream_of_the_shuffle():
  """NumPy fills up a short key with zeros: (seed, epoch) was the key of row 0's first transform."""
  draws = []

  def transform(row, rng):
    draws.append(rng.random())
    return row

  for epoch, row in itertools.product(range(3), range(3)):
    batches.transformed({'x': np.zeros((1, 1))}, [transform, transform], [(5, epoch, row)])
  shuffles = [np.random.default_rng((5, epoch)).random() for epoch in range(3)]
  packing = [np.random.default_rng(5).random()]
  assert len(set(draws)) == 18
  assert not set(draws) & set(shuffles + packing)
