import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.metrics import tokens
from lm.objectives.supervised import binary_cross_entropy, cross_entropy, squared_error
from lm.types import EmbeddingTable, Output, OutputHead


@pytest.fixture
def model():
  """A model whose parameter is the table; hidden states are one-hot vectors of the inputs."""

  def apply(params, batch, key=None, cache=None):
    return Output(jax.nn.one_hot(batch['inputs'], 3), OutputHead(EmbeddingTable(params)), {})

  return apply


BATCH = {
  'inputs': np.array([[0, 1], [2, 2]]),
  'targets': np.array([[1, 2], [0, 1]]),
  'weights': np.float32([[1.0, 0.5], [2.0, 0.0]]),
}
# logits of token t after token s, as table[t, s]
TABLE = np.float32([[0.0, 1.0, 2.0], [0.5, 0.0, -1.0], [1.0, 3.0, 0.0]])


def _sums(objective, model):
  return jax.jit(lambda table: objective.loss_sums(model, table, BATCH, None))(TABLE)


def _by_hand(function):
  """Returns the weighted sum over targets of function(logits, target)."""
  rows = zip(*(np.ravel(BATCH[name]) for name in ('inputs', 'targets', 'weights')), strict=True)
  return sum(weight * function(TABLE[:, s], t) for s, t, weight in rows)


def test_the_loss_is_cross_entropy_in_nats(model):
  sums = _sums(cross_entropy(), model)
  expected = _by_hand(lambda logits, t: np.log(np.exp(logits).sum()) - logits[t])
  assert {name: float(x) for name, x in sums.items()} == {'loss': pytest.approx(expected, rel=1e-5)}


def test_z_loss_is_a_separate_term(model):
  objective = cross_entropy(z_loss=0.01, logits_chunk=1)
  sums = _sums(objective, model)
  expected = _by_hand(lambda logits, _: 0.01 * np.log(np.exp(logits).sum()) ** 2)
  assert float(sums['z_loss']) == pytest.approx(expected, rel=1e-5)
  plain = _sums(cross_entropy(), model)
  assert float(sums['loss']) == pytest.approx(float(plain['loss']), rel=1e-6)


@pytest.mark.parametrize('z_loss', [0.0, 0.01])
def test_normalizers_depend_on_the_batch_alone(z_loss, model):
  objective = cross_entropy(z_loss)
  weights = objective.normalizers(BATCH)
  assert set(weights) == set(jax.eval_shape(lambda: objective.loss_sums(model, TABLE, BATCH, None)))
  assert {float(w) for w in weights.values()} == {3.5}


def test_the_dropout_key_reaches_the_model(model):
  keys = []

  def spy(params, batch, key=None, cache=None):
    keys.append(key)
    return model(params, batch)

  key = jax.random.key(3)
  jax.eval_shape(lambda: cross_entropy().loss_sums(spy, TABLE, BATCH, key))
  assert keys == [key]


# Two rows of three examples, whose hidden states have one element h; logits are 2 h + 1.
HIDDEN = np.array([[0.5, -1.0, 3.0], [2.0, 0.0, 0.0]])
NUMBERS = {
  'targets': jnp.asarray([[1.0, -2.0, 100.0], [5.5, 0.0, 0.0]]),
  'weights': jnp.asarray([[1.0, 0.5, 0.0], [1.0, 0.0, 0.0]]),
}
ERRORS = np.array([2.0 - 1.0, -1.0 + 2.0, 5.0 - 5.5])  # of those with a weight
WEIGHTS = np.array([1, 0.5, 1])


def _apply(params, batch, key=None, cache=None):
  hidden = jnp.asarray(HIDDEN, jnp.float32)[..., None]
  return Output(hidden, OutputHead(EmbeddingTable(jnp.full((1, 1), 2.0)), jnp.ones(1)), {})


def test_squared_error_is_weighted():
  sums = squared_error().loss_sums(_apply, None, NUMBERS, None)
  assert {name: float(x) for name, x in sums.items()} == {
    'loss': pytest.approx(np.sum(WEIGHTS * ERRORS**2), rel=1e-6)
  }
  assert float(squared_error().normalizers(NUMBERS)['loss']) == 2.5


def test_squared_error_metric():
  terms = tokens.squared_error().terms(_apply(None, NUMBERS), NUMBERS)
  found = {name: (float(total), float(weight)) for name, (total, weight) in terms.items()}
  assert found == {
    'loss': (pytest.approx(np.sum(WEIGHTS * ERRORS**2), rel=1e-6), 2.5),
    'absolute_error': (pytest.approx(np.sum(WEIGHTS * np.abs(ERRORS)), rel=1e-6), 2.5),
  }


def test_binary_cross_entropy_is_that_of_independent_labels(model):
  targets = np.array([[[1, 0, 1], [0, 0, 0]], [[0, 1, 0], [1, 1, 1]]])
  batch = BATCH | {'targets': targets}
  p = 1 / (1 + np.exp(-TABLE.T[BATCH['inputs']]))  # (B, P, C)
  nats = -np.where(targets == 1, np.log(p), np.log(1 - p)).mean(-1)
  objective = binary_cross_entropy()
  sums = objective.loss_sums(model, TABLE, batch, None)
  expected = (BATCH['weights'] * nats).sum()
  assert float(sums['loss']) == pytest.approx(expected, rel=1e-5)
  assert float(objective.normalizers(batch)['loss']) == 3.5
  total, weight = tokens.binary_cross_entropy().terms(model(TABLE, batch), batch)['loss']
  assert float(total) == pytest.approx(expected, rel=1e-5) and float(weight) == 3.5
