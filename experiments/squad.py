"""Extractive question answering on Wikipedia paragraphs with an encoder (Devlin et al. 2019).

  LM_DATA=DIR python -m lm.train --config=experiments/squad.py --workdir=runs/squad

In `:write` an encoder-decoder generates the answer instead (Raffel et al. 2020). `:write_smoke` is
its smoke test.

Reads $LM_DATA/squad/train.jsonl and dev.jsonl: the answerable questions of 10 and 2 articles of
SQuAD (Rajpurkar et al. 2016, 2018), 1,854 and 298 questions. From scratch, the encoder memorizes
the training questions: F1 is 7.7, and 16.25 for the overlap baseline (baselines.py). The
encoder-decoder does not learn to copy (F1 0). Higher scores need pretraining. Two CPU cores, 3
minutes; `:write` one core, 11 minutes.
"""

from ml_collections import ConfigDict

from lm.config.base import base, encoder, encoder_decoder, select_variant
from lm.config.tasks import extraction, small


def get_config(arg=''):
  config = base()
  config.steps = 750
  config.batch_size = 8
  config.data.source = "lm.data.sources:squad(files='$LM_DATA/squad/{split}.jsonl')"
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:wordpiece', 'vocab_size': 8000})
  config.data.seq_len = 384
  config.model = encoder(depth=2, d_model=128, heads=4, context=384)
  config.model.position = 'lm.nn.position:rope'
  config.model.dropout = 0.2
  extraction(config, 'dev', 'lm.metrics.answers:squad')
  config.data.converter = (
    'lm.tasks.extractive_qa:converter(threshold=None)'  # each question has an answer
  )
  config.optim.learning_rate = 5e-4
  return select_variant(
    config, arg, smoke=_smoke, write=_write, write_smoke=lambda c: _smoke(_write(c))
  )


def _write(config):
  config.model = encoder_decoder(depth=3, d_model=192, heads=4, context=384)
  config.model.dropout = 0.2
  config.data.converter = 'lm.tasks.seq2seq:encoder_decoder'
  config.data.seq_len, config.data.source_len = 64, 384
  config.data.too_long = 'truncate'
  config.objective = base().objective
  config.eval.sets.validation.metrics = ('lm.metrics.tokens:targets',)
  config.decode.max_tokens = 32
  return config


def _smoke(config):
  return small(config, 'lm.data.sources:python_questions(functions=2)', context=128)
