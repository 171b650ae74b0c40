"""Metrics of targets: exact sums over the examples of a set."""

import math

import jax.numpy as jnp

from lm.errors import UserError
from lm.nn.losses import sigmoid_cross_entropy, token_statistics
from lm.types import Array, Batch, Metric, Output, WeightedSums


def cross_entropy() -> Metric:
  """Returns loss (nats per target) and perplexity.

  Evaluation sets whose `scores` already give an accuracy use this metric, which has none.
  """

  def terms(output: Output, batch: Batch) -> WeightedSums:
    nats, _ = token_statistics(output.hidden, output.head, batch['targets'])
    return _weighted_sums(batch, loss=nats)

  return Metric(terms, _perplexity, {'loss': False, 'perplexity': False})


def targets() -> Metric:
  """Returns loss (nats per target), perplexity and accuracy.

  A target is a token, a tag or a class, depending on the batch.
  """

  def terms(output: Output, batch: Batch) -> WeightedSums:
    nats, correct = token_statistics(output.hidden, output.head, batch['targets'])
    return _weighted_sums(batch, loss=nats, accuracy=correct)

  return Metric(terms, _perplexity, {'loss': False, 'accuracy': True, 'perplexity': False})


def language_model() -> Metric:
  """Returns the values of `targets`, and bits per byte.

  Bits per byte divide by the bytes of the raw text, so they are comparable across tokenizers.

  Raises:
    UserError: when traced, if a batch has other targets than the tokens of a text.
  """
  of_targets = targets()

  def terms(output: Output, batch: Batch) -> WeightedSums:
    if 'bytes' not in batch:
      raise UserError(
        'eval.sets: bits per byte are those of all tokens of a text, and a transform of the set '
        "changes its targets; give it metrics=('lm.metrics.tokens:targets',)"
      )
    sums = of_targets.terms(output, batch)
    size = jnp.sum(batch['bytes'].astype(jnp.float32))
    return sums | {'bits_per_byte': (sums['loss'][0] / math.log(2), size)}

  directions = {**of_targets.higher_is_better, 'bits_per_byte': False}
  return Metric(terms, of_targets.derive, directions)


def binary_cross_entropy() -> Metric:
  """Returns loss: nats per label of C independent labels."""

  def terms(output: Output, batch: Batch) -> WeightedSums:
    nats_BPC = sigmoid_cross_entropy(output.head(output.hidden), batch['targets'])
    return _weighted_sums(batch, loss=nats_BPC.mean(-1))

  return Metric(terms, higher_is_better={'loss': False})


def detection() -> Metric:
  """Returns loss (nats per token) and the F1 of replaced tokens, for one logit a token."""

  def terms(output: Output, batch: Batch) -> WeightedSums:
    logits, weights = output.head(output.hidden)[..., 0], batch['weights']
    replaced = batch['targets'].astype(jnp.float32)
    found = (logits > 0).astype(jnp.float32)
    # F1 is the mean of hits over the mean of hits and half of the errors.
    hits, errors = found * replaced, jnp.abs(found - replaced)
    f1 = jnp.sum(weights * hits), jnp.sum(weights * (hits + errors / 2))
    return _weighted_sums(batch, loss=sigmoid_cross_entropy(logits, replaced)) | {'f1': f1}

  return Metric(terms, higher_is_better={'loss': False, 'f1': True})


def squared_error() -> Metric:
  """Returns the mean squared error of numbers, and their mean absolute error."""

  def terms(output: Output, batch: Batch) -> WeightedSums:
    error = output.head(output.hidden)[..., 0] - batch['targets']
    return _weighted_sums(batch, loss=jnp.square(error), absolute_error=jnp.abs(error))

  return Metric(terms, higher_is_better={'loss': False, 'absolute_error': False})


def _weighted_sums(batch: Batch, **values: Array) -> WeightedSums:
  """Returns for each value its sum over targets, weighted, and the sum of the weights."""
  weights = batch['weights']
  return {name: (jnp.sum(weights * value), jnp.sum(weights)) for name, value in values.items()}


def _perplexity(means: dict[str, float]) -> dict[str, float]:
  return {'perplexity': math.inf if means['loss'] > 700 else math.exp(means['loss'])}
