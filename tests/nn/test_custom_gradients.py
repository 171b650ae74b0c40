"""Every custom gradient of the project, against autodiff of the plain formula."""

import ast
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.nn import embedding, layers, losses, recurrent
from lm.objectives import word2vec
from lm.types import EmbeddingTable, OutputHead

ROOT = pathlib.Path(__file__).parents[2]
# Each function with a custom gradient, and the test of that gradient.
RULES = {
  'lm/nn/losses.py:_total': 'test_each_part_of_the_cross_entropy_has_its_gradient_in_the_total',
  'lm/nn/losses.py:as_terms': 'test_only_terms_with_equal_cotangents_have_a_gradient',
  'lm/nn/losses.py:_take_target_logit': 'test_a_custom_gradient_equals_that_of_the_formula',
  'lm/nn/losses.py:_softplus': 'test_a_custom_gradient_equals_that_of_the_formula',
  'lm/objectives/word2vec.py:window_sum': 'test_a_custom_gradient_equals_that_of_the_formula',
  'lm/nn/layers.py:_materialize': 'test_a_custom_gradient_equals_that_of_the_formula',
  'lm/nn/embedding.py:_lookup': 'test_a_custom_gradient_equals_that_of_the_formula',
  'lm/nn/recurrent.py:scan': 'test_a_custom_gradient_equals_that_of_the_formula',
  'lm/parallel/collectives.py:_all_gather': (
    'tests/multi_device/meshes.py:test_copies_give_back_the_sum_of_all'
  ),
  # It has the shapes and matmuls of cuDNN's kernel, but not its values.
  'lm/preflight/analytic.py:_attention_stub': '',
}


def test_every_custom_gradient_of_the_project_has_a_test():
  found = set()
  for file in [*ROOT.glob('lm/**/*.py'), *ROOT.glob('experiments/*.py')]:
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, ast.FunctionDef):
        decorators = ' '.join(map(ast.unparse, node.decorator_list))
        if 'custom_vjp' in decorators or 'custom_jvp' in decorators:
          found.add(f'{file.relative_to(ROOT)}:{node.name}')
  assert found == set(RULES)


def _random(*shape, seed=0):
  return jnp.asarray(np.random.default_rng([*shape, seed]).normal(size=shape), jnp.float32)


def _plain_parts(hidden_BTD, kernel_VD, bias_V, weights_BT, targets_BT, z_loss, smoothing, cap):
  """Returns the three weighted sums, from unchunked logits."""
  logits_BTV = jnp.einsum('btd,vd->btv', hidden_BTD, kernel_VD) + bias_V[None, None]
  logits_BTV = cap * jnp.tanh(logits_BTV / cap)
  log_p_BTV = jax.nn.log_softmax(logits_BTV)
  nats_BT = -jnp.take_along_axis(log_p_BTV, targets_BT[..., None], -1)[..., 0]
  log_z_BT = jax.nn.logsumexp(logits_BTV, -1)
  return {
    'nats': jnp.sum(weights_BT * nats_BT),
    'z_loss': z_loss * jnp.sum(weights_BT * log_z_BT**2),
    'smoothing': smoothing * jnp.sum(weights_BT * (-log_p_BTV.mean(-1) - nats_BT)),
  }


def _cross_entropy_arguments():
  B, T, D, V = 2, 5, 4, 11
  targets_BT = jnp.asarray(np.random.default_rng(0).integers(0, V, (B, T)), jnp.int32)
  arrays = (3 * _random(B, T, D), _random(V, D), _random(V), 1 + _random(B, T) ** 2)
  return arrays, targets_BT


@pytest.mark.parametrize('chunk', [0, 2])
@pytest.mark.parametrize(('z_loss', 'smoothing'), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.2), (0.3, 0.2)])
def test_each_part_of_the_cross_entropy_has_its_gradient_in_the_total(z_loss, smoothing, chunk):
  arrays, targets_BT = _cross_entropy_arguments()

  def ours(hidden, kernel, bias, weights):
    unembed = OutputHead(EmbeddingTable(kernel), bias, soft_cap=4.0)
    found = losses.cross_entropy(hidden, unembed, targets_BT, weights, z_loss, smoothing, chunk)
    parts = {name: getattr(found, name) for name in ('nats', 'z_loss', 'smoothing')}
    return found.total, parts

  def plain(*arrays):
    parts = _plain_parts(*arrays, targets_BT, z_loss, smoothing, 4.0)
    return sum(parts.values()), parts

  (total, parts), back = jax.vjp(ours, *arrays)
  (expected, plain_parts), plain_back = jax.vjp(plain, *arrays)
  _assert_close((total, parts), (expected, plain_parts))
  zeros = jax.tree.map(jnp.zeros_like, parts)
  # The cotangent of the total is arbitrary; those of the parts have no effect.
  _assert_close(
    back((jnp.float32(-7.5), jax.tree.map(lambda x: x + 100.0, parts))),
    plain_back((jnp.float32(-7.5), zeros)),
  )


def test_only_terms_with_equal_cotangents_have_a_gradient():
  arrays, targets_BT = _cross_entropy_arguments()

  def ours(hidden, kernel, bias, weights):
    unembed = OutputHead(EmbeddingTable(kernel), bias, soft_cap=4.0)
    found = losses.cross_entropy(hidden, unembed, targets_BT, weights, 0.3, 0.2)
    return losses.as_terms(found.total, {name: getattr(found, name) for name in names})

  names = ('nats', 'z_loss', 'smoothing')
  _, back = jax.vjp(ours, *arrays)
  plain = functools.partial(_plain_parts, targets_BT=targets_BT, z_loss=0.3, smoothing=0.2, cap=4.0)
  _, plain_back = jax.vjp(plain, *arrays)
  same = dict.fromkeys(names, jnp.float32(2.5))
  _assert_close(back(same), plain_back(same))
  for different in ((1.0, 10.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)):
    found = back(dict(zip(names, map(jnp.float32, different), strict=True)))
    assert all(jnp.isnan(x).all() for x in found)


def _window_sum():
  """The sum of neighbors as a matmul with a (T, T) matrix of zeros and ones."""
  B, T, D, reach = 2, 7, 3, 3
  rng = np.random.default_rng(0)
  left_BT, right_BT = (jnp.asarray(rng.integers(0, reach + 1, (B, T)), jnp.int32) for _ in '12')

  def plain(x_BTD):
    apart_TT = jnp.arange(T)[:, None] - jnp.arange(T)[None]
    before = (apart_TT[None] > 0) & (apart_TT[None] <= left_BT[:, :, None])
    after = (apart_TT[None] < 0) & (-apart_TT[None] <= right_BT[:, :, None])
    return jnp.einsum('bts,bsd->btd', (before | after).astype(jnp.float32), x_BTD)

  return lambda x: word2vec.window_sum(x, left_BT, right_BT, reach), plain, (_random(B, T, D),)


def _scan(reverse):
  """A recurrence of two matmuls, one with an addend, against the gradient of jax.lax.scan."""
  steps, B, D = 5, 2, 3
  weights = {'a': _random(D, D), 'b': _random(D, D, seed=1)}
  addends = {'a': _random(steps, B, D)}
  constants, carry, xs = _random(D), _random(B, D), _random(steps, B, D, seed=2)

  def step(matmul, constant, carry, x):
    h = jnp.tanh(matmul('a', carry) + constant[None] * x)
    return h + 0.3 * x, jnp.sin(matmul('b', h * x))

  def ours(weights, addends, constants, carry, xs):
    return recurrent.scan(step, weights, addends, constants, carry, xs, reverse)

  def plain(weights, addends, constants, carry, xs):
    def body(carry, x_and_added):
      x, added = x_and_added
      sums = {'a': lambda h: h @ weights['a'] + added, 'b': lambda h: h @ weights['b']}
      return step(lambda name, h: sums[name](h), constants, carry, x)

    return jax.lax.scan(body, carry, (xs, addends['a']), reverse=reverse)

  return ours, plain, (weights, addends, constants, carry, xs)


def _pick():
  targets_Bt = jnp.asarray([[2, 0, 4], [1, 1, 3]])
  return (
    lambda logits: losses._take_target_logit(logits, targets_Bt),
    lambda logits: jnp.take_along_axis(logits, targets_Bt[..., None], -1)[..., 0],
    (_random(2, 3, 5),),
  )


def _lookup():
  ids_BT = jnp.asarray([[2, 0, 2], [1, 1, 2]])
  return (
    lambda table: embedding._lookup(table, ids_BT, jnp.dtype('float32'), (4, 3)),
    lambda table: jnp.take(table, ids_BT, axis=0),
    (_random(4, 3),),
  )


FORMULAS = {
  'pick': _pick(),
  'softplus': (losses._softplus, jax.nn.softplus, (3 * _random(20),)),
  'softplus at 0': (losses._softplus, lambda x: jnp.log(1 + jnp.exp(x)), (jnp.zeros(3),)),
  'window sum': _window_sum(),
  'barrier': (layers._materialize, lambda y: y, (_random(4, 3),)),
  'lookup': _lookup(),
  'scan': _scan(False),
  'scan in reverse': _scan(True),
}


@pytest.mark.parametrize(('ours', 'plain', 'arguments'), FORMULAS.values(), ids=FORMULAS)
def test_a_custom_gradient_equals_that_of_the_formula(ours, plain, arguments):
  values, back = jax.vjp(ours, *arguments)
  expected, plain_back = jax.vjp(plain, *arguments)
  leaves, structure = jax.tree.flatten(values)
  cotangents = structure.unflatten([_random(*x.shape, seed=9 + i) for i, x in enumerate(leaves)])
  _assert_close((values, back(cotangents)), (expected, plain_back(cotangents)))


def test_a_matrix_that_a_step_uses_twice_raises():
  weights, x = {'a': jnp.ones((2, 2))}, jnp.ones((3, 1, 2))

  def twice(matmul, constants, carry, x):
    return matmul('a', matmul('a', carry)), x

  def loss(weights):
    carry, _ = recurrent.scan(twice, weights, {}, None, jnp.ones((1, 2)), x)
    return carry.sum()

  with pytest.raises(ValueError, match="'a'"):
    jax.grad(loss)(weights)


def _assert_close(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-4)
