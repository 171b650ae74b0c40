"""One decoder for English, German, French and Chinese, with a temperature over languages.

  LM_DATA=DIR python -m lm.train --config=experiments/gpt_multilingual.py --workdir=runs/languages

The share of a language is proportional to its size to the power of 0.3, in the training rows and
in the texts of the tokenizer (Conneau et al. 2020); `:proportional` has a power of 1. French keeps
5 % of its text, as a language with few resources. Each language has its own loss, bits per byte and
tokens per character. Bits per byte compare the two variants, whose tokenizers differ: French has
1.571, and 2.434 with `:proportional`; English 2.012 and 1.888 (experiments/LOG.md). Reads
$LM_DATA/multi30k, english_more and zh_text. One CPU core, 20 minutes.
"""

from ml_collections import ConfigDict

from lm.config.base import base, gpt2, mixture, select_variant, unrolled
from lm.config.base import smoke as small
from lm.config.resolve import ref
from lm.data.sources import text
from lm.data.sources.base import check_split

FILES = {
  'en': ('multi30k/train.en', 'english_more/brown.txt', 'english_more/abc_news.txt'),
  'de': ('multi30k/train.de',),
  'fr': ('multi30k/train.fr',),
  'zh': ('zh_text/wiki_cmrc2018.txt', 'zh_text/news_msra.txt', 'zh_text/hongloumeng.txt'),
}
VALIDATION = 20  # every twentieth line


def language(split, name, share=1.0):
  """Returns the lines of a language; 'train' has this share of its lines, evenly chosen."""
  check_split(split, ('train', 'validation'))
  lines = text('train', tuple(f'$LM_DATA/{file}' for file in FILES[name]), documents='line')
  held = split == 'validation'
  chosen = [i for i in range(len(lines)) if (i % VALIDATION == VALIDATION - 1) == held]
  if not held:
    chosen = [i for n, i in enumerate(chosen) if int((n + 1) * share) > int(n * share)]
  return [lines[i] for i in chosen]


def get_config(arg=''):
  config = base()
  config.steps, config.batch_size = 3000, 16
  config.model = unrolled(gpt2(depth=4, d_model=128, heads=4, context=128))
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bpe', 'vocab_size': 12000})
  few = {'fr': 0.05}
  mixture(config, {name: ref(language, name=name, share=few.get(name, 1.0)) for name in FILES})
  config.eval.evaluators = (*config.eval.evaluators, 'lm.evaluation.fertility:fertility')
  config.eval.every = 1000
  config.log.sample_prompts = ('A man ', 'Ein Mann ', 'Un homme ', '中国')
  return select_variant(temperature(config, 0.3), arg, proportional=proportional, smoke=smoke)


def temperature(config, alpha):
  """Sets the exponent of the sizes, in the rows and in the texts of the tokenizer."""
  config.data.mix = f'lm.data.mixture:mix(alpha={alpha})'
  config.data.tokenizer_alpha = alpha
  return config


def proportional(config):
  return temperature(config, 1.0)


def smoke(config):
  config = small(config)
  config.data.source = ''
  for name, section in config.data.mixture.items():
    section.source = f'lm.data.sources:languages(languages=({name!r},), size=400)'
    config.eval.sets[name].source = section.source
  return config
