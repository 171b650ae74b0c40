import functools
import math

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.config.resolve import resolve
from lm.errors import UserError
from lm.models.transformer import EncoderDecoder
from lm.nn.layers import Attention
from lm.optim import optimizers, wrappers

SCHEDULES = ('constant', 'cosine', 'linear', 'inverse_sqrt', 'warmup_stable_decay')


@pytest.mark.parametrize('name', SCHEDULES)
def test_warmup_rises_from_above_0_to_the_peak(name):
  rate = getattr(optimizers, name)(
    peak=2.0, decay_steps=100, warmup_steps=10, final_lr_fraction=0.1
  )
  np.testing.assert_allclose([rate(0), rate(4), rate(9)], [0.2, 1.0, 2.0], rtol=1e-6)
  assert rate(10) == pytest.approx(2.0)


@pytest.mark.parametrize(
  ('name', 'step', 'expected'),
  [
    ('constant', 1000, 2.0),
    # Half of the 80 steps after the warmup, then a quarter of them.
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
  rate = getattr(optimizers, name)(
    peak=2.0, decay_steps=100, warmup_steps=20, final_lr_fraction=0.1
  )
  assert float(rate(step)) == pytest.approx(expected, rel=1e-5)
  assert float(jax.jit(rate)(jnp.int32(step))) == pytest.approx(expected, rel=1e-5)


def test_schedules_work_without_a_warmup():
  for name in ('constant', 'cosine', 'linear', 'warmup_stable_decay'):
    assert getattr(optimizers, name)(2.0, 100, 0, 0.1)(0) == pytest.approx(2.0)
  with pytest.raises(UserError, match=r'optim\.warmup_steps=0: the inverse square root needs'):
    optimizers.inverse_sqrt(2.0, 100, 0, 0.1)


PARAMS = {
  'embedding': np.float32([[1.0, -2.0]]),
  'layers': {
    'layer_0': {
      'mlp': {'up': {'kernel': np.float32([3.0, 0.5]), 'bias': np.float32([0.25])}},
      'mlp_norm': {'scale': np.float32([1.5])},
    }
  },
}
GRADIENT = jax.tree.map(lambda x: np.full_like(x, 0.5) * np.sign(x), PARAMS)


def _selected(params, pattern):
  found = wrappers.path_mask(params, pattern, 'decay')
  leaves = jax.tree_util.tree_leaves_with_path(found)
  return {wrappers.path_name(path) for path, chosen in leaves if chosen}


def test_patterns_match_parts_of_parameter_paths():
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
    name = wrappers.path_name(path)
    # Stacked layers have one more axis; the table of learned positions is not decayed.
    matrix = leaf.ndim - ('/layers/' in name) >= 2 and 'bias' not in name
    assert (name in decayed) == (matrix and name != 'decoder/position'), name


@pytest.mark.parametrize(
  ('pattern', 'message'),
  [
    ('(kernel', "optim.weight_decay_mask='(kernel' is no regular expression: missing )"),
    ('kernl$', "optim.weight_decay_mask='kernl$' is found in no parameter path"),
  ],
)
def test_wrong_patterns_raise(pattern, message):
  with pytest.raises(UserError) as error:
    _adamw(weight_decay_mask=pattern).transformation.init(PARAMS)
  assert message in str(error.value)


@functools.cache
def _compiled(optimizer):
  @jax.jit
  def run(params, gradients):
    def step(carry, gradient):
      params, state = carry
      updates, state = optimizer.transformation.update(gradient, state, params)
      params = optax.apply_updates(params, updates)
      return (params, state), params

    return jax.lax.scan(step, (params, optimizer.transformation.init(params)), gradients)[1]

  return run


def _course(optimizer, params=PARAMS, gradients=(GRADIENT,)):
  """Returns the parameters after each step."""
  course = jax.device_get(
    _compiled(optimizer)(params, jax.tree.map(lambda *g: np.stack(g), *gradients))
  )
  return [jax.tree.map(lambda x, n=n: x[n], course) for n in range(len(gradients))]


def _steps(*args, **given):
  return _course(*args, **given)[-1]


def _adamw(**changes):
  fields = {
    'learning_rate': 0.1,
    'schedule': optimizers.constant,
    'decay_steps': 10,
    'clip_norm': math.inf,
  }
  return optimizers.adamw(**(fields | changes))


def test_two_steps_of_adamw_by_hand():
  optimizer = _adamw(
    schedule=optimizers.linear,
    final_lr_fraction=0.0,
    b1=0.8,
    b2=0.9,
    eps=1e-3,
    weight_decay=0.3,
    weight_decay_mask='kernel$',
  )
  gradients = (GRADIENT, jax.tree.map(lambda g: -2 * g + 0.1, GRADIENT))
  found = _steps(optimizer, gradients=gradients)
  for path, start in jax.tree_util.tree_leaves_with_path(PARAMS):
    name, p, m, v = wrappers.path_name(path), np.asarray(start, np.float64), 0.0, 0.0
    for t, gradient in enumerate(gradients, 1):
      (g,) = (x for q, x in jax.tree_util.tree_leaves_with_path(gradient) if q == path)
      m, v = 0.8 * m + 0.2 * np.asarray(g), 0.9 * v + 0.1 * np.asarray(g) ** 2
      direction = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-3)
      decay = 0.3 * p if name.endswith('kernel') else 0
      p = p - 0.1 * (1 - (t - 1) / 10) * (direction + decay)
    (end,) = (x for q, x in jax.tree_util.tree_leaves_with_path(found) if q == path)
    np.testing.assert_allclose(end, p, rtol=1e-5, err_msg=name)


def test_the_rate_follows_the_schedule_the_optimizer_reports():
  assert _adamw(schedule=optimizers.linear, final_lr_fraction=0.0).schedule(5) == pytest.approx(
    0.05
  )


def test_gradients_are_clipped_by_their_global_norm():
  # Six entries of 0.5: the norm is sqrt(1.5). With a large epsilon Adam's first step is linear.
  fields = {'eps': 1e6, 'learning_rate': 1e6, 'weight_decay': 0.0, 'b1': 0.0, 'b2': 0.0}
  shrunk = jax.tree.map(lambda g: g * 0.2 / math.sqrt(1.5), GRADIENT)
  plain = _adamw(**fields)
  clipped = _steps(_adamw(clip_norm=0.2, **fields))
  expected = _steps(plain, gradients=(shrunk,))
  loose = _steps(_adamw(clip_norm=1e3, **fields))
  free = _steps(plain)
  for a, b, c, d in zip(*map(jax.tree.leaves, (clipped, expected, loose, free)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_array_equal(c, d)
    assert (np.asarray(a) != np.asarray(d)).all()


def test_frozen_parameters_stay_and_the_others_move_as_if_alone():
  found = _steps(_adamw(freeze='embedding|norm', clip_norm=0.1), gradients=(GRADIENT,) * 3)
  np.testing.assert_array_equal(found['embedding'], PARAMS['embedding'])
  layer, start = found['layers']['layer_0'], PARAMS['layers']['layer_0']
  np.testing.assert_array_equal(layer['mlp_norm']['scale'], start['mlp_norm']['scale'])
  alone = _steps(_adamw(clip_norm=0.1), {'mlp': start['mlp']}, ({'mlp': _of(GRADIENT)},) * 3)
  for name, x in layer['mlp']['up'].items():
    assert (np.asarray(x) != np.asarray(start['mlp']['up'][name])).all()
    np.testing.assert_allclose(x, alone['mlp']['up'][name], rtol=1e-6)


def _of(tree):
  return tree['layers']['layer_0']['mlp']


def test_frozen_parameters_have_no_optimizer_state():
  size = _state_size(_adamw())
  assert _state_size(_adamw(freeze='embedding')) == size - 2 * PARAMS['embedding'].size


def _state_size(optimizer):
  state = jax.eval_shape(optimizer.transformation.init, PARAMS)
  return sum(x.size for x in jax.tree.leaves(state))


def test_all_decayed_parameters_may_be_frozen():
  found = _steps(_adamw(freeze='(kernel|embedding)$'), gradients=(GRADIENT,) * 2)
  for path, leaf in jax.tree_util.tree_leaves_with_path(found):
    start = functools.reduce(lambda node, k: node[k.key], path, PARAMS)
    frozen = wrappers.path_name(path).endswith(('kernel', 'embedding'))
    assert np.array_equal(leaf, start) == frozen, wrappers.path_name(path)


@pytest.mark.parametrize('largest', [0.1, 1e6])
@pytest.mark.parametrize('given', [False, True])
def test_clipping_equals_that_of_optax(largest, given):
  rng = np.random.default_rng(0)
  grads = {name: rng.normal(size=(5, 3)).astype(np.float32) for name in 'ab'}
  clip, reference = wrappers.clip_by_norm(largest), optax.clip_by_global_norm(largest)

  @jax.jit
  def both(grads):
    known = {'gradient_norm': optax.tree.norm(grads)} if given else {}
    ours, _ = clip.update(grads, clip.init(grads), **known)
    expected, _ = reference.update(grads, reference.init(grads))
    return ours, expected

  ours, expected = both(grads)
  for name in grads:
    np.testing.assert_allclose(ours[name], expected[name], rtol=1e-6)


def test_muon_moves_matrices_along_orthogonal_directions_and_the_rest_as_adam(decoder, params_of):
  params = params_of(decoder('llama'))
  gradients = jax.device_get(params_of(decoder('llama'), seed=1))
  fields = {
    'learning_rate': 0.1,
    'schedule': optimizers.constant,
    'decay_steps': 10,
    'weight_decay': 0.0,
  }
  moved = _steps(optimizers.muon(**fields), params, (gradients,))
  adam = _steps(optimizers.adamw(**fields), params, (gradients,))
  seen = set()
  for path, start in jax.tree_util.tree_leaves_with_path(params):
    name = wrappers.path_name(path)
    ours, adam_only, gradient = (
      np.asarray(functools.reduce(lambda node, k: node[k.key], path, tree))
      for tree in (moved, adam, gradients)
    )
    if not ('/layers/' in name and name.endswith('kernel')):
      np.testing.assert_allclose(ours, adam_only, rtol=1e-6, err_msg=name)
      continue
    seen.add(name.rsplit('/', 2)[1])
    for n in range(len(start)):
      inputs = math.prod(start.shape[1:3]) if '/out/' in name else start.shape[1]
      step = (np.asarray(start[n]) - ours[n]).reshape(inputs, -1) / 0.1
      u, _, v = np.linalg.svd(gradient[n].reshape(inputs, -1), full_matrices=False)
      # The quintic iteration converges near 1, not to 1; its axes are those of the gradient.
      along = np.diag(u.T @ step @ v.T) / (0.2 * math.sqrt(max(step.shape)))
      assert (along > 0.5).all() and (along < 1.3).all(), name
      across = np.linalg.norm(u.T @ step @ v.T - np.diag(np.diag(u.T @ step @ v.T)))
      assert across < 1e-2 * np.linalg.norm(step), name
  assert seen >= {'out', 'gate', 'up', 'down'}


# The multiplier of the rate of each parameter of a decoder whose layers have half the rate of
# the layer above: four layers in two groups of two, so that layer_0 is the first and the third.
HALVED = {
  'embedding': 1 / 32,
  'decoder/position': 1 / 32,
  'decoder/layers/layer_0/': (1 / 16, 1 / 4),
  'decoder/layers/layer_1/': (1 / 8, 1 / 2),
  'decoder/final_norm/': 1,
  'unembedding': 1,
}


@pytest.fixture(scope='module')
def periods(decoder, params_of):
  """Parameters of that decoder."""
  model = decoder('gpt2', attention_layer=(Attention, Attention), depth=4, tie_embeddings=False)
  return jax.device_get(params_of(model))


def _by_hand(name, x, table=HALVED):
  (value,) = (v for start, v in table.items() if name.startswith(start))
  return np.reshape(value, (-1, *[1] * (x.ndim - 1))) if isinstance(value, tuple) else value


def test_each_layer_has_its_own_rate(periods):
  gradients = jax.tree.map(lambda p: np.cos(31 * p), periods)
  optimizer = _adamw(layer_decay=0.5, weight_decay=0.3, weight_decay_mask='kernel$', eps=0.0)
  found = _named(_steps(optimizer, periods, (gradients,)))
  assert {start for start in HALVED if any(n.startswith(start) for n in found)} == set(HALVED)
  gradients = _named(gradients)
  for name, start in _named(periods).items():
    # The first step of Adam is the sign of the gradient.
    direction = np.sign(gradients[name]) + (0.3 * start if name.endswith('kernel') else 0)
    expected = start - 0.1 * _by_hand(name, start) * direction
    np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-6, err_msg=name)


def _named(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {wrappers.path_name(path): np.asarray(x) for path, x in leaves}


def test_muon_supports_layer_decay(periods):
  # One matrix per layer, because each takes time to compile.
  layers = {
    name: {'mlp': {'up': layer['mlp']['up']}}
    for name, layer in periods['decoder']['layers'].items()
  }
  periods = {**periods, 'decoder': {**periods['decoder'], 'layers': layers}}
  gradients = jax.tree.map(lambda p: np.cos(31 * p), periods)
  fields = {
    'learning_rate': 0.1,
    'schedule': optimizers.constant,
    'decay_steps': 10,
    'weight_decay': 0.3,
  }
  plain, found = (
    _named(_steps(optimizers.muon(layer_decay=by, **fields), periods, (gradients,)))
    for by in (1.0, 0.5)
  )
  for name, start in _named(periods).items():
    expected = start + _by_hand(name, start) * (plain[name] - start)
    np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-6, err_msg=name)


def test_each_stack_has_its_own_depth(params_of):
  sizes = {'d_model': 8, 'heads': 2, 'kv_heads': 2, 'head_dim': 4, 'd_mlp': 8}
  model = EncoderDecoder(
    11, 16, depth=1, encoder_depth=2, share_embeddings=False, tie_embeddings=False, **sizes
  )
  params = params_of(model)
  found = _named(wrappers.multipliers(params, 0.5))
  table = {
    'embedding': 1 / 8,
    'source_embedding': 1 / 8,
    'encoder/position': 1 / 8,
    'decoder/position': 1 / 8,
    'encoder/layers/': (1 / 4, 1 / 2),
    'decoder/layers/': (1 / 2,),
    'encoder/final_norm/': 1,
    'decoder/final_norm/': 1,
    'unembedding': 1,
  }
  for name, x in _named(params).items():
    expected = np.float32(_by_hand(name, x, table))
    assert found[name].shape == expected.shape, name
    np.testing.assert_array_equal(found[name], expected, err_msg=name)


def test_multipliers_by_path_multiply_those_of_the_layers(periods):
  rates = ('norm/ -> 0', 'layer_0/.*kernel$ -> 3', 'layer_0 -> 5', 'unembedding -> 7')
  factors = {'bias': 5, 'kernel': 3}
  for name, value in _named(wrappers.multipliers(periods, 0.5, rates)).items():
    factor = 0 if 'norm/' in name else 7 if name == 'unembedding' else 1
    if '/layer_0/' in name and factor:
      factor = factors[name.rpartition('/')[2]]
    x = _named(periods)[name]
    np.testing.assert_allclose(value, factor * _by_hand(name, x), rtol=1e-6, err_msg=name)
  found = _named(_steps(_adamw(lr_multipliers=('scale -> 0', 'up -> 2')), gradients=(GRADIENT,)))
  plain = _named(_steps(_adamw(), gradients=(GRADIENT,)))
  for name, start in _named(PARAMS).items():
    factor = 0 if 'scale' in name else 2 if '/up/' in name else 1
    np.testing.assert_allclose(found[name] - start, factor * (plain[name] - start), rtol=1e-5)


def test_layer_decay_works_with_frozen_parameters(periods):
  gradients = jax.tree.map(lambda p: np.cos(31 * p), periods)
  # All of layer_0 is frozen; a group still has two layers.
  fields = {'freeze': 'layer_0|embedding', 'clip_norm': 0.1}
  plain, found = (
    _named(_steps(_adamw(layer_decay=by, **fields), periods, (gradients,))) for by in (1.0, 0.5)
  )
  for name, start in _named(periods).items():
    expected = start + _by_hand(name, start) * (plain[name] - start)
    np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-6, err_msg=name)
    if 'layer_0' in name:
      np.testing.assert_array_equal(found[name], start)


def test_unfrozen_parameters_move_at_the_full_rate():
  fields = {'weight_decay': 0.0, 'eps': 0.0, 'b2': 0.999}
  optimizer = _adamw(freeze='embedding|norm', freeze_until=3, **fields)
  for steps, params in enumerate(_course(optimizer, gradients=(GRADIENT,) * 5), 1):
    found = _named(params)
    for name, start in _named(PARAMS).items():
      frozen = 'embedding' in name or 'norm' in name
      moves = max(0, steps - 3) if frozen else steps
      # The gradient is always the same: each step of Adam is its sign.
      expected = start - 0.1 * moves * np.sign(_named(GRADIENT)[name])
      np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_freeze_until_equals_freeze_before_that_step():
  fields = {'freeze': 'embedding|norm', 'clip_norm': 0.1, 'eps': 1.0}
  # The parameters unfreeze before the third step.
  gradients = (GRADIENT, jax.tree.map(lambda g: 3 * g, GRADIENT), GRADIENT)
  frozen = _course(_adamw(**fields), gradients=gradients)
  thawing = _course(_adamw(freeze_until=2, **fields), gradients=gradients)
  for name, x in _named(frozen[1]).items():
    np.testing.assert_allclose(_named(thawing[1])[name], x, rtol=1e-6, err_msg=name)
  # From then on the clipped norm is that of all parameters.
  bias = _of(frozen[2])['up']['bias'] - _of(thawing[2])['up']['bias']
  assert abs(float(bias[0])) > 1e-5


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'layer_decay': 0.0}, 'optim.layer_decay=0.0 is outside (0, 1]'),
    ({'layer_decay': 1.1}, 'optim.layer_decay=1.1 is outside (0, 1]'),
    ({'layer_decay': math.nan}, 'optim.layer_decay=nan is outside (0, 1]'),
    (
      {'lr_multipliers': ('norm -> 2', 'hed -> 1')},
      "optim.lr_multipliers[1]='hed -> 1' is found in no parameter",
    ),
    (
      {'lr_multipliers': ('norm = 2',)},
      "optim.lr_multipliers[0]='norm = 2' is not of the form 'PATTERN -> VALUE'",
    ),
    (
      {'lr_multipliers': ('(norm -> 2',)},
      "optim.lr_multipliers[0]='(norm' is no regular expression: missing )",
    ),
    ({'lr_multipliers': ('norm -> fast',)}, "optim.lr_multipliers: 'fast' is no multiplier"),
    ({'lr_multipliers': ('norm -> -1',)}, "optim.lr_multipliers: '-1' is no multiplier"),
    ({'lr_multipliers': ('norm -> inf',)}, "optim.lr_multipliers: 'inf' is no multiplier"),
    ({'freeze_until': 5}, 'optim.freeze_until=5 needs a pattern in optim.freeze, which is empty'),
    ({'freeze': 'norm', 'freeze_until': 0}, 'optim.freeze_until=0 is not a positive number'),
    ({'freeze': 'norn', 'freeze_until': 5}, "optim.freeze='norn' is found in no parameter path"),
  ],
)
def test_wrong_rates_raise(fields, message):
  with pytest.raises(UserError) as error:
    _adamw(**fields).transformation.init(PARAMS)
  assert message in str(error.value)


def test_layer_decay_of_a_model_without_layers_raises():
  with pytest.raises(UserError, match=r'layer_decay=0\.9: the model has no layers to decay'):
    _adamw(layer_decay=0.9, weight_decay_mask='.').transformation.init(
      {'embedding': jnp.ones((2, 2))}
    )


def _experts(seed=0, name='experts'):
  rng = np.random.default_rng(seed)
  arrays = {
    name: {'up': {'kernel': rng.normal(size=(2, 3, 4, 5))}},
    'norm': {'scale': np.ones((2, 4))},
  }
  arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), arrays)
  return {'decoder': {'layers': {'layer_0': {'mlp': arrays}}}}


def test_muon_orthogonalizes_each_expert_of_each_layer():
  fields = {
    'learning_rate': 0.1,
    'schedule': optimizers.constant,
    'decay_steps': 10,
    'weight_decay': 0.0,
  }
  params, gradients = _experts(), _experts(seed=1)
  moved = _named(_steps(optimizers.muon(**fields, clip_norm=math.inf), params, (gradients,)))
  name = 'decoder/layers/layer_0/mlp/experts/up/kernel'
  step = (np.asarray(_named(params)[name]) - moved[name]) / 0.1
  for n, e in np.ndindex(2, 3):
    u, _, v = np.linalg.svd(np.asarray(_named(gradients)[name])[n, e], full_matrices=False)
    along = u.T @ step[n, e] @ v.T / (0.2 * math.sqrt(5))
    assert (np.diag(along) > 0.5).all() and (np.diag(along) < 1.3).all()
    assert np.abs(along - np.diag(np.diag(along))).max() < 1e-2


def test_muon_raises_for_unexplained_axes():
  fields = {'learning_rate': 0.1, 'schedule': optimizers.constant, 'decay_steps': 10}
  params = _experts(name='mixture')
  with pytest.raises(UserError, match=r'mixture/up/kernel .*\(2, 3, 4, 5\).*optim.experts'):
    optimizers.muon(**fields).transformation.init(params)
  optimizers.muon(**fields, experts='/mixture/').transformation.init(params)
  recurrent = {'layers': {'layer_0': {'input': jnp.ones((5, 4, 3)), 'bias': jnp.ones((4, 3))}}}
  with pytest.raises(UserError, match=r'layers/layer_0/input.*no axis of layers'):
    optimizers.muon(**fields, matrices='input', weight_decay_mask='input').transformation.init(
      {'net': recurrent}
    )


def test_layers_of_a_recurrent_network_have_one_rate_each():
  def layer(inputs):
    return {
      'input': jnp.ones((inputs, 4, 3)),
      'bias': jnp.ones((4, 3)),
      'state': jnp.ones((3, 4, 3)),
    }

  layers = {'layer_0': layer(5), 'layer_1': layer(3)}
  found = _named(
    wrappers.multipliers({'net': {'layers': layers}, 'embedding': jnp.ones((7, 5))}, 0.5)
  )
  expected = {'net/layers/layer_0/': 1 / 4, 'net/layers/layer_1/': 1 / 2, 'embedding': 1 / 8}
  for name, value in found.items():
    assert value.shape == ()
    assert value == next(v for start, v in expected.items() if name.startswith(start)), name


WRAPPED = {'learning_rate': 0.1, 'schedule': optimizers.linear, 'decay_steps': 10}


def test_an_optax_optimizer_gets_decay_by_path_and_multipliers():
  more = {'weight_decay': 0.3, 'lr_multipliers': ('bias -> 5',), 'freeze': 'scale'}
  wrapped = optimizers.from_optax(functools.partial(optax.lion, b2=0.98), **WRAPPED, **more)
  grads = [GRADIENT, jax.tree.map(lambda x: -2 * x, GRADIENT)]
  found = _named(_steps(wrapped, PARAMS, grads))
  plain = optax.lion(wrapped.schedule, b2=0.98, weight_decay=0.0)
  params, state = PARAMS, plain.init(PARAMS)
  for i, gradient in enumerate(grads):
    updates, state = plain.update(gradient, state, params)
    rate = float(wrapped.schedule(i))
    params = {
      name: _named(params)[name] * (1 - 0.3 * rate * name.endswith(('kernel', 'embedding')))
      + _named(updates)[name] * (5 if 'bias' in name else 0 if 'scale' in name else 1)
      for name in _named(params)
    }
    params = flax.traverse_util.unflatten_dict(params, sep='/')
  for name, expected in _named(params).items():
    np.testing.assert_allclose(found[name], expected, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
  'path',
  [
    *('adafactor', 'adabelief', 'adan', 'lamb', 'novograd', 'radam', 'sgd(momentum=0.9)'),
    *('signum', 'yogi', 'contrib.ademamix', 'contrib.dadapt_adamw', 'contrib.madgrad'),
    *('contrib.momo', 'contrib.muon', 'contrib.prodigy', 'contrib.schedule_free_sgd'),
  ],
)
def test_optimizers_of_optax_run_with_frozen_parameters(path):
  module, _, name = f'optax.{path}'.rpartition('.') if '(' not in path else ('optax', '', path)
  optimizer = resolve(f'{module}:{name}', 'optim.optimizer')
  wrapped = optimizers.from_optax(optimizer, **WRAPPED, weight_decay=0.1, freeze='mlp_norm')
  params = jax.tree.map(lambda x: jnp.zeros((4, *x.shape)), PARAMS)
  state = jax.eval_shape(wrapped.transformation.init, params)
  update = functools.partial(wrapped.transformation.update, value=jnp.ones(()))
  updates, after = jax.eval_shape(update, params, state, params)
  assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
  same = jax.tree.map(lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype), state, after)
  assert all(jax.tree.leaves(same))


@pytest.mark.parametrize(
  ('optimizer', 'more', 'message'),
  [
    (functools.partial(optax.lion, weight_decay=1.0), {}, 'weight_decay as optim.weight_decay'),
    (optax.scale_by_adam, {}, 'takes no learning_rate'),
    (optax.sm3, {}, 'does not take a schedule'),
    (optax.adam, {'evaluated': lambda *_: None, 'weight_decay': 0.1}, 'leave weight_decay=0'),
  ],
)
def test_optax_optimizers_that_cannot_be_wrapped(optimizer, more, message):
  with pytest.raises(UserError, match=message):
    optimizers.from_optax(optimizer, **WRAPPED, **more)
