import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.components import Components, init_of
from lm.models.embeddings import Embeddings
from lm.nn.embedding import unique_ids
from lm.objectives import word2vec
from lm.objectives.word2vec import negative_sampling
from lm.optim.optimizers import adagrad, constant, sgd
from lm.parallel import mesh
from lm.training import sparse_step
from lm.training.train_step import init_train_state, make_train_step, make_train_steps, train_step
from lm.types import Optimizer, apply_of

V, D, B, T = 60, 4, 4, 8
COUNTS = np.concatenate([[0], np.arange(V - 1, 0, -1)])


def functions(optimizer, objective, step=sparse_step.train_step):
  model = Embeddings(V, D, T)
  one = mesh.make_mesh({'data': 1}, jax.devices()[:1])
  return Components(
    model, apply_of(model), one, mesh.RULES, init_of(model, T), objective, optimizer, step
  )


def batches(steps):
  rng = np.random.default_rng(0)
  rows = np.ones((steps, B, T), np.int32)
  # The upper half of the words is not there.
  targets = rng.integers(1, V // 2, (steps, B, T)).astype(np.int32)
  return {'targets': targets, 'segments': rows, 'weights': rows.astype(np.float32)}


def stack(step, state, given):
  for i in range(len(given['targets'])):
    state, _ = step(state, {name: x[i] for name, x in given.items()})
  return state


def adam(learning_rate, schedule, steps):
  rate = schedule(learning_rate, steps, 0, 1.0)
  return Optimizer(optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(rate)), rate)


@pytest.mark.parametrize('optimizer', [sgd, adagrad])
def test_rows_alone_are_trained_as_the_whole_tables_are(optimizer):
  objective = word2vec.skip_gram(2, 0, negative_sampling, COUNTS)
  ends = []
  for step in (sparse_step.train_step, train_step):
    made = functions(optimizer(20.0, constant, 10), objective, step)
    state, abstract = init_train_state(made, jax.random.key(0))
    ends.append(stack(make_train_step(made, 3, 1, abstract), state, batches(4)))
  rows, whole = ends
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), rows.params, whole.params
  )
  assert float(jnp.abs(whole.params['unembedding']).max()) > 0.1


def test_adam_moves_no_row_that_a_step_does_not_touch():
  objective = word2vec.skip_gram(2, 0, negative_sampling, COUNTS)

  def draw(batch, key):
    return objective.sample(batch, key) | {'negatives': jnp.full((B, 4), V - 1, jnp.int32)}

  made = functions(adam(0.1, constant, 10), dataclasses.replace(objective, sample=draw))
  state, abstract = init_train_state(made, jax.random.key(0))
  before = jax.tree.map(np.array, state.params)
  after = stack(make_train_step(made, 3, 1, abstract), state, batches(2))
  seen = np.unique(batches(2)['targets'])
  away = np.setdiff1d(np.arange(V), seen)
  moments = after.opt_state[0].mu['embedding']
  np.testing.assert_array_equal(after.params['embedding'][away], before['embedding'][away])
  assert not np.asarray(moments)[away].any()
  assert (np.asarray(after.params['unembedding'])[seen] != 0).any(1).all()
  assert (np.asarray(after.params['unembedding'])[V - 1] != 0).all()


def test_steps_of_one_dispatch_are_the_steps_taken_one_by_one():
  objective = word2vec.skip_gram(2, 1e-2, negative_sampling, COUNTS)
  made = functions(sgd(2.0, constant, 10), objective)
  given = batches(5)
  state, abstract = init_train_state(made, jax.random.key(0))
  apart = stack(make_train_step(made, 3, 1, abstract), state, given)
  state, _ = init_train_state(made, jax.random.key(0))
  together, metrics = make_train_steps(made, 3, 1, abstract)(state, given)
  assert metrics['loss'].shape == (5,)
  assert int(together.step) == 5
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
    together.params,
    apart.params,
  )


def test_what_is_taken_goes_back_to_its_place():
  rng = np.random.default_rng(0)
  params = {'a': jnp.asarray(rng.normal(size=(6, 2))), 'b': jnp.ones(3)}
  state = params, (jnp.int32(7), jax.tree.map(jnp.square, params))
  rows = {'a': jnp.array([4, 1, 6])}  # 6 is no row
  some = sparse_step.gather_rows(state, rows)
  np.testing.assert_array_equal(some[0]['a'][:2], params['a'][jnp.array([4, 1])])
  np.testing.assert_array_equal(some[1][1]['a'][:2], params['a'][jnp.array([4, 1])] ** 2)
  assert some[0]['b'] is params['b']
  changed = jax.tree.map(lambda x: x + 1, some)
  back = sparse_step.scatter_rows(state, rows, changed)
  added = np.array([0, 1, 0, 0, 1, 0])[:, None]
  np.testing.assert_array_equal(back[0]['a'], params['a'] + added)
  np.testing.assert_array_equal(back[1][1]['a'], params['a'] ** 2 + added)
  np.testing.assert_array_equal(back[0]['b'], 2)
  assert back[1][0] == 8


def test_distinct_rows_are_those_of_a_set():
  rng = np.random.default_rng(0)
  for size, count in ((1, 1), (5, 20), (1000, 20)):
    ids = rng.integers(0, size, count)
    rows, places = unique_ids(jnp.asarray(ids), size)
    np.testing.assert_array_equal(rows[places], ids)
    real = rows[rows < size]
    assert sorted(real.tolist()) == sorted(set(ids.tolist()))
    assert (rows[rows >= size] == size).all()
