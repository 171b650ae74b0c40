"""Token metrics of language models, exact sums over a set of examples."""

import math

import jax.numpy as jnp

from lm.nn.losses import token_statistics
from lm.types import Batch, Metric, Output, Terms


def language_model() -> Metric:
  """Returns loss (nats per token), perplexity, accuracy (of tokens) and bits per byte.

  Bits per byte divide by the bytes of the raw text and so compare across tokenizers.
  """

  def terms(output: Output, batch: Batch) -> Terms:
    nats_BT, correct_BT = token_statistics(output.hidden, output.unembed, batch['targets'])
    weights_BT = batch['weights']
    count = jnp.sum(weights_BT)
    nats = jnp.sum(weights_BT * nats_BT)
    return {
      'loss': (nats, count),
      'accuracy': (jnp.sum(weights_BT * correct_BT), count),
      'bits_per_byte': (nats / math.log(2), jnp.sum(batch['bytes'].astype(jnp.float32))),
    }

  def derive(means: dict[str, float]) -> dict[str, float]:
    return {'perplexity': math.inf if means['loss'] > 700 else math.exp(means['loss'])}

  return Metric(terms, derive)
