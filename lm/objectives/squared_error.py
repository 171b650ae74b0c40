"""Mean squared error of a number for each whole example (or token), the first logit."""

import jax.numpy as jnp

from lm.types import Apply, Array, Batch, Objective, Params


def squared_error() -> Objective:
  """Returns the mean of (prediction - target)^2."""

  def loss_sums(apply: Apply, params: Params, batch: Batch, key: Array | None) -> dict[str, Array]:
    output = apply(params, batch, key=key)
    error = output.head(output.hidden)[..., 0] - batch['targets']
    return {'loss': jnp.sum(batch['weights'] * jnp.square(error))}

  return Objective(loss_sums, normalizers=lambda batch: {'loss': jnp.sum(batch['weights'])})
