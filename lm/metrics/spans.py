"""Metrics of spans: exact sums over a set of windows."""

import jax.numpy as jnp

from lm.nn.spans import span_statistics
from lm.types import Batch, Metric, Output, WeightedSums


def spans() -> Metric:
  """Returns loss, -log p(start) - log p(stop) in nats per window, and accuracy.

  Accuracy is the share of windows whose first and last token (or, for no answer, END) are both the
  likeliest ones; lm.metrics.answers compares the texts that are predicted from all windows.
  """

  def terms(output: Output, batch: Batch) -> WeightedSums:
    nats, correct = span_statistics(output, batch)
    weights = batch['weights']
    count = jnp.sum(weights)
    return {
      'loss': (jnp.sum(weights * nats), count),
      'accuracy': (jnp.sum(weights * correct), count),
    }

  return Metric(terms, higher_is_better={'loss': False, 'accuracy': True})
