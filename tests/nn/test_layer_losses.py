"""Losses that layers name: collected under scan and remat, differentiated, logged, evaluated."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.components import Inference
from lm.errors import UserError
from lm.evaluation.sets import make_eval_step
from lm.metrics.tokens import language_model
from lm.nn.hooks import with_hooks
from lm.nn.layers import Mlp, hook_point, layer_loss
from lm.objectives.supervised import cross_entropy
from lm.parallel import mesh
from lm.training.train_step import gradients
from lm.types import Objective, apply_of

READ = 'decoder/layers/layer_0/mlp/input'


class Penalized(Mlp):
  """A layer with a loss that is a mean over tokens, and one that is not."""

  @nn.compact
  def __call__(self, x_BTD):
    x_BTD = hook_point(self, 'input', x_BTD)
    layer_loss(self, 'size', jnp.mean(jnp.square(x_BTD)), 0.5)
    layer_loss(self, 'offset', jnp.square(jnp.mean(x_BTD)), 3.0)
    return super().__call__(x_BTD)


def by_hand(x_NBTD):
  """Returns both losses, summed over the layers on axis 0."""
  means_N = x_NBTD.reshape(len(x_NBTD), -1).mean(1)
  return {'size': 0.5 * (x_NBTD**2).mean() * len(x_NBTD), 'offset': 3.0 * (means_N**2).sum()}


@pytest.fixture(scope='module')
def model(decoder):
  # The output of RMSNorm has a mean, unlike that of LayerNorm.
  return decoder('llama', mlp=Penalized)


@pytest.fixture(scope='module')
def expected(model, params_of, batch_of):
  """The inputs of the layer, and the gradient of the loss plus the losses of the layers."""

  @functools.partial(jax.grad, has_aux=True)
  def total(params, batch):
    output, read = with_hooks(model)(params, batch, reads=(READ,))
    log_p_BTV = jax.nn.log_softmax(output.head(output.hidden))
    nats_BT1 = -jnp.take_along_axis(log_p_BTV, batch['targets'][..., None], axis=-1)
    return nats_BT1.mean() + sum(by_hand(read[READ]).values()), read[READ]

  return jax.jit(total)(params_of(model), batch_of(B=4))


def test_decoding_and_hooks_compute_no_loss(model, params_of, batch_of):
  params, batch = params_of(model), batch_of(B=1, T=1)
  output, _ = jax.eval_shape(with_hooks(model), params, batch)
  assert output.losses == {}
  cached = functools.partial(apply_of(model), params, batch, cache=model.init_cache(1, 4))
  assert jax.eval_shape(cached).losses == {}


def test_gradients_and_terms_under_remat_are_those_of_the_sum(model, expected, params_of, batch_of):
  apply = apply_of(model.clone(remat_policy=jax.checkpoint_policies.nothing_saveable))
  found = jax.jit(functools.partial(gradients, cross_entropy(), apply))
  grads, terms = found(params_of(model), batch_of(B=4), None)
  for name, value in by_hand(np.asarray(expected[1], np.float64)).items():
    assert float(terms[name]) == pytest.approx(value, rel=1e-4)
  for x, y in zip(*map(jax.tree.leaves, (grads, expected[0])), strict=True):
    np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-5)


def test_accumulation_gives_the_mean_over_microbatches(model, expected, params_of, batch_of):
  found = jax.jit(functools.partial(gradients, cross_entropy(), apply_of(model), microbatches=2))
  _, terms = found(params_of(model), batch_of(B=4), None)
  x_NBTD = np.asarray(expected[1], np.float64)
  large, parts = by_hand(x_NBTD), [by_hand(x_NBTD[:, i::2]) for i in range(2)]
  for name in large:
    mean = (parts[0][name] + parts[1][name]) / 2
    assert float(terms[name]) == pytest.approx(mean, rel=1e-4)
  assert float(terms['size']) == pytest.approx(large['size'], rel=1e-4)
  assert abs(float(terms['offset']) / large['offset'] - 1) > 1e-3  # not linear in the batch


def test_evaluations_see_the_losses(model, expected, params_of, batch_of):
  one = mesh.make_mesh({'data': 1}, jax.devices()[:1])
  functions = Inference(model, apply_of(model), one, mesh.RULES)
  terms = make_eval_step(functions, [language_model()])(params_of(model), batch_of(B=4))
  for name, value in by_hand(np.asarray(expected[1], np.float64)).items():
    assert float(terms[name][0] / terms[name][1]) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize(
  ('terms', 'message'),
  [
    (lambda output: {}, "the loss 'offset' of a layer would be dropped"),
    (lambda output: output.losses | {'size': jnp.zeros(())}, "names its loss 'size'"),
  ],
)
def test_losses_are_neither_dropped_nor_overwritten(model, terms, message, params_of, batch_of):
  def loss_sums(apply, params, batch, key):
    return terms(apply(params, batch, key=key))

  names = ('size',) if 'names' in message else ()
  objective = Objective(loss_sums, lambda batch: dict.fromkeys(names, jnp.ones(())))
  with pytest.raises(UserError, match=message):
    jax.eval_shape(
      functools.partial(gradients, objective, apply_of(model)), params_of(model), batch_of(), None
    )
