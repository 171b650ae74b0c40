"""The language-modelling objective: predict each token from those before it."""

import jax.numpy as jnp

from lm.nn.losses import cross_entropy
from lm.types import Apply, Array, Batch, Objective, Params


def next_token(z_loss: float = 0.0, chunk: int = 0) -> Objective:
  """Returns cross-entropy in nats per target token, plus the model's own auxiliary losses.

  Args:
    z_loss: coefficient of the penalty on log(Z)^2; 1e-4 is PaLM's.
    chunk: positions whose logits are held at once; 0 for what fits a fixed budget.
  """

  def sums(apply: Apply, params: Params, batch: Batch, key: Array | None) -> dict[str, Array]:
    output = apply(params, batch, key=key)
    nats, penalty = cross_entropy(
      output.hidden, output.unembed, batch['targets'], batch['weights'], z_loss, chunk
    )
    return {'loss': nats} | ({'z_loss': penalty} if z_loss else {})

  def weights(batch: Batch) -> dict[str, Array]:
    count = jnp.sum(batch['weights'])
    return {'loss': count} | ({'z_loss': count} if z_loss else {})

  return Objective(sums, weights)
