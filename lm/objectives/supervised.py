"""Supervised objectives: cross-entropy, that of independent labels, and squared error.

The batch determines the prediction: the next token, a target sequence, a tag per token, or a class,
number or set of labels per example. `targets` and `weights` have the shape of the hidden states
without D; a set of labels has an axis C in its place. Losses of layers are further terms.
"""

import jax.numpy as jnp

from lm.nn import losses
from lm.types import Apply, Array, Batch, Objective, Params


def cross_entropy(
  z_loss: float = 0.0, label_smoothing: float = 0.0, logits_chunk: int = 0
) -> Objective:
  """Returns cross-entropy in nats per target, with its penalties as separate terms.

  The gradient is that of the sum of all terms (`losses.as_terms`).

  Args:
    z_loss: coefficient of the penalty on log(Z)^2; PaLM uses 1e-4.
    label_smoothing: share of a target's probability that is spread over all classes. The term
      `smoothing` is the difference it makes, so that `loss` stays the negative log-likelihood.
    logits_chunk: positions whose logits are in memory together; 0 for a fixed memory budget.
  """
  factors = {'nats': 1.0, 'z_loss': z_loss, 'smoothing': label_smoothing}
  names = {part: 'loss' if part == 'nats' else part for part, x in factors.items() if x > 0}

  def loss_sums(apply: Apply, params: Params, batch: Batch, key: Array | None) -> dict[str, Array]:
    output = apply(params, batch, key=key)
    sums = losses.cross_entropy(
      output.hidden,
      output.head,
      batch['targets'],
      batch['weights'],
      z_loss,
      label_smoothing,
      logits_chunk,
    )
    parts = {name: getattr(sums, part) for part, name in names.items()}
    return {**losses.as_terms(sums.total, parts), **output.losses}

  def normalizers(batch: Batch) -> dict[str, Array]:
    return dict.fromkeys(names.values(), jnp.sum(batch['weights']))

  return Objective(loss_sums, normalizers)


def binary_cross_entropy() -> Objective:
  """Returns the mean negative log-likelihood of C independent labels, in nats per label.

  Targets (B, P, C) are 1 for the labels of an example, else 0.
  """

  def loss_sums(apply: Apply, params: Params, batch: Batch, key: Array | None) -> dict[str, Array]:
    output = apply(params, batch, key=key)
    nats_BPC = losses.sigmoid_cross_entropy(output.head(output.hidden), batch['targets'])
    return {'loss': jnp.sum(batch['weights'] * nats_BPC.mean(-1)), **output.losses}

  return Objective(loss_sums, normalizers=lambda batch: {'loss': jnp.sum(batch['weights'])})


def squared_error() -> Objective:
  """Returns the mean of (prediction - target)^2."""

  def loss_sums(apply: Apply, params: Params, batch: Batch, key: Array | None) -> dict[str, Array]:
    output = apply(params, batch, key=key)
    error = output.head(output.hidden)[..., 0] - batch['targets']
    return {'loss': jnp.sum(batch['weights'] * jnp.square(error)), **output.losses}

  return Objective(loss_sums, normalizers=lambda batch: {'loss': jnp.sum(batch['weights'])})
