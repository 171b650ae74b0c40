"""Cross-entropy: the next token, a target sequence, a tag a token, or a class for the whole.

Which of them it is lies in the batch: `targets` and `weights` have the shape that the model's
hidden states have.
"""

import jax.numpy as jnp

from lm.nn import losses
from lm.types import Apply, Array, Batch, Objective, Params


def cross_entropy(z_loss: float = 0.0, label_smoothing: float = 0.0, chunk: int = 0) -> Objective:
  """Returns cross-entropy in nats per target, and its penalties as terms of their own.

  The gradient is that of the sum of all terms (`losses.as_terms`).

  Args:
    z_loss: coefficient of the penalty on log(Z)^2; 1e-4 is PaLM's.
    label_smoothing: share of a target's probability spread over all classes; the term `smoothing`
      is what it adds, so that `loss` stays the negative log-likelihood.
    chunk: positions whose logits are held at once; 0 for what fits a fixed budget.
  """
  present = {'nats': True, 'z_loss': z_loss > 0, 'smoothing': label_smoothing > 0}
  names = {part: 'loss' if part == 'nats' else part for part, there in present.items() if there}

  def loss_sums(apply: Apply, params: Params, batch: Batch, key: Array | None) -> dict[str, Array]:
    output = apply(params, batch, key=key)
    found = losses.cross_entropy(
      output.hidden,
      output.head,
      batch['targets'],
      batch['weights'],
      z_loss,
      label_smoothing,
      chunk,
    )
    parts = {name: getattr(found, part) for part, name in names.items()}
    return losses.as_terms(found.total, parts)

  def normalizers(batch: Batch) -> dict[str, Array]:
    count = jnp.sum(batch['weights'])
    return dict.fromkeys(names.values(), count)

  return Objective(loss_sums, normalizers)
