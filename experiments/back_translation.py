"""Back-translation (Sennrich et al. 2016): a model generates the German side of English captions.

  export LM_DATA=DIR back=runs/back
  python -m lm.train --config=experiments/back_translation.py:reverse --workdir=$back/reverse
  tail -n +14501 $LM_DATA/multi30k/train.en > $back/mono.en
  python -m lm.translate --workdir=$back/reverse --beam_size=1 < $back/mono.en > $back/mono.de
  python -m lm.train --config=experiments/back_translation.py --workdir=$back/both
  python -m lm.train --config=experiments/back_translation.py:half --workdir=$back/half

The first half of Multi30k's training set has both languages; of the second half only the English
side is used. The gain can thus be measured. `:reverse` learns English to German from the real pairs
and generates German for the second half. The default trains on real and generated pairs, and
`:half` on the real pairs only, for as many steps. `:tagged` puts a tag before each generated source
(Caswell et al. 2019).

One CPU core, 16 minutes in all. There is no gain here: BLEU on test2016 is 28.99, and 28.75 with
`:half`.
"""

import ensemble_multi30k

from lm.config.base import select_variant
from lm.config.tasks import small, test_set, translation
from lm.data.sources import parallel

_FILE = '$LM_DATA/multi30k/{}.{}'
_MADE = 'runs/back/mono'


def pairs(split, source='de', target='en', made='', tag=''):
  """Returns the real pairs of a split, and for training also the generated pairs of `made`.

  Args:
    split: 'train', of which the first half is used, or the name of another split's files.
    source: language of the sources.
    target: language of the targets.
    made: path of two aligned files without the language suffixes; '' for real pairs only.
    tag: prefix of the sources of `made`.
  """
  sides = [_FILE.format(split, language) for language in (source, target)]
  if split != 'train':
    sides = [_FILE.format('{split}', language) for language in (source, target)]
    return parallel(split, *sides)
  real = parallel(split, *sides, validation=0.5)
  if not made:
    return real
  # A model may generate an empty line.
  more = parallel(split, f'{made}.{source}', f'{made}.{target}', empty='skip')
  return [*real, *(pair | {'source': f'{tag} {pair["source"]}'.strip()} for pair in more)]


def get_config(arg=''):
  config = ensemble_multi30k.recipe()
  config.data.source = f"back_translation:pairs(made='{_MADE}')"
  return select_variant(config, arg, reverse=_reverse, half=_half, tagged=_tagged, smoke=_smoke)


def _reverse(config):
  config.data.source = "back_translation:pairs(source='en', target='de')"
  translation(config, 'de', 'val')
  return test_set(config, 'test2016')


def _half(config):
  config.data.source = 'back_translation:pairs'
  return config


def _tagged(config):
  config.data.source = f"back_translation:pairs(made='{_MADE}', tag='<made>')"
  return config


def _smoke(config):
  return small(config, "lm.data.sources:names(source_language='de', target_language='en')")
