"""Dates by an LSTM that encodes the source as one fixed-size vector (Sutskever et al. 2014).

  python -m lm.train --config=experiments/dates_fixed_vector.py --workdir=runs/dates_fixed_vector

The encoder-decoder of the article has no attention. The encoder's final states initialize the
decoder, which receives nothing else from the source. dates_lstm.py is the same model with
attention.

The vector is sufficient for one date. `:two`, `:four` and `:eight` have that many dates in each
example, and `:mixed` has one to four. `:four_attending` and the other `_attending` variants add
attention. Without attention, exact match drops as examples get more dates. Two CPU cores, 3 minutes
for one date. Figures: experiments/LOG.md.
"""

import functools

import dates_lstm
import numpy as np

from lm.config.base import select_variant
from lm.config.tasks import small
from lm.data import sources


def several(split, count=2, least=0, size=20_000):
  """Returns at most `size` examples with `count` dates in the source and in the target.

  With `least`, each example has between `least` and `count` dates, sampled uniformly.
  """
  dates = sources.dates(split)
  rng = np.random.default_rng([count, len(dates)])
  size = min(size, len(dates))
  counts = rng.integers(least or count, count + 1, size)
  return _Several(dates, rng.integers(0, len(dates), (size, count)), counts)


class _Several:
  def __init__(self, dates, indices, counts):
    self._dates, self._indices, self._counts = dates, indices, counts

  def __len__(self):
    return len(self._indices)

  def __getitem__(self, row):
    picked = [self._dates[int(i)] for i in self._indices[row, : self._counts[row]]]
    source, target = (' / '.join(d[side] for d in picked) for side in ('source', 'target'))
    return {'source': source, 'target': target}


def get_config(arg=''):
  fixed, attending = dates_lstm.dates(None), dates_lstm.dates('additive')
  fixed.steps, fixed.eval.every = 2000, 500
  counts = {'two': 2, 'four': 4, 'eight': 8}
  variants = {name: functools.partial(_longer, count=n) for name, n in counts.items()}
  variants['mixed'] = functools.partial(_longer, count=4, least=1)
  if arg.endswith('_attending'):
    return select_variant(attending, arg, **{f'{k}_attending': v for k, v in variants.items()})
  return select_variant(fixed, arg, smoke=_smoke, **variants)


def _longer(config, count, least=0):
  config.data.source = f'dates_fixed_vector:several(count={count}, least={least})'
  config.data.seq_len = config.model.context = max(44, 14 * count)
  config.data.source_len = config.model.context = max(140, 45 * count)
  config.data.too_long = 'skip'
  config.decode.max_tokens = 14 * count
  return config


def _smoke(config):
  return small(config, config.data.source)
