"""GloVe (Pennington et al. 2014), which fits logarithms of co-occurrence counts."""

import jax.numpy as jnp
import numpy as np

from lm.errors import UserError
from lm.nn.embedding import compact_ids
from lm.types import Apply, Array, Batch, Objective, Params


def glove(x_max: float = 100.0, power: float = 0.75, counts: np.ndarray | None = None) -> Objective:
  """Returns weighted least squares, the paper's eq. 8: f(x) (w_i c_j + b_i + b_j - log x)^2 / 2.

  The weight f(x) = min(1, x / x_max)^power (eq. 9) is lower for rare pairs, which are noisy. The
  sum is over the pairs that occur, because log 0 does not exist. It thus has no matrix form such as
  |W C' - log X|^2 over all pairs, although some introductions to GloVe give one.

  A batch has `inputs` i, `neighbours` j and `counts` x, each (B, T). The factor 1/2 is that of the
  authors' program. The loss is a mean over pairs.

  Args:
    x_max: pairs with at least this count have weight 1.
    power: the paper's alpha.
    counts: (V,) how often each token occurs.

  Raises:
    UserError: an argument is out of its range.
  """
  if not x_max > 0:
    raise UserError(f'objective.x_max={x_max} is not above 0')
  if power < 0:
    raise UserError(f'objective.power={power} is below 0')

  def rows(batch: Batch) -> tuple[dict[str, Array], Batch]:
    assert counts is not None, 'GloVe needs counts, which lm.components.pass_corpus passes'
    words, batch = compact_ids(batch, ('inputs',), len(counts))
    others, batch = compact_ids(batch, ('neighbours',), len(counts))
    tables = {'embedding': words, 'bias': words, 'unembedding': others, 'unembedding_bias': others}
    return tables, batch

  def loss_sums(apply: Apply, params: Params, batch: Batch, key: Array | None) -> dict[str, Array]:
    hidden_BTD, head, *_ = apply(params, batch, key=key)
    kernel_BTD = jnp.take(head.kernel_VD, batch['neighbours'], axis=0, mode='clip')
    assert head.bias_V is not None, 'GloVe needs model.biases=True'
    bias_BT = jnp.take(head.bias_V, batch['neighbours'], mode='clip')
    count_BT = jnp.maximum(batch['counts'], 1e-30)  # padding has count 0, and weight 0
    product_BTD = hidden_BTD * kernel_BTD
    # A matmul with ones: on CPUs, XLA's sum over short rows takes ten times as long.
    sum_BT = jnp.matmul(product_BTD, jnp.ones(product_BTD.shape[-1]))
    error_BT = sum_BT + bias_BT - jnp.log(count_BT)
    weight_BT = batch['weights'] * jnp.minimum(1, count_BT / x_max) ** power
    return {'loss': jnp.sum(weight_BT * jnp.square(error_BT)) / 2}

  return Objective(loss_sums, lambda batch: {'loss': jnp.sum(batch['weights'])}, sparse_rows=rows)
