"""German, English and French captions in all six directions, in one model (Johnson et al. 2017).

  LM_DATA=DIR python -m lm.train --config=experiments/multi30k_multilingual.py --workdir=runs/multi
  python -m lm.translate --workdir=runs/multi --target_lang=fr < $LM_DATA/multi30k/test2016.de

A token before the source names the target language. Reads $LM_DATA/multi30k. chrF over all
directions is 56.10. One CPU core, 1.7 hours.
"""

from ml_collections import ConfigDict

from lm.config.base import base, encoder_decoder, select_variant
from lm.config.tasks import small, translation

LANGUAGES = ('de', 'en', 'fr')


def get_config(arg=''):
  config = base()
  config.steps = 15000
  config.batch_size = 4
  config.model = encoder_decoder(depth=3, d_model=256, heads=4, context=128)
  config.model.dropout = 0.1
  config.model.init_std = 0.05
  translation(config, 'en', 'val')
  files = {language: f'$LM_DATA/multi30k/{{split}}.{language}' for language in LANGUAGES}
  pairs = tuple((a, b) for a in LANGUAGES for b in LANGUAGES if a != b)
  config.data.source = f'lm.data.sources:directions(files={files}, pairs={pairs})'
  config.data.task = f'lm.tasks.text:translation(languages={LANGUAGES})'
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:unigram', 'vocab_size': 10000})
  one = config.eval.sets.validation
  one.scores = ('lm.metrics.translation:chrf',)  # needs no word tokenizer for any language
  one.limit = 300
  config.checkpoint.monitor = 'eval/validation/chrf'
  config.objective.label_smoothing = 0.1
  config.optim.learning_rate = 1e-3
  config.optim.b2 = 0.98
  config.optim.schedule = 'lm.optim.optimizers:linear'
  config.optim.final_lr_fraction = 0.0
  config.optim.warmup_steps = 1000
  config.optim.weight_decay = 0.0
  config.eval.every = 3000
  return select_variant(config, arg, smoke=_smoke)


def directions(split):
  """Returns names of countries and languages in both directions, for :smoke."""
  from lm.data.sources import names

  found = []
  for source, target in (('de', 'fr'), ('fr', 'de')):
    pairs = names(split, source_language=source, target_language=target)
    languages = {'source_language': source, 'target_language': target}
    found += [dict(pairs[i]) | languages for i in range(len(pairs))]
  return found


def _smoke(config):
  return small(config, 'multi30k_multilingual:directions')
