"""Chinese word vectors by skip-gram, from news, an encyclopedia and a classical novel.

  LM_DATA=DIR python -m lm.train --config=experiments/word2vec_zh.py --workdir=runs/words_zh
  python -m lm.vectors nearest --workdir=runs/words_zh 中国

jieba segments the text into words (extra `zh`). Reads $LM_DATA/zh_text, 5.5 M characters, and
evaluates on the analogies of CA8 (Li et al. 2018) in $LM_DATA/word_eval. Two CPU cores, a minute.
"""

from lm.config.base import base, select_variant
from lm.config.vectors import small_words, word2vec, words

_EVAL = '$LM_DATA/word_eval'


def get_config(arg=''):
  config = base()
  config.steps = 60_000
  config.batch_size = 8
  config.steps_per_call = 500
  config.data.source = "lm.data.sources:text(files='$LM_DATA/zh_text/*.txt', documents='line')"
  config.data.prepare = ('lm.data.preprocess:segment_words',)
  words(config, d_model=100, min_count=5)
  word2vec(config, 'skip_gram', rate=0.025)
  config.eval.vector_metrics = (
    f"lm.metrics.word_vectors:questions(file='{_EVAL}/CA8_semantic.txt')",
    f"lm.metrics.word_vectors:questions(file='{_EVAL}/CA8_morphological.txt')",
    f"lm.metrics.word_vectors:questions(file='{_EVAL}/ca_translated.txt')",
  )
  config.eval.every = config.checkpoint.every = 15_000
  config.checkpoint.monitor = 'eval/vectors/CA8_semantic/add_accuracy'
  config.log.every = 500
  config.log.sample_prompts = ('中国', '宝玉', '公司', '说')
  return select_variant(config, arg, smoke=small_words)
