"""A variant: a new objective, the focal loss on tokens.

  python -m lm.train --config=experiments/focal_loss.py --workdir=runs/focal_loss

The factor (1 - p)^gamma reduces the loss of well-predicted tokens (Lin et al. 2017). `train/loss`
is the focal loss. `eval/validation/loss` remains cross-entropy and is comparable to the
quickstart's. Two CPU cores, 3 minutes.
"""

import jax.numpy as jnp
from ml_collections import ConfigDict

from lm.config.base import base, select_variant, smoke
from lm.config.resolve import ref
from lm.nn.losses import token_statistics
from lm.types import Objective


def focal(gamma: float = 2.0) -> Objective:
  """Returns the objective -(1 - p)^gamma log p, a mean over target tokens."""

  def loss_sums(apply, params, batch, key):
    output = apply(params, batch, key=key)
    nats_BT = token_statistics(output.hidden, output.head, batch['targets']).nats
    sums = jnp.sum(batch['weights'] * (1 - jnp.exp(-nats_BT)) ** gamma * nats_BT)
    return {'loss': sums} | output.losses

  def normalizers(batch):
    return {'loss': jnp.sum(batch['weights'])}

  return Objective(loss_sums, normalizers)


def get_config(arg=''):
  config = base()
  config.objective = ConfigDict({'fn': ref(focal), 'gamma': 2.0})
  return select_variant(config, arg, smoke=smoke)
