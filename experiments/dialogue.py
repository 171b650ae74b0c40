"""Replies in everyday dialogues, generated from the previous turns by a small decoder-only model.

  LM_DATA=DIR python -m lm.train --config=experiments/dialogue.py --workdir=runs/dialogue

Reads $LM_DATA/xdailydialog (XDailyDialog, Liu et al. 2023): 1,582 training and 395 validation
dialogues. `:zh` reads their Chinese side. Each turn after the first is a reply. A dialogue is one
training sequence, with loss on the replies only. Evaluation predicts each reply from the true turns
before it. The data suffice for fluent replies only (BLEU 0.5, loss 4.44 nats per token). One CPU
core, 10 minutes.
"""

from ml_collections import ConfigDict

from lm.config.base import base, evaluation, llama, select_variant
from lm.config.tasks import small


def get_config(arg=''):
  config = base()
  config.steps = 1000
  config.batch_size = 8
  config.data.source = _source('turns_en')
  config.data.prepare = ('lm.tasks.dialogue:expand_turns',)
  config.data.task = 'lm.tasks.dialogue:replies'
  config.data.converter = 'lm.tasks.dialogue:decoder(longest=192)'
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bpe', 'vocab_size': 4000})
  config.data.seq_len = 256
  config.data.too_long = 'truncate'  # a single turn may be longer than a row
  config.model = llama(depth=4, d_model=192, heads=4, kv_heads=4, d_mlp=512, context=256)
  config.model.tie_embeddings = True
  config.model.dropout = 0.2
  config.optim.learning_rate = 1e-3
  config.eval.sets.validation = evaluation(
    'dev',
    metrics=('lm.metrics.tokens:targets',),
    scores=('lm.metrics.translation:bleu(language="en")',),
  )
  config.eval.sets.validation.limit = 200
  config.eval.every = 500
  config.decode.max_tokens = 64
  config.log.sample_prompts = ()
  return select_variant(config, arg, smoke=_smoke, zh=_zh)


def _source(turns):
  return (
    "lm.data.sources:table(files='$LM_DATA/xdailydialog/{split}.jsonl', "
    f"columns={{'turns': '{turns}'}})"
  )


def _zh(config):
  config.data.source = _source('turns_zh')
  config.eval.sets.validation.scores = ('lm.metrics.translation:bleu(language="zh")',)
  return config


def _smoke(config):
  config.data.prepare = ('lm.tasks.dialogue:expand_turns(every=2)',)  # no loss on questions
  config.data.converter = 'lm.tasks.dialogue:decoder(longest=96)'
  return small(config, 'lm.data.sources:python_dialogues', context=128)
