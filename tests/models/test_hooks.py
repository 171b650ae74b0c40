import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.nn import attention, hooks
from lm.nn.hooks import with_hooks
from lm.types import apply_of

LAYER = 'decoder/layers/layer_0'


@pytest.fixture(scope='module')
def llama(decoder, params_of, batch_of):
  model = decoder('llama')
  return model, params_of(model), batch_of(T=6)


def _hidden(model, params, batch, edits):
  return jax.jit(lambda p, b: with_hooks(model)(p, b, edits=edits)[0].hidden)(params, batch)


def test_every_hook_point_can_be_read(llama):
  output, sites = jax.jit(lambda p, b: with_hooks(llama[0])(p, b))(*llama[1:])
  assert {name: x.shape for name, x in sites.items()} == {
    'decoder/embeddings': (2, 6, 16),
    f'{LAYER}/attention/heads': (2, 2, 6, 4, 4),
    f'{LAYER}/attention/values': (2, 2, 6, 2, 4),
    f'{LAYER}/attention/weights': (2, 2, 4, 6, 6),
    f'{LAYER}/attention/output': (2, 2, 6, 16),
    f'{LAYER}/mlp/hidden': (2, 2, 6, 24),
    f'{LAYER}/mlp/output': (2, 2, 6, 16),
    f'{LAYER}/residual': (2, 2, 6, 16),
    'decoder/stack_output': (2, 6, 16),
    'decoder/hidden': (2, 6, 16),
  }
  np.testing.assert_array_equal(sites['decoder/hidden'], output.hidden)
  # The residual stream is the sum of the embeddings and the outputs of the sublayers.
  added = sites[f'{LAYER}/attention/output'] + sites[f'{LAYER}/mlp/output']
  np.testing.assert_allclose(
    sites[f'{LAYER}/residual'][1], sites['decoder/embeddings'] + added.sum(0), rtol=1e-4, atol=1e-4
  )


def test_patterns_select_hook_points(llama):
  _, sites = jax.eval_shape(
    lambda *xs: with_hooks(llama[0])(*xs, reads=('*/output', '*/emb*')), *llama[1:]
  )
  assert set(sites) == {'decoder/embeddings', f'{LAYER}/attention/output', f'{LAYER}/mlp/output'}


def test_an_edit_that_changes_nothing_changes_no_bit(llama):
  expected = jax.jit(apply_of(llama[0]))(*llama[1:]).hidden
  np.testing.assert_array_equal(_hidden(*llama, {'*': lambda x: x}), expected)


def test_an_edit_applies_to_the_hook_points_it_names(llama):
  model, params, batch = llama
  zeroed = _hidden(*llama, {'*/attention/output': jnp.zeros_like})
  # Attention with a zero output kernel returns zeros.
  layer = params['decoder']['layers']['layer_0']
  out = {'kernel': jnp.zeros_like(layer['attention']['out']['kernel'])}
  silent = layer | {'attention': layer['attention'] | {'out': out}}
  without = params | {'decoder': params['decoder'] | {'layers': {'layer_0': silent}}}
  expected = jax.jit(apply_of(model))(without, batch).hidden
  np.testing.assert_allclose(zeroed, expected, atol=1e-6)
  assert np.abs(zeroed - _hidden(*llama, {})).max() > 0.1


def test_a_pattern_selects_one_layer_with_and_without_a_cache(llama):
  model, params, batch = llama
  reads = ('*/residual@0', '*/residual@1', '*/mlp/output@1', '*/attention/output')

  @jax.jit
  def run(params, batch, cache):
    apply, edits = with_hooks(model), {'*/attention/output@1': jnp.zeros_like}
    return [apply(params, batch, reads, edits, cache=each) for each in (None, cache)]

  full, cached = run(params, batch, model.init_cache(2, 6))
  np.testing.assert_allclose(cached[0].hidden, full[0].hidden, rtol=1e-4, atol=1e-4)
  for _, found in (full, cached):
    names = ('residual@0', 'residual@1', 'mlp/output@1', 'attention/output')
    below, above, mlp, attention = (found[f'{LAYER}/{name}'] for name in names)
    assert len(found) == 4 and [np.abs(x).max() > 0 for x in attention] == [True, False]
    np.testing.assert_allclose(above - below, mlp, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('pattern', ['*/atention/output', '*/residual@2', 'decoder/hidden@0'])
def test_an_edit_that_matches_no_hook_point_raises(llama, pattern):
  with pytest.raises(ValueError, match='no hook point matches the edit'):
    jax.eval_shape(lambda *xs: with_hooks(llama[0])(*xs, edits={pattern: jnp.sin}), *llama[1:])


def test_weights_of_capped_attention_are_those_it_uses(decoder, params_of, batch_of):
  # An edit of one layer replaces the weights of all layers, here by themselves.
  model = decoder('llama', attention_fn=functools.partial(attention.dot_product, cap=1.0))
  params, batch = params_of(model), batch_of(T=6)
  expected = jax.jit(apply_of(model))(params, batch).hidden
  found = _hidden(model, params, batch, {'*/attention/weights@1': lambda w: w})
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
  uniform = decoder('llama', attention_fn=lambda q, k, v, mask: q)
  with pytest.raises(ValueError, match='edits of attention weights need those of softmax'):
    _hidden(uniform, params, batch, {'*/attention/weights@1': lambda w: w})


def test_unused_hook_points_do_not_change_the_program(llama, monkeypatch):
  model, params, batch = llama

  def program():
    return str(jax.make_jaxpr(apply_of(model))(params, batch))

  program_with_points = program()
  for module in ('lm.nn.layers', 'lm.models.transformer'):
    monkeypatch.setattr(f'{module}.hook_point', lambda module, name, x: x)
  assert program() == program_with_points


def test_edits_end_with_the_call(llama):
  with pytest.raises(ZeroDivisionError):
    edits = {'decoder/hidden': lambda x: 1 / 0}
    jax.eval_shape(lambda *xs: with_hooks(llama[0])(*xs, edits=edits), *llama[1:])
  assert hooks.HOOKS.get() is None


def test_an_edit_must_keep_the_shape(llama):
  with pytest.raises(ValueError, match='the edit of decoder/hidden changed the shape'):
    jax.eval_shape(
      lambda *xs: with_hooks(llama[0])(*xs, edits={'decoder/hidden': jnp.sum}), *llama[1:]
    )
