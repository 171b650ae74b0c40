"""A variant: an optimizer of Optax by its path, and a callback that watches the parameters.

  python -m lm.train --config=experiments/lion.py --workdir=runs/lion

Lion takes the sign of a momentum (Chen et al. 2023, "Symbolic Discovery of Optimization
Algorithms"), so its rate is a third of AdamW's and its decay three times as large. Decay by path
and the doubled rate of the embedding are those of every optimizer here. Text and sizes are those of
the base config. Two CPU cores, 3 minutes.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lm.config.base import base, link_defaults, select_variant, smoke
from lm.config.resolve import ref


def watch(every: int = 100):
  """Returns a callback that prints the root mean square of each parameter."""

  def show(step, state, metrics):
    norms = jax.tree_util.tree_leaves_with_path(jax.jit(rms)(state.params))
    for path, x in norms if jax.process_index() == 0 else ():
      print(f'{step:6}  {float(x):.4f}  {jax.tree_util.keystr(path, simple=True, separator="/")}')

  return every, show


def rms(params):
  """Returns the root mean square of each array of a tree."""
  return jax.tree.map(lambda x: jnp.sqrt(jnp.mean(jnp.square(x))), params)


def get_config(arg=''):
  config = base()
  config.optim = ConfigDict({
    'fn': 'lm.optim.optimizers:from_optax',
    'optimizer': 'optax:lion(b1=0.95, b2=0.98)',
    'learning_rate': 3e-4,
    'schedule': 'lm.optim.optimizers:cosine',
    'decay_steps': 0,
    'warmup_steps': 100,
    'weight_decay': 0.3,
    'lr_multipliers': ('embedding$ -> 2',),
    'clip_norm': 1.0,
  })  # fmt: skip
  config.callbacks = (ref(watch, every=100),)
  return select_variant(link_defaults(config), arg, smoke=smoke)
