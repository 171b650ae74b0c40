"""Cross-entropy of where an answer begins and ends, among the tokens of its own example."""

import jax.numpy as jnp

from lm.nn.spans import span_statistics
from lm.types import Apply, Array, Batch, Objective, Params


def spans() -> Objective:
  """Returns -log p(start) - log p(stop) in nats per window (Devlin et al. 2019, 4.2).

  The sum is the negative log-likelihood of the span; BERT's code halves it.
  """

  def loss_sums(apply: Apply, params: Params, batch: Batch, key: Array | None) -> dict[str, Array]:
    output = apply(params, batch, key=key)
    return {'loss': jnp.sum(batch['weights'] * span_statistics(output, batch).nats)}

  return Objective(loss_sums, normalizers=lambda batch: {'loss': jnp.sum(batch['weights'])})
