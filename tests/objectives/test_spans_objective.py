import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import UserError
from lm.tasks.extractive_qa import metric, objective
from lm.types import Output, Table, Unembed

# Two examples in the first row: END q | passage of 3, and END | passage of 1; then padding. One in
# the second row, with a slot to spare.
SEGMENTS = np.array([[1, 1, 1, 1, 1, 2, 2, 0], [1, 1, 1, 0, 0, 0, 0, 0]])
POSITIONS = np.array([[0, 1, 2, 3, 4, 0, 1, 0], [0, 1, 2, 0, 0, 0, 0, 0]])
STOPS = np.array([[0, 0, 2, 4, 6, 0, 3, 0], [0, 1, 2, 0, 0, 0, 0, 0]])
BATCH = {
  'segments': SEGMENTS,
  'positions': POSITIONS,
  'char_stop': STOPS,
  'start': np.array([[2, 0], [1, 0]]),
  'stop': np.array([[4, 0], [2, 0]]),
  'weights': np.float32([[1.0, 2.0], [0.5, 0.0]]),
}
# Where the candidates of each example are, and which of them is the target's start and stop.
CANDIDATES = {(0, 0): [0, 2, 3, 4], (0, 1): [5, 6], (1, 0): [0, 1, 2]}
TARGETS = {(0, 0): (2, 4), (0, 1): (5, 5), (1, 0): (1, 2)}
LOGITS = np.random.default_rng(0).normal(0, 2, (2, 8, 2)).astype(np.float32)


def model(params, batch, key=None, cache=None):
  return Output(params, Unembed(Table(jnp.eye(params.shape[-1]))), {})


def _by_hand(logits_BTC):
  """Returns the weighted sum of -log p(start) - log p(stop), example by example."""
  total = 0
  for (row, slot), candidates in CANDIDATES.items():
    for end, target in enumerate(TARGETS[row, slot]):
      scores = logits_BTC[row, :, end]
      nats = np.log(np.exp(scores[candidates]).sum()) - scores[target]
      total += BATCH['weights'][row, slot] * nats
  return float(total)


@jax.jit
@jax.value_and_grad
def _loss(logits_BTC):
  return objective().sums(model, logits_BTC, BATCH, None)['loss']


def test_the_loss_is_over_the_tokens_of_each_example_alone():
  assert float(_loss(LOGITS)[0]) == pytest.approx(_by_hand(LOGITS), rel=1e-5)
  assert float(objective().weights(BATCH)['loss']) == 3.5


def test_what_is_no_candidate_has_no_gradient():
  gradient = np.asarray(_loss(LOGITS)[1])
  among = np.zeros((2, 8), bool)
  for (row, _), candidates in CANDIDATES.items():
    among[row, candidates] = True
  assert np.isfinite(gradient).all()
  assert (gradient[~among] == 0).all() and (gradient[among] != 0).all()


def test_the_metric_counts_spans_with_both_ends_right():
  logits = np.zeros((2, 8, 2))
  for (row, slot), ends in TARGETS.items():
    logits[row, list(ends), [0, 1]] = 5
    if (row, slot) == (1, 0):
      logits[row, 0, 1] = 6  # its stop is wrong
  logits[0, 1] = 9  # a token of the question is no candidate
  terms = jax.jit(lambda logits: metric().terms(model(logits, BATCH), BATCH))(np.float32(logits))
  assert [float(x) for x in terms['accuracy']] == [3.0, 3.5]
  assert float(terms['loss'][0]) == pytest.approx(_by_hand(logits), rel=1e-5)


@pytest.mark.parametrize('shape', [(2, 8, 3), (2, 2, 2)])
def test_a_model_without_two_logits_a_token_is_told(shape):
  with pytest.raises(UserError, match=r'set model\.classes=2 and leave model\.pool empty'):
    objective().sums(model, jnp.zeros(shape), BATCH, None)
