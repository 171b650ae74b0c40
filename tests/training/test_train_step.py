import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.components import Components, init_of
from lm.objectives.supervised import cross_entropy
from lm.optim import optimizers
from lm.parallel import mesh
from lm.parallel.mesh import with_mesh
from lm.training import train_step as default
from lm.training.train_step import gradients, init_train_state, make_train_step, part_key
from lm.types import Objective, apply_of

SEED = 3


@pytest.fixture(scope='module')
def functions(decoder):
  model = decoder('gpt2', dropout=0.3)
  devices = mesh.make_mesh({'data': 1}, jax.devices()[:1])
  optimizer = optimizers.adamw(1e-2, optimizers.linear, decay_steps=10, final_lr_fraction=0.0)
  apply = with_mesh(apply_of(model), devices, mesh.RULES)
  return Components(
    model,
    apply,
    devices,
    mesh.RULES,
    init_of(model, 16),
    cross_entropy(1e-3),
    optimizer,
    default.train_step,
  )


@pytest.fixture(scope='module')
def initial(functions):
  """The initial state, and where its leaves lie."""
  state, _ = init_train_state(functions, jax.random.key(0))
  return _kept(state), jax.tree.map(lambda x: x.sharding, state)


@pytest.fixture(scope='module')
def fresh(initial):
  """Makes a state that a step may take, for steps give theirs away."""
  return lambda kept=initial[0]: jax.device_put(kept, initial[1])


@pytest.fixture
def state(fresh):
  return fresh()


@pytest.fixture(scope='module')
def train_step(functions, fresh):
  return make_train_step(functions, SEED, 1, fresh())


@pytest.fixture(scope='module')
def batches(batch_of):
  return [batch_of(B=4, T=6, seed=i) for i in range(5)]


def _kept(tree):
  """Returns a copy that survives the donation of the original."""
  return jax.tree.map(np.array, tree)


def _assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def _moved(a, b):
  return [bool((x != y).any()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]


# More than 5 seconds: gradients of several splits are compiled.
def test_accumulation_gives_the_gradient_of_the_large_batch(functions, state, batch_of):
  # The rows have unequal numbers of targets that count, and so have the parts; one has none.
  weights_BT = jnp.asarray(np.arange(6)[None] < np.array([[2], [5], [4], [0]]), jnp.float32)
  batch = batch_of(B=4, T=6) | {'weights': weights_BT}
  apply = apply_of(functions.model)

  @functools.partial(jax.jit, static_argnums=1)
  def run(params, parts):
    return gradients(functions.objective, apply, params, batch, None, parts)

  large = run(state.params, 1)
  assert set(large[1]) == {'loss', 'z_loss'}
  for parts in (2, 4):
    for x, y in zip(*map(jax.tree.leaves, (large, run(state.params, parts))), strict=True):
      np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-7)

  # The large batch itself: the mean over all targets that count.
  @jax.jit
  def by_hand(params):
    output = apply(params, batch)
    log_p_BTV = jax.nn.log_softmax(output.head(output.hidden))
    nats_BT1 = -jnp.take_along_axis(log_p_BTV, batch['targets'][..., None], axis=-1)
    return jnp.sum(nats_BT1[..., 0] * weights_BT) / 11

  assert float(large[1]['loss']) == pytest.approx(float(by_hand(state.params)), rel=1e-5)


def test_microbatches_drop_different_units():
  params = jnp.zeros(())

  def draw(apply, params, batch, key):
    return {'loss': params * jax.random.uniform(key)}

  objective = Objective(draw, lambda batch: {'loss': jnp.ones(())})
  (gradient, _) = gradients(objective, None, params, {'x': jnp.zeros((2, 1))}, jax.random.key(0), 2)
  draws = [jax.random.uniform(part_key(jax.random.key(0), i)) for i in range(2)]
  assert draws[0] != draws[1]
  np.testing.assert_allclose(gradient, sum(draws), rtol=1e-6)


def test_a_step_moves_everything_and_reports_it(functions, train_step, state, batches):
  before = _kept(state)
  state, metrics = train_step(state, batches[0])
  names = {'loss', 'z_loss', 'gradient_norm', 'learning_rate', 'skipped', 'streak'}
  names |= {'zero_gradients'}
  assert set(metrics) == names and all(m.dtype == jnp.float32 for m in metrics.values())
  assert float(metrics['learning_rate']) == pytest.approx(1e-2)
  assert float(metrics['gradient_norm']) > 0
  assert (int(state.step), int(state.skipped)) == (1, 0)
  assert all(_moved(before.params, state.params))
  _, metrics = train_step(state, batches[1])
  assert float(metrics['learning_rate']) == pytest.approx(0.9e-2)


def test_the_old_state_is_given_away_and_the_step_is_compiled_once(train_step, state, batches):
  first = state
  for batch in batches:
    state, _ = train_step(state, batch)
  assert train_step._cache_size() == 1
  assert all(x.is_deleted() for x in jax.tree.leaves(first))


def test_a_step_that_is_not_finite_is_skipped_and_counted(train_step, state, batches):
  bad = batches[1] | {'weights': batches[1]['weights'].at[2, 3].set(jnp.nan)}
  state, _ = train_step(state, batches[0])
  kept = _kept(state)
  for count in (1, 2):
    state, metrics = train_step(state, bad)
    assert (metrics['skipped'], metrics['streak']) == (count, count)
    assert not np.isfinite(metrics['loss'])
    _assert_equal((state.params, state.opt_state), (kept.params, kept.opt_state))
  assert int(state.step) == 3
  state, metrics = train_step(state, batches[2])
  assert (metrics['skipped'], metrics['streak']) == (2, 0)
  assert any(_moved(state.params, kept.params))


def test_an_infinite_gradient_is_not_finite_either(train_step, state, batches):
  # The loss of these weights, which sum to nothing, is finite; the gradient's norm overflows.
  weights_BT = jnp.zeros_like(batches[0]['weights']).at[0, :2].set(jnp.asarray([1e20, -1e20]))
  kept = _kept(state.params)
  state, metrics = train_step(state, batches[0] | {'weights': weights_BT})
  assert np.isfinite(metrics['loss']) and not np.isfinite(metrics['gradient_norm'])
  assert metrics['skipped'] == 1
  _assert_equal(state.params, kept)


def test_a_batch_without_targets_does_no_harm(train_step, state, batches):
  empty = batches[0] | {'weights': jnp.zeros_like(batches[0]['weights'])}
  state, metrics = train_step(state, empty)
  assert (metrics['loss'], metrics['gradient_norm'], metrics['skipped']) == (0, 0, 0)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_randomness_is_a_function_of_the_step(train_step, initial, fresh, batches):
  def loss(step):
    state = fresh(initial[0].replace(step=np.int32(step)))
    return float(train_step(state, batches[0])[1]['loss'])

  assert loss(4) == loss(4)
  assert loss(4) != loss(5)


def test_a_run_is_a_function_of_its_seed_and_batches(train_step, fresh, batches):
  def run(first, last, state):
    for batch in batches[first:last]:
      state, metrics = train_step(state, batch)
    return state, metrics

  whole = run(0, 5, fresh())
  _assert_equal(run(0, 5, fresh()), whole)
  # Stopped, written down and taken up again.
  half = fresh(_kept(run(0, 2, fresh())[0]))
  _assert_equal(run(2, 5, half), whole)


def test_schedule_free_evaluates_its_averaged_iterates(functions):
  # The gradient of the loss is the target, so that the iterates have a closed form.
  targets = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
  objective = Objective(
    lambda apply, params, batch, key: {'loss': jnp.vdot(params['kernel'], batch['target'])},
    lambda batch: {'loss': jnp.ones(())},
  )
  optimizer = optimizers.from_optax(
    optax.contrib.schedule_free_sgd,
    learning_rate=0.1,
    schedule=optimizers.constant,
    decay_steps=9,
    evaluated=optax.contrib.schedule_free_eval_params,
  )
  made = dataclasses.replace(
    functions,
    init=lambda key: {'kernel': jax.random.normal(key, (3,))},
    objective=objective,
    optimizer=optimizer,
  )
  state, abstract = init_train_state(made, jax.random.key(0))
  start = np.asarray(state.params['kernel'])
  step = make_train_step(made, SEED, 1, abstract)
  averaged = default.evaluated(made)
  np.testing.assert_allclose(averaged(state)['kernel'], start, rtol=1e-6)
  for target in targets:
    state, _ = step(state, {'target': target})
  # z follows the gradients, and x is the mean of z; training is at y, between both.
  z = start - 0.1 * np.cumsum(targets, axis=0)
  np.testing.assert_allclose(averaged(state)['kernel'], z.mean(0), rtol=1e-4)
  np.testing.assert_allclose(state.params['kernel'], 0.1 * z[-1] + 0.9 * z.mean(0), rtol=1e-4)
