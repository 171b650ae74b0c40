"""Translation initialized with pretrained word vectors: the classic two stages.

  export LM_DATA=DIR
  python -m lm.train --config=experiments/stage1_to_stage2.py:stage1 --workdir=runs/stage1
  python -m lm.train --config=experiments/stage1_to_stage2.py --workdir=runs/stage2

Stage 1 learns vectors of German and English words from captions, without using their alignment.
Stage 2 trains a translation model. The embeddings of its encoder and decoder are initialized with
these vectors. The start of the run prints how many words have a vector and which have none. The
embeddings are frozen for 250 steps, and the report shows their drift. `:random` initializes them
randomly, with the same budget.

Reads $LM_DATA/multi30k. Two CPU cores: 20 seconds for stage 1, 3 minutes for stage 2.
"""

from ml_collections import ConfigDict

from lm.config.base import WORD_VECTORS, base, encoder_decoder, select_variant
from lm.config.tasks import small, translation
from lm.config.vectors import word2vec, words

_SIZE = 128
_LOWER = "lm.data.preprocess:segment_words(field='{}', case='lower')"


def get_config(arg=''):
  config = _second('runs/stage1')
  return select_variant(config, arg, stage1=_first, random=_random, smoke=_smoke)


def _second(first):
  config = base()
  config.steps = 1000
  config.batch_size = 4
  config.model = encoder_decoder(depth=2, d_model=_SIZE, heads=4, context=128)
  config.model.share_embeddings = False  # the encoder and the decoder have separate embeddings
  config.model.dropout = 0.1
  config.model.init_std = 0.05
  translation(config, 'en', 'val')
  config.data.source = (
    "lm.data.sources:parallel(source='$LM_DATA/multi30k/{split}.de', "
    "target='$LM_DATA/multi30k/{split}.en')"
  )
  config.data.prepare = (_LOWER.format('source'), _LOWER.format('target'))
  config.data.tokenizer = ConfigDict(
    {'fn': 'lm.text.tokenizers:words', 'min_count': 2, 'pattern': r'\S+'}
  )
  config.data.too_long = 'skip'
  config.eval.sets.validation.limit = 200
  config.eval.every = 250
  config.eval.evaluators = (*config.eval.evaluators, WORD_VECTORS)
  config.eval.vector_metrics = (f"lm.evaluation.vectors:drift(workdir='{first}')",)
  config.warm_start.workdir = first
  config.warm_start.rules = (r'(source_)?embedding$ -> embedding[words]', '. ->')
  config.optim.learning_rate = 1e-3
  config.optim.schedule = 'lm.optim.optimizers:linear'
  config.optim.warmup_steps = 200
  config.optim.final_lr_fraction = 0.0
  config.optim.freeze = 'embedding$'
  config.optim.freeze_until = 250
  return config


def _random(config):
  config.warm_start.workdir, config.warm_start.rules = '', ()
  config.eval.evaluators, config.eval.vector_metrics = config.eval.evaluators[:-1], ()
  config.optim.freeze = config.optim.freeze_until = None
  return config


def _first(config):
  config = base()
  config.steps = 20_000
  config.batch_size = 8
  config.steps_per_call = 200
  config.data.source = (
    "lm.data.sources:text(files=('$LM_DATA/multi30k/train.de', '$LM_DATA/multi30k/train.en'), "
    "documents='line')"
  )
  config.data.prepare = (_LOWER.format('text'),)
  words(config, _SIZE, min_count=2)
  word2vec(config, 'skip_gram', rate=0.025)
  config.eval.every = config.checkpoint.every = 10_000
  config.checkpoint.keep_best = 0  # no metric ranks the checkpoints
  config.log.every = 500
  config.log.sample_prompts = ('hund', 'dog', 'rot', 'green')
  return config


def _smoke(config):
  _random(config)
  return small(config, "lm.data.sources:names(source_language='de', target_language='en')")
