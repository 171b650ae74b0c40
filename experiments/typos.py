"""A variant: an evaluation set whose rows are damaged when they are read.

  python -m lm.train --config=experiments/typos.py --workdir=runs/typos

The set `typos` has the text of `validation`, but a tenth of the input tokens are exchanged for
others of their row; targets stay. The damage of a row depends on the set and the row alone, so that
steps, seeds and batch sizes are comparable. Two CPU cores, 3 minutes.
"""

import numpy as np

from lm.config.base import base, evaluation, select_variant, smoke
from lm.config.resolve import ref


def typos(row, rng, share: float = 0.1):
  """Exchanges a share of the inputs for other tokens of the row."""
  inputs = row['inputs']
  hit = (rng.random(inputs.shape) < share) & (row['segments'] > 0)
  return row | {'inputs': np.where(hit, rng.permutation(inputs), inputs)}


def get_config(arg=''):
  config = base()
  with config.unlocked():
    config.eval.sets.typos = evaluation('validation', transforms=(ref(typos, share=0.1),))
  return select_variant(config, arg, smoke=smoke)
