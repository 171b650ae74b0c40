"""A corpus without duplicates, and without the text of evaluation sets: English, or `:zh` Chinese.

  LM_DATA=DIR python -m lm.prepare --config=experiments/clean_text.py:zh
  LM_DATA=DIR python -m lm.train --config=experiments/clean_text.py --workdir=runs/clean

The first command reports what is removed. The second trains a small GPT-2 on the rest. Both need
the extra `dedup`. English has one source. Chinese is a mixture, whose sources do not repeat each
other either. `held_out` has sets that this model is not evaluated on. LOG.md has the counts. Two
CPU cores: a minute to find duplicates; training has not been run.
"""

from ml_collections import ConfigDict

from lm.config.base import base, evaluation, mixture, select_variant, smoke, without_duplicates
from lm.config.resolve import ref
from lm.data import sources


def sentences(split, files='$LM_DATA/msra_ner/{split}.tsv'):
  """Returns the sentences of tagged characters as texts."""
  tagged = sources.conll(split, files, separator='')
  return [{'text': ''.join(sentence['words'])} for sentence in tagged]


def of_english(config):
  folder = '$LM_DATA/english_text'
  files = (
    '$LM_DATA/english_more/*.txt',
    f'{folder}/us_presidents.txt',
    f'{folder}/enwiki_sample.txt',
  )
  config.data.source = ref(sources.text, files=files, documents='line', validation=0.01)
  wikitext = ref(sources.text, files='$LM_DATA/wikitext2/{split}.txt', documents='line')
  sets = {'validation': evaluation('validation'), 'wikitext2': evaluation('test', wikitext)}
  config.eval.sets = ConfigDict(sets)
  pairs = ref(
    sources.table, files='$LM_DATA/blimp/blimp.tsv', columns={'good': 'good', 'bad': 'bad'}
  )
  sst2 = ref(sources.table, files='$LM_DATA/sst2/{split}.tsv', columns={'text': 'text'})
  questions = ref(sources.squad, files='$LM_DATA/squad/{split}.jsonl')
  held_out = {'blimp': ('train', pairs), 'sst2': ('test', sst2), 'squad': ('dev', questions)}
  return without_duplicates(config, held_out=held_out)


def of_chinese(config):
  files = ('$LM_DATA/zh_text/*.txt', '$LM_DATA/song_ci/ci.jsonl')
  folders = ('online_shopping', 'chnsenticorp_hotel', 'thucnews_titles')
  tables = {name: f'$LM_DATA/{name}/{{split}}.tsv' for name in folders}
  columns = {'text': 'text'}
  mixture(
    config,
    {
      'prose': ref(sources.text, files=files, documents='line', validation=0.01),
      'reviews': ref(sources.table, files=tuple(tables.values()), columns=columns),
      'sentences': ref(sentences),
    },
  )
  hotel = ref(sources.table, files=tables['chnsenticorp_hotel'], columns=columns)
  config.eval.sets.reviews.update({'split': 'test', 'source': hotel})
  config.eval.sets.sentences.split = 'test'
  questions = ref(sources.squad, files='$LM_DATA/cmrc2018/{split}.json')
  held_out = {'hotel_dev': ('dev', hotel), 'msra_dev': ('dev', ref(sentences))}
  return without_duplicates(config, held_out={**held_out, 'cmrc2018': ('dev', questions)})


def small(config):
  return without_duplicates(smoke(config))


def get_config(arg=''):
  if not arg:
    return of_english(base())
  return select_variant(base(), arg, zh=of_chinese, smoke=small)
