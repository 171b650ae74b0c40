import jax.numpy as jnp
import numpy as np
import pytest

from lm.metrics import tokens
from lm.objectives.squared_error import squared_error
from lm.types import EmbeddingTable, Output, OutputHead

# Two rows of three places for examples, the hidden state of each a number; logits are 2 h + 1.
HIDDEN = np.array([[0.5, -1.0, 3.0], [2.0, 0.0, 0.0]])
BATCH = {
  'targets': jnp.asarray([[1.0, -2.0, 100.0], [5.5, 0.0, 0.0]]),
  'weights': jnp.asarray([[1.0, 0.5, 0.0], [1.0, 0.0, 0.0]]),
}
ERRORS = np.array([2.0 - 1.0, -1.0 + 2.0, 5.0 - 5.5])  # of those with a weight
WEIGHTS = np.array([1, 0.5, 1])


def _apply(params, batch, key=None, cache=None):
  hidden = jnp.asarray(HIDDEN, jnp.float32)[..., None]
  return Output(hidden, OutputHead(EmbeddingTable(jnp.full((1, 1), 2.0)), jnp.ones(1)), {})


def test_the_loss_is_the_weighted_sum_of_squared_errors():
  sums = squared_error().loss_sums(_apply, None, BATCH, None)
  assert {name: float(x) for name, x in sums.items()} == {
    'loss': pytest.approx(np.sum(WEIGHTS * ERRORS**2), rel=1e-6)
  }
  assert float(squared_error().normalizers(BATCH)['loss']) == 2.5


def test_the_metric_is_the_mean_squared_and_the_mean_absolute_error():
  terms = tokens.squared_error().terms(_apply(None, BATCH), BATCH)
  found = {name: (float(total), float(weight)) for name, (total, weight) in terms.items()}
  assert found == {
    'loss': (pytest.approx(np.sum(WEIGHTS * ERRORS**2), rel=1e-6), 2.5),
    'absolute_error': (pytest.approx(np.sum(WEIGHTS * np.abs(ERRORS)), rel=1e-6), 2.5),
  }
