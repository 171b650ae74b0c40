"""The results of the experiments that show a seam: that each does what its paper says."""

import functools
import pathlib
import sys

import jax
import optax
import pytest

from lm.nn.hooks import with_hooks
from lm.objectives.supervised import cross_entropy
from lm.training.train_step import gradients
from lm.types import apply_of

FOLDER = pathlib.Path(__file__).parent.parent / 'experiments'


@pytest.fixture(scope='module', autouse=True)
def experiments():
  """Makes the modules of experiments/ importable, as `lm.workdir.experiment.load` does."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, 'path', [*sys.path, str(FOLDER)])
    yield


def test_the_balance_loss_evens_the_load_of_experts(decoder, params_of, batch_of):
  from mixture_of_experts import MixtureOfExperts

  def model_of(weight):
    return decoder(mlp=functools.partial(MixtureOfExperts, experts=4, balance=weight))

  batch, optimizer = batch_of(B=8, T=16), optax.adam(1e-2)

  @jax.jit  # once for both weights
  def largest_loads(params, weight):
    def step(carry, _):
      params, state = carry
      grads, _ = gradients(cross_entropy(), apply_of(model_of(weight)), params, batch, None)
      updates, state = optimizer.update(grads, state)
      return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=100)
    _, read = with_hooks(model_of(weight))(params, batch, reads=('*router',))
    (p_NME,) = read.values()
    return jax.nn.one_hot(p_NME.argmax(-1), 4).mean(1).max(-1)

  with_loss, without = (largest_loads(params_of(model_of(0.0)), w) for w in (1.0, 0.0))
  print(with_loss, without)
  assert with_loss.max() < 0.35 and without.max() > 0.5
