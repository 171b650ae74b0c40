import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm import optim
from lm.errors import UserError

SCHEDULES = ('constant', 'cosine', 'linear', 'inverse_sqrt', 'warmup_stable_decay')


@pytest.mark.parametrize('name', SCHEDULES)
def test_warmup_rises_from_above_0_to_the_peak(name):
  rate = getattr(optim, name)(peak=2.0, steps=100, warmup=10, final=0.1)
  np.testing.assert_allclose([rate(0), rate(4), rate(9)], [0.2, 1.0, 2.0], rtol=1e-6)
  assert rate(10) == pytest.approx(2.0)


@pytest.mark.parametrize(
  ('name', 'step', 'expected'),
  [
    ('constant', 1000, 2.0),
    # Half of the 80 steps after the warmup, and then a quarter.
    ('cosine', 60, 2 * (0.1 + 0.9 * 0.5)),
    ('cosine', 40, 2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))),
    ('cosine', 100, 0.2),
    ('cosine', 150, 0.2),
    ('linear', 60, 2 * (1 - 0.9 * 0.5)),
    ('linear', 100, 0.2),
    ('linear', 150, 0.2),
    ('inverse_sqrt', 80, 1.0),
    ('inverse_sqrt', 320, 0.5),
    ('warmup_stable_decay', 79, 2.0),
    ('warmup_stable_decay', 90, 2 * (1 - 0.9 * 0.5)),
    ('warmup_stable_decay', 100, 0.2),
  ],
)
def test_schedules_by_hand(name, step, expected):
  rate = getattr(optim, name)(peak=2.0, steps=100, warmup=20, final=0.1)
  assert float(rate(step)) == pytest.approx(expected, rel=1e-5)
  assert float(jax.jit(rate)(jnp.int32(step))) == pytest.approx(expected, rel=1e-5)


def test_schedules_work_without_a_warmup():
  for name in ('constant', 'cosine', 'linear', 'warmup_stable_decay'):
    assert getattr(optim, name)(2.0, 100, 0, 0.1)(0) == pytest.approx(2.0)
  with pytest.raises(UserError, match=r'optim\.warmup=0: the inverse square root needs'):
    optim.inverse_sqrt(2.0, 100, 0, 0.1)


PARAMS = {
  'embedding': jnp.asarray([[1.0, -2.0]]),
  'layers': {
    'layer_0': {
      'mlp': {'up': {'kernel': jnp.asarray([3.0, 0.5]), 'bias': jnp.asarray([0.25])}},
      'mlp_norm': {'scale': jnp.asarray([1.5])},
    }
  },
}
GRADIENT = jax.tree.map(lambda x: jnp.full_like(x, 0.5) * jnp.sign(x), PARAMS)


def _selected(params, pattern):
  found = optim.find(params, pattern, 'decay')
  leaves = jax.tree_util.tree_leaves_with_path(found)
  return {optim.path_name(path) for path, chosen in leaves if chosen}


def test_patterns_are_searched_in_readable_paths():
  up = 'layers/layer_0/mlp/up'
  assert _selected(PARAMS, r'(kernel|embedding)$') == {'embedding', f'{up}/kernel'}
  assert _selected(PARAMS, r'^layers/layer_0/mlp/') == {f'{up}/kernel', f'{up}/bias'}
  assert _selected(PARAMS, 'norm') == {'layers/layer_0/mlp_norm/scale'}


@pytest.mark.parametrize('variant', ['gpt2', 'llama'])
def test_matrices_are_decayed_and_vectors_are_not(variant, decoder, params_of):
  params = params_of(decoder(variant))
  decayed = _selected(params, r'(kernel|embedding)$')
  leaves = jax.tree_util.tree_leaves_with_path(params)
  for path, leaf in leaves:
    name = optim.path_name(path)
    # Stacked layers have one axis more; the learned positions are a table that is not decayed.
    matrix = leaf.ndim - ('/layers/' in name) >= 2 and 'bias' not in name
    assert (name in decayed) == (matrix and name != 'decoder/position'), name


@pytest.mark.parametrize(
  ('pattern', 'message'),
  [
    ('(kernel', "optim.decay='(kernel' is no regular expression: missing )"),
    ('kernl$', "optim.decay='kernl$' is found in no parameter path"),
  ],
)
def test_wrong_patterns_are_told(pattern, message):
  with pytest.raises(UserError) as error:
    _adamw(decay=pattern).transformation.init(PARAMS)
  assert message in str(error.value)


def _steps(optimizer, params=PARAMS, gradients=(GRADIENT,)):
  @jax.jit
  def step(params, state, gradient):
    updates, state = optimizer.transformation.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  state = optimizer.transformation.init(params)
  for gradient in gradients:
    params, state = step(params, state, gradient)
  return params


def _adamw(**changes):
  fields = {'learning_rate': 0.1, 'schedule': optim.constant, 'steps': 10, 'clip': math.inf}
  return optim.adamw(**(fields | changes))


def test_two_steps_of_adamw_by_hand():
  optimizer = _adamw(
    schedule=optim.linear, final=0.0, b1=0.8, b2=0.9, eps=1e-3, weight_decay=0.3, decay='kernel$'
  )
  gradients = (GRADIENT, jax.tree.map(lambda g: -2 * g + 0.1, GRADIENT))
  found = _steps(optimizer, gradients=gradients)
  for path, start in jax.tree_util.tree_leaves_with_path(PARAMS):
    name, p, m, v = optim.path_name(path), np.asarray(start, np.float64), 0.0, 0.0
    for t, gradient in enumerate(gradients, 1):
      (g,) = (x for q, x in jax.tree_util.tree_leaves_with_path(gradient) if q == path)
      m, v = 0.8 * m + 0.2 * np.asarray(g), 0.9 * v + 0.1 * np.asarray(g) ** 2
      direction = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-3)
      decay = 0.3 * p if name.endswith('kernel') else 0
      p = p - 0.1 * (1 - (t - 1) / 10) * (direction + decay)
    (end,) = (x for q, x in jax.tree_util.tree_leaves_with_path(found) if q == path)
    np.testing.assert_allclose(end, p, rtol=1e-5, err_msg=name)


def test_the_rate_follows_the_schedule_the_optimizer_reports():
  assert _adamw(schedule=optim.linear, final=0.0).schedule(5) == pytest.approx(0.05)


def test_gradients_are_clipped_by_their_global_norm():
  # Six entries of 0.5: the norm is sqrt(1.5). With a large epsilon Adam's first step is linear.
  fields = {'eps': 1e6, 'learning_rate': 1e6, 'weight_decay': 0.0, 'b1': 0.0, 'b2': 0.0}
  shrunk = jax.tree.map(lambda g: g * 0.2 / math.sqrt(1.5), GRADIENT)
  clipped = _steps(_adamw(clip=0.2, **fields))
  expected = _steps(_adamw(**fields), gradients=(shrunk,))
  loose = _steps(_adamw(clip=1e3, **fields))
  free = _steps(_adamw(**fields))
  for a, b, c, d in zip(*map(jax.tree.leaves, (clipped, expected, loose, free)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_array_equal(c, d)
    assert (np.asarray(a) != np.asarray(d)).all()


def test_frozen_parameters_stay_and_the_others_move_as_if_alone():
  found = _steps(_adamw(freeze='embedding|norm', clip=0.1), gradients=(GRADIENT,) * 3)
  np.testing.assert_array_equal(found['embedding'], PARAMS['embedding'])
  layer, start = found['layers']['layer_0'], PARAMS['layers']['layer_0']
  np.testing.assert_array_equal(layer['mlp_norm']['scale'], start['mlp_norm']['scale'])
  alone = _steps(_adamw(clip=0.1), {'mlp': start['mlp']}, ({'mlp': _of(GRADIENT)},) * 3)
  for name, x in layer['mlp']['up'].items():
    assert (np.asarray(x) != np.asarray(start['mlp']['up'][name])).all()
    np.testing.assert_allclose(x, alone['mlp']['up'][name], rtol=1e-6)


def _of(tree):
  return tree['layers']['layer_0']['mlp']


def test_frozen_parameters_have_no_optimizer_state():
  size = sum(x.size for x in jax.tree.leaves(_adamw().transformation.init(PARAMS)))
  frozen = _adamw(freeze='embedding').transformation.init(PARAMS)
  assert sum(x.size for x in jax.tree.leaves(frozen)) == size - 2 * PARAMS['embedding'].size


def test_all_that_is_decayed_may_be_frozen():
  found = _steps(_adamw(freeze='(kernel|embedding)$'), gradients=(GRADIENT,) * 2)
  for path, leaf in jax.tree_util.tree_leaves_with_path(found):
    start = functools.reduce(lambda node, k: node[k.key], path, PARAMS)
    frozen = optim.path_name(path).endswith(('kernel', 'embedding'))
    assert bool(jnp.array_equal(leaf, start)) == frozen, optim.path_name(path)


@pytest.mark.parametrize('largest', [0.1, 1e6])
@pytest.mark.parametrize('given', [False, True])
def test_clip_is_that_of_optax(largest, given):
  rng = np.random.default_rng(0)
  grads = {name: jnp.asarray(rng.normal(size=(5, 3)), jnp.float32) for name in 'ab'}
  known = {'gradient_norm': optax.tree.norm(grads)} if given else {}
  clip = optim.clip_by_norm(largest)
  ours, _ = clip.update(grads, clip.init(grads), **known)
  reference = optax.clip_by_global_norm(largest)
  theirs, _ = reference.update(grads, reference.init(grads))
  for name in grads:
    np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6)


def test_muon_moves_matrices_along_orthogonal_directions_and_the_rest_as_adam(decoder, params_of):
  params = params_of(decoder('llama'))
  gradients = params_of(decoder('llama'), seed=1)
  fields = {'learning_rate': 0.1, 'schedule': optim.constant, 'steps': 10, 'weight_decay': 0.0}
  moved = _steps(optim.muon(**fields), params, (gradients,))
  adam = _steps(optim.adamw(**fields), params, (gradients,))
  seen = set()
  for path, start in jax.tree_util.tree_leaves_with_path(params):
    name = optim.path_name(path)
    ours, theirs, gradient = (
      np.asarray(functools.reduce(lambda node, k: node[k.key], path, tree))
      for tree in (moved, adam, gradients)
    )
    if not ('/layers/' in name and name.endswith('kernel')):
      np.testing.assert_allclose(ours, theirs, rtol=1e-6, err_msg=name)
      continue
    seen.add(name.rsplit('/', 2)[1])
    for n in range(len(start)):
      inputs = math.prod(start.shape[1:3]) if '/out/' in name else start.shape[1]
      step = (np.asarray(start[n]) - ours[n]).reshape(inputs, -1) / 0.1
      u, _, v = np.linalg.svd(gradient[n].reshape(inputs, -1), full_matrices=False)
      # The quintic iteration ends near 1, not at it; its axes are those of the gradient.
      along = np.diag(u.T @ step @ v.T) / (0.2 * math.sqrt(max(step.shape)))
      assert (along > 0.5).all() and (along < 1.3).all(), name
      across = np.linalg.norm(u.T @ step @ v.T - np.diag(np.diag(u.T @ step @ v.T)))
      assert across < 1e-2 * np.linalg.norm(step), name
  assert seen >= {'out', 'gate', 'up', 'down'}
