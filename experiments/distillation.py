"""A variant: distillation of a trained model, the teacher, into a smaller one.

  python -m lm.train --config=experiments/distillation.py --workdir=runs/distillation

The teacher is runs/quickstart, or --config.models.teacher.workdir. The student has half of its
depth and width. It learns the text and the distribution of the teacher at a temperature (Hinton et
al. 2015), with weights that sum to 1: `train/loss` is half of the cross-entropy, and `train/kl` is
half of the second term. Two CPU cores, 2 minutes.
"""

import jax
import jax.numpy as jnp
import quickstart
from ml_collections import ConfigDict

from lm.config.base import another_model, gpt2, select_variant
from lm.config.base import smoke as small
from lm.errors import UserError
from lm.nn.losses import token_statistics
from lm.types import Objective


def distillation(weight: float = 0.5, temperature: float = 2.0) -> Objective:
  """Returns (1 - weight) * cross-entropy + weight * temperature^2 * KL(teacher | student)."""

  def loss_sums(apply, params, batch, key):
    student = apply['model'](params['model'], batch, key=key)
    teacher = apply['teacher'](params['teacher'], batch)
    nats_BT = token_statistics(student.hidden, student.head, batch['targets']).nats
    log_p_BTV, log_q_BTV = (
      jax.nn.log_softmax(output.head(output.hidden) / temperature) for output in (teacher, student)
    )
    if log_p_BTV.shape != log_q_BTV.shape:
      sizes = f'{log_p_BTV.shape[-1]} logits, and the model {log_q_BTV.shape[-1]}'
      raise UserError(f'models.teacher has {sizes}; both need one vocabulary and vocab_multiple')
    kl_BT = jnp.sum(jnp.exp(log_p_BTV) * (log_p_BTV - log_q_BTV), axis=-1)
    loss, kl = (jnp.sum(batch['weights'] * x_BT) for x_BT in (nats_BT, kl_BT))
    return {'loss': (1 - weight) * loss, 'kl': weight * temperature**2 * kl} | student.losses

  def normalizers(batch):
    return dict.fromkeys(('loss', 'kl'), jnp.sum(batch['weights']))

  return Objective(loss_sums, normalizers)


def get_config(arg=''):
  config = quickstart.get_config()
  config.model = gpt2(depth=2, d_model=64, heads=4, context=128)
  config.objective = ConfigDict({'fn': 'distillation:distillation', 'weight': 0.5})
  config.models = ConfigDict({'teacher': another_model('runs/quickstart')})
  return select_variant(config, arg, smoke=smoke)


def smoke(config):
  """Takes a random teacher, because there is no run to read."""
  config.models.teacher = another_model(model=gpt2(depth=1, d_model=32, heads=4, context=32))
  return small(config)
