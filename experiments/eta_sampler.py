"""A variant: eta sampling, a sampler whose threshold falls with the entropy of the distribution.

  python -m lm.train --config=experiments/eta_sampler.py --workdir=runs/eta
  python -m lm.generate --workdir=runs/eta --sampler='eta_sampler:eta(epsilon=2e-3)' --prompt='The '

Tokens whose probability is at most min(epsilon, sqrt(epsilon) exp(-entropy)) are not sampled
(Hewitt et al. 2022, "Truncation Sampling as Language Model Desmoothing"). The run's own samples use
it too. Text and sizes are those of the base config. Two CPU cores, 3 minutes.
"""

import functools

import jax
import jax.numpy as jnp

from lm.config.base import base, select_variant, smoke
from lm.config.resolve import ref
from lm.errors import check_range


@functools.cache
def eta(epsilon: float = 3e-4):
  """Returns the function that samples from the tokens that `keep_eta` keeps."""
  check_range('eta: epsilon', epsilon, 0, 1)
  return lambda logits_V, key: jax.random.categorical(key, keep_eta(logits_V, epsilon))


def keep_eta(logits_V, epsilon):
  """Sets the logits of improbable tokens to -inf; the most probable token stays."""
  p_V = jax.nn.softmax(logits_V)
  entropy = jax.scipy.special.entr(p_V).sum()
  threshold = jnp.minimum(epsilon, jnp.sqrt(epsilon) * jnp.exp(-entropy))
  return jnp.where((p_V > threshold) | (logits_V == logits_V.max()), logits_V, -jnp.inf)


def get_config(arg=''):
  config = base()
  config.decode.sampler = ref(eta, epsilon=3e-4)
  return select_variant(config, arg, smoke=smoke)
