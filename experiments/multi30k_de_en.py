"""German to English captions: Multi30k (Elliott et al. 2016) with the article's Transformer.

  LM_DATA=DIR python -m lm.train --config=experiments/multi30k_de_en.py --workdir=runs/multi30k
  python -m lm.translate --workdir=runs/multi30k < $LM_DATA/multi30k/test2016.de > test2016.en

Reads $LM_DATA/multi30k: 29,000 pairs. The model has 3+3 layers of width 256 and a joint vocabulary
of 8,000. It trains for six epochs. So few epochs do not overfit: low dropout and a learning rate
that decays to zero work best.

On two idle CPU cores the steps take 25 minutes, and the two evaluations two more. BLEU on test2016
is 41.5 and 41.1 (two runs, beam 5). `:joeynmt` is the recipe of the baseline JoeyNMT 2.3, with BLEU
34.3. `:few` trains on a tenth of the pairs, and `:few,runs/t5` starts from t5_pretrain.py:captions,
which has read the other captions without their translations; `:few,runs/t5,random` trains the same
model with the same tokenizer from scratch. Figures: experiments/LOG.md.
"""

from ml_collections import ConfigDict

from lm.config.base import base, encoder_decoder, select_variant
from lm.config.tasks import small, translation
from lm.data.sources import parallel
from lm.errors import UserError
from lm.workdir.fine_tuning import start_from


def get_config(arg=''):
  config = base()
  config.steps = 6500
  config.batch_size = 4
  config.model = encoder_decoder(depth=3, d_model=256, heads=4, context=128)
  config.model.dropout = 0.1
  config.model.init_std = 0.05
  translation(config, 'en', 'val')
  config.data.source = (
    "lm.data.sources:parallel(source='$LM_DATA/multi30k/{split}.de', "
    "target='$LM_DATA/multi30k/{split}.en')"
  )
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:unigram', 'vocab_size': 8000})
  config.objective.label_smoothing = 0.1
  config.optim.learning_rate = 1e-3
  config.optim.b2 = 0.98
  config.optim.schedule = 'lm.optim.optimizers:linear'
  config.optim.warmup_steps = 600
  config.optim.final_lr_fraction = 0.0
  config.optim.weight_decay = 0.0
  config.eval.every = 3250
  config.decode.length_penalty = 1.0
  name, workdir, start = (arg.split(',', 2) + ['', ''])[:3]
  if workdir and name != 'few':
    raise UserError(f'--config: {arg!r} names a workdir, from which only :few starts')
  return select_variant(
    config, name, smoke=_smoke, joeynmt=_joeynmt, few=lambda c: _few(c, workdir, start)
  )


def few_pairs(split):
  """Returns the last 2,900 training pairs, or another split."""
  from t5_pretrain import PAIRS

  pairs = parallel(split, *(f'$LM_DATA/multi30k/{{split}}.{side}' for side in ('de', 'en')))
  first = len(pairs) - PAIRS if split == 'train' else 0
  return [pairs[i] for i in range(first, len(pairs))]


def _few(config, workdir, start):
  config.data.source = 'multi30k_de_en:few_pairs'
  config.steps, config.eval.every = 1500, 500
  config.model.dropout = 0.3
  if workdir:
    start_from(config, workdir)
    config.model.dropout = 0.3
  if start == 'random':
    config.warm_start.workdir = ''
  elif start:
    raise UserError(f"--config: {start!r}: the third part of the argument can be 'random'")
  return config


def _joeynmt(config):
  config.steps = 3910  # 3.65 epochs
  config.model.dropout = 0.3
  config.optim.learning_rate = 7e-4
  config.optim.schedule = 'lm.optim.optimizers:inverse_sqrt'
  return config


def _smoke(config):
  return small(config, "lm.data.sources:names(source_language='de', target_language='en')")
