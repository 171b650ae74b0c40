import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.metrics.tokens import language_model
from lm.types import EmbeddingTable, Output, OutputHead


def _terms(logits_BTV, targets, weights, sizes):
  """Returns the metric's terms where the hidden states are the logits themselves."""
  logits_BTV = np.asarray(logits_BTV, np.float32)
  batch = {
    'targets': np.asarray(targets),
    'weights': np.asarray(weights, np.float32),
    'bytes': np.asarray(sizes),
  }
  return jax.device_get(_of_logits(logits_BTV, batch))


@jax.jit
def _of_logits(logits_BTV, batch):
  output = Output(logits_BTV, OutputHead(EmbeddingTable(jnp.eye(logits_BTV.shape[-1]))), {})
  return language_model().terms(output, batch)


def _means(terms):
  return {name: float(total / weight) for name, (total, weight) in terms.items()}


def test_uniform_predictions_cost_the_logarithm_of_the_vocabulary():
  # Three bytes a token and 8 tokens to choose from: one bit a byte.
  means = _means(_terms(np.zeros((1, 2, 8)), [[3, 5]], [[1, 1]], [[2, 4]]))
  assert means['loss'] == pytest.approx(math.log(8), rel=1e-6)
  assert means['bits_per_byte'] == pytest.approx(1, rel=1e-6)
  assert language_model().derive(means) == {'perplexity': pytest.approx(8, rel=1e-5)}


def test_sums_are_weighted_and_exclude_padding():
  logits = np.log([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.2, 0.2, 0.6]]])
  terms = _terms(logits, [[0, 1, 2]], [[1, 1, 0]], [[3, 4, 0]])
  found = {name: (float(a), float(b)) for name, (a, b) in terms.items()}
  nats = -math.log(0.5) - math.log(0.2)
  assert found['loss'] == (pytest.approx(nats, rel=1e-5), 2)
  assert found['accuracy'] == (1, 2)
  assert found['bits_per_byte'] == (pytest.approx(nats / math.log(2), rel=1e-5), 7)


def test_sums_of_parts_equal_the_total():
  rng = np.random.default_rng(0)
  logits, targets = rng.normal(0, 2, (4, 3, 5)), rng.integers(0, 5, (4, 3))
  weights, sizes = rng.integers(0, 2, (4, 3)), rng.integers(0, 9, (4, 3))
  total = _terms(logits, targets, weights, sizes)
  parts = [_terms(logits[i], targets[i], weights[i], sizes[i]) for i in (slice(3), slice(3, 4))]
  added = jax.tree.map(np.add, *parts)
  for x, y in zip(jax.tree.leaves(added), jax.tree.leaves(total), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5)


def test_perplexity_of_a_diverged_model_is_infinite_or_nan():
  assert language_model().derive({'loss': 1e4}) == {'perplexity': math.inf}
  assert math.isnan(language_model().derive({'loss': math.nan})['perplexity'])
