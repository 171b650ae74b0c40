"""Word2Vec (Mikolov et al. 2013) on English text: skip-gram, or `:cbow`, with negative sampling.

  LM_DATA=DIR python -m lm.train --config=experiments/word2vec_text8.py --workdir=runs/skip_gram
  python -m lm.vectors nearest --workdir=runs/skip_gram river

`:hierarchical` and `:cbow_hierarchical` use hierarchical softmax over a Huffman tree instead. The
loss of `:squared` is the squared error of a sigmoid, as in some texts.

Reads $LM_DATA/english_text/text8like.txt.gz, 2.3 M words, and evaluates on $LM_DATA/word_eval. Two
CPU cores, half a minute; `:hierarchical` three minutes.
"""

from lm.config.base import base, select_variant
from lm.config.vectors import hierarchical, small_words, word2vec, words

_EVAL = '$LM_DATA/word_eval'


def get_config(arg=''):
  config = base()
  config.steps = 45_000  # five epochs
  config.batch_size = 8
  config.steps_per_call = 500
  config.data.source = "lm.data.sources:text(files='$LM_DATA/english_text/text8like.txt.gz')"
  words(config, d_model=100, min_count=5)
  word2vec(config, 'skip_gram', rate=0.025)
  config.eval.vector_metrics = (
    f"lm.metrics.word_vectors:pairs(file='{_EVAL}/wordsim353.tsv')",
    f"lm.metrics.word_vectors:pairs(file='{_EVAL}/simlex999.txt')",
    f"lm.metrics.word_vectors:questions(file='{_EVAL}/questions-words.txt')",
  )
  config.eval.every = config.checkpoint.every = 15_000
  config.checkpoint.monitor = 'eval/vectors/wordsim353/spearman'
  config.log.every = 500
  config.log.sample_prompts = ('river', 'president', 'green', 'said')
  return select_variant(
    config,
    arg,
    smoke=small_words,
    cbow=_cbow,
    hierarchical=hierarchical,
    cbow_hierarchical=lambda c: hierarchical(_cbow(c)),
    squared=_squared,
  )


def _cbow(config):
  config.batch_size = 32  # CBOW tolerates larger batches, which are faster
  config.steps = 11_250
  config.steps_per_call = 125
  config.eval.every = config.checkpoint.every = 3750
  word2vec(config, 'cbow', rate=0.05)
  config.objective.output.num_sampled = 1
  return config


def _squared(config):
  config.objective.output.loss = 'lm.nn.losses:squared_sigmoid'
  return config
