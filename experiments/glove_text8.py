"""GloVe (Pennington et al. 2014) on English text: co-occurrences counted once, then AdaGrad.

  LM_DATA=DIR python -m lm.train --config=experiments/glove_text8.py --workdir=runs/glove
  python -m lm.vectors nearest --workdir=runs/glove river

Reads $LM_DATA/english_text/text8like.txt.gz, 2.3 M words, and evaluates on $LM_DATA/word_eval. Two
CPU cores, 80 seconds.
"""

from lm.config.base import base, select_variant
from lm.config.vectors import glove, small_words, words

_EVAL = '$LM_DATA/word_eval'


def get_config(arg=''):
  config = base()
  config.steps = 71_625  # 15 epochs over the pairs
  config.data.source = "lm.data.sources:text(files='$LM_DATA/english_text/text8like.txt.gz')"
  words(config, d_model=100, min_count=5)
  glove(config, rate=0.05, window=10, x_max=10.0)
  config.eval.vector_metrics = (
    f"lm.metrics.word_vectors:pairs(file='{_EVAL}/wordsim353.tsv')",
    f"lm.metrics.word_vectors:pairs(file='{_EVAL}/simlex999.txt')",
    f"lm.metrics.word_vectors:questions(file='{_EVAL}/questions-words.txt')",
  )
  config.eval.every = config.checkpoint.every = 24_000
  config.checkpoint.monitor = 'eval/vectors/wordsim353/spearman'
  config.log.every = 500
  config.log.sample_prompts = ('river', 'president', 'green', 'said')
  return select_variant(config, arg, smoke=small_words)
