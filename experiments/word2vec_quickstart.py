"""Word vectors by skip-gram (Mikolov et al. 2013), from the documentation that ships with Python.

  python -m lm.train --config=experiments/word2vec_quickstart.py --workdir=runs/words
  python -m lm.vectors nearest --workdir=runs/words tuple

Needs no network. Two CPU cores: under a minute.
"""

from lm.config.base import base, select_variant
from lm.config.vectors import PYTHON_WORDS, small_words, word2vec, words


def get_config(arg=''):
  config = base()
  config.steps = 20_000
  config.batch_size = 8
  config.steps_per_call = 500
  config.data.prepare = ("lm.data.preprocess:segment_words(case='lower')",)
  words(config, d_model=64, min_count=5)
  word2vec(config, 'skip_gram', rate=0.025)
  config.eval.vector_metrics = (PYTHON_WORDS,)
  config.eval.every = config.checkpoint.every = 5000
  config.checkpoint.monitor = 'eval/vectors/groups/accuracy'
  config.log.every = 500
  config.log.sample_prompts = ('tuple', 'exception', 'server', 'three')
  return select_variant(config, arg, smoke=small_words)
