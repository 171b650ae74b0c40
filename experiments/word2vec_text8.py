"""Word2Vec (Mikolov et al. 2013) on English Wikipedia text; skip-gram, or `:cbow`.

  LM_DATA=DIR python -m lm.train --config=experiments/word2vec_text8.py --workdir=runs/skip_gram

Reads $LM_DATA/english_text/text8like.txt.gz: 2.3 M words, five epochs.
"""

from lm.config import base, choose
from lm.vector_config import word2vec, words


def get_config(arg=''):
  config = base()
  config.batch_size = 8
  config.steps = 45_000  # five epochs
  config.dispatch = 200
  config.data.source = "lm.data.sources:text(files='$LM_DATA/english_text/text8like.txt.gz')"
  words(config, d_model=100, min_count=5)
  word2vec(config, 'skip_gram', rate=0.025)
  config.log.every = 1000
  config.eval.every = config.checkpoint.every = 9_000
  return choose(config, arg, cbow=_cbow)


def _cbow(config):
  return word2vec(config, 'cbow', rate=0.05)
