"""Span corruption (Raffel et al. 2020, T5) on the embedded English text.

  python -m lm.train --config=experiments/t5_pretrain.py --workdir=runs/t5

The encoder reads a text with sentinels in place of spans, and the decoder generates the spans.
`:ul2` mixes seven denoisers (Tay et al. 2023). `:english` reads $LM_DATA, as bert_pretrain does.
`:captions` reads the German and the English captions of Multi30k, without their last 2,900 pairs,
as two shuffled texts; multi30k_de_en.py:few,runs/t5 then fine-tunes on those pairs.

`:captions` takes 25 minutes of a CPU core, and translation does not gain from it in BLEU:
experiments/LOG.md. The others are for two CPU cores; their full runs are still to be measured.
"""

from ml_collections import ConfigDict

from lm.config.base import base, encoder_decoder, select_variant, unrolled
from lm.config.base import smoke as small
from lm.config.pretraining import denoising


def get_config(arg=''):
  config = base()
  config.steps, config.batch_size = 2000, 16
  config.model = unrolled(encoder_decoder(depth=3, d_model=256, heads=4, context=160))
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bpe', 'vocab_size': 4000})
  config.optim.learning_rate, config.optim.b2 = 1e-3, 0.98
  config.optim.warmup_steps, config.eval.every = 200, 500
  denoising(config)
  return select_variant(config, arg, ul2=ul2, english=english, captions=captions, smoke=smoke)


def ul2(config):
  transform = 'lm.data.denoising:mixture_of_denoisers'
  return denoising(config, transform, ('<|R|>', '<|X|>', '<|S|>'))


def english(config):
  from bert_pretrain import english

  return english(config)


def captions(config):
  config.data.source = 't5_pretrain:monolingual'
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:unigram', 'vocab_size': 8000})
  config.steps = 2500
  return config


PAIRS = 2900  # at the end of the training file, for fine-tuning


def monolingual(split):
  """Returns captions of Multi30k as texts, German or English, in a random order."""
  import numpy as np

  from lm.data.sources import parallel
  from lm.data.sources.base import check_split

  check_split(split, ('train', 'validation'))
  name = {'train': 'train', 'validation': 'val'}[split]
  pairs = parallel(name, *(f'$LM_DATA/multi30k/{{split}}.{side}' for side in ('de', 'en')))
  pairs = [pairs[i] for i in range(len(pairs) - PAIRS * (split == 'train'))]
  texts = [{'text': pair[side]} for pair in pairs for side in ('source', 'target')]
  return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]


def smoke(config):
  config.data.source_len = 32
  return small(config)
