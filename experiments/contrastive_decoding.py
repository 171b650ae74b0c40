"""A variant: contrastive decoding, an ensemble that subtracts the log probabilities of an amateur.

  python -m lm.train --config=experiments/contrastive_decoding.py --workdir=runs/expert
  python -m lm.train --config=experiments/contrastive_decoding.py:amateur --workdir=runs/amateur
  python -m lm.generate --workdir=runs/expert,runs/amateur --temperature=0 --prompt='The ' \
    --mean='contrastive_decoding:contrastive(alpha=0.1)'

The text avoids what a weak model finds likely, among tokens that the strong model finds plausible
(Li et al. 2022, "Contrastive Decoding", section 3). Both read the text of the base config. Two CPU
cores, 3 minutes for the expert and one for the amateur.
"""

import jax
import jax.numpy as jnp

from lm.config.base import base, select_variant, smoke


def contrastive(logits_MBTV, alpha: float = 0.1, temperature: float = 1.0):
  """Returns log p of the first member minus that of the second, at a temperature of its own.

  Tokens less probable for the first member than `alpha` times its most probable one have -inf.
  """
  expert, amateur = logits_MBTV
  log_p = jax.nn.log_softmax(expert)
  is_plausible = log_p >= log_p.max(-1, keepdims=True) + jnp.log(alpha)
  return jnp.where(is_plausible, log_p - jax.nn.log_softmax(amateur / temperature), -jnp.inf)


def amateur(config):
  config.model.update({'depth': 1, 'd_model': 64})
  return config


def get_config(arg=''):
  return select_variant(base(), arg, amateur=amateur, smoke=smoke)
