"""The results of the experiments that show a seam: that each does what its paper says."""

import functools
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.optim import optimizers
from lm.training.train_step import gradients
from lm.types import EmbeddingTable, Output, OutputHead

FOLDER = pathlib.Path(__file__).parent.parent / 'experiments'


@pytest.fixture(scope='module', autouse=True)
def experiments():
  """Makes the modules of experiments/ importable, as `lm.workdir.experiment.load` does."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, 'path', [*sys.path, str(FOLDER)])
    yield


def test_the_balance_loss_evens_the_load_of_experts():
  from mixture_of_experts import MixtureOfExperts

  rng, optimizer, E = np.random.default_rng(0), optax.adam(1e-2), 4
  # Tokens with a common mean, which a router sends to one expert at first.
  x_BTD, y_BTD = (jnp.asarray(rng.normal(1, 1, (4, 32, 8)), jnp.float32) for _ in range(2))

  def layer_of(weight):
    init = jax.nn.initializers.normal(0.3)
    return MixtureOfExperts(8, experts=E, balance=weight, kernel_init=init, out_init=init)

  @jax.jit  # once for both weights
  def largest_load(params, weight):
    layer = layer_of(weight)

    def loss(params):
      found_BTD, state = layer.apply({'params': params}, x_BTD, mutable=['losses'])
      return jnp.mean(jnp.square(found_BTD - y_BTD)) + state['losses']['balance']

    def step(carry, _):
      params, state = carry
      updates, state = optimizer.update(jax.grad(loss)(params), state)
      return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=200)
    return jnp.bincount((x_BTD @ params['router']['kernel']).argmax(-1).ravel(), length=E).max()

  params = nn.unbox(jax.jit(layer_of(0.0).init)(jax.random.key(0), x_BTD)['params'])
  balanced, free = (int(largest_load(params, weight)) for weight in (1.0, 0.0))
  assert balanced < 0.35 * 128 and free > 0.5 * 128


def test_the_average_is_that_of_the_formula():
  import ema

  steps, decay = 5, 0.7
  rng = np.random.default_rng(0)
  params = {'kernel': jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)}
  optimizer = ema.ema(
    optimizers.constant, decay, learning_rate=0.1, decay_steps=9, weight_decay=0.1
  )
  plain = optimizers.adamw(0.1, optimizers.constant, 9, weight_decay=0.1)

  @functools.partial(jax.jit, static_argnums=0)
  def updated(transformation, grads, state, params):
    updates, state = transformation.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state, other = optimizer.transformation.init(params), plain.transformation.init(params)
  np.testing.assert_array_equal(optimizer.evaluated(params, state)['kernel'], params['kernel'])
  after, same = [], params
  for _ in range(steps):
    grads = {'kernel': jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)}
    params, state = updated(optimizer.transformation, grads, state, params)
    same, other = updated(plain.transformation, grads, other, same)
    after.append(np.asarray(params['kernel'], np.float64))
  np.testing.assert_array_equal(params['kernel'], same['kernel'])
  weights = decay ** np.arange(steps)[::-1]
  expected = np.tensordot(weights / weights.sum(), np.stack(after), 1)
  np.testing.assert_allclose(optimizer.evaluated(params, state)['kernel'], expected, rtol=1e-5)


def test_a_distilled_student_is_closer_to_its_teacher(batch_of):
  import distillation

  def bigrams(params, batch, key=None):  # the logits of a token follow from the one before
    hidden_BTD = params['embedding'][batch['inputs']]
    return Output(hidden_BTD, OutputHead(EmbeddingTable(params['unembedding'])), {})

  def drawn(width, seed):
    rng = np.random.default_rng(seed)
    drawn = rng.normal(0, 1, (2, 37, width)).astype(np.float32)
    return {'embedding': jnp.asarray(drawn[0]), 'unembedding': jnp.asarray(drawn[1])}

  apply = {'model': bigrams, 'teacher': bigrams}
  teacher, optimizer = drawn(8, seed=1), optax.adam(3e-2)
  batch, held_out = batch_of(B=8, T=16), batch_of(B=8, T=16, seed=1)

  def join(params):
    return {'model': params, 'teacher': teacher}

  @jax.jit  # once for both weights
  def divergence(params, weight):
    objective = distillation.distillation(weight)

    def step(carry, _):
      params, state = carry
      grads, _ = gradients(objective, apply, params, batch, None, join=join)
      updates, state = optimizer.update(grads, state)
      return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=200)
    only = distillation.distillation(1.0, temperature=1.0)
    sums = only.loss_sums(apply, join(params), held_out, None)
    return sums['kl'] / only.normalizers(held_out)['kl']

  distilled, alone = (float(divergence(drawn(4, seed=2), weight)) for weight in (0.9, 0.0))
  assert distilled < 0.5 * alone


def test_merged_matrices_are_the_view_and_start_at_the_pretrained_ones(decoder, params_of):
  import lora

  params = params_of(decoder())
  view = lora.lora(rank=2)
  adapters, kept = view.split(jax.random.key(0), params)
  jax.tree.map(np.testing.assert_array_equal, view.merge(adapters, kept), params)
  adapters = jax.tree.map(lambda x: x + 1, adapters)
  layer, of_layer = (x['decoder']['layers']['layer_0'] for x in (params, adapters))
  merged = view.merge(adapters, kept)['decoder']['layers']['layer_0']
  for name, equation in (('qkv', 'ndr,nrthk->ndthk'), ('out', 'nhkr,nrd->nhkd')):
    a, b = (np.asarray(of_layer['attention'][name]['kernel'][x]) for x in 'ab')
    expected = layer['attention'][name]['kernel'] + np.einsum(equation, a, b)
    np.testing.assert_allclose(merged['attention'][name]['kernel'], expected, rtol=1e-5)
