"""A small Chinese BERT with whole-word masking (Cui et al. 2021) from 5.7M characters.

  LM_DATA=DIR python -m lm.train --config=experiments/bert_zh_wwm.py --workdir=runs/bert_zh
  LM_DATA=DIR python -m lm.train --config=experiments/finetune.py:chnsenticorp,runs/bert_zh \
    --workdir=runs/tuned

Tokens are characters, and the words to mask those of jieba (extra `zh`). Reads novels, news, poems,
reviews, titles, dialogues and judgments of $LM_DATA, of each only what trains: no split that
evaluates, and not wiki_cmrc2018.txt, which has the paragraphs of CMRC's questions. Duplicates and
overlap with the evaluation sets are removed (extra `dedup`): online_shopping has most reviews of
chnsenticorp's test set. `lm.prepare` reports them. One text in 100 is for validation.

finetune.py also has msra_ner and cmrc2018. A third argument trains the same model from scratch:
finetune.py:cmrc2018,runs/bert_zh,random.

On two CPU cores, two epochs (12.3M tokens) take about 35 minutes. The model then predicts 26.2 % of
the masked tokens of the validation set. Figures of the tasks: experiments/LOG.md.
"""

import json

from clean_text import sentences
from ml_collections import ConfigDict

from lm.config.base import base, encoder, select_variant, smoke, unrolled, without_duplicates
from lm.config.pretraining import masked
from lm.config.resolve import ref
from lm.data import sources
from lm.data.sources.base import LazyLoad, check_split
from lm.text.files import expand_path

LINES = ('zh_text/hongloumeng.txt', 'zh_text/news_msra.txt')
TABLES = {  # the column with the text, of training splits
  'online_shopping/train.tsv': 'text',
  'chnsenticorp_hotel/train.tsv': 'text',
  'thucnews_titles/train.tsv': 'text',
  'tatoeba_zh_en/train.tsv': 'zh',
}
RECORDS = {  # the field with the text or the texts
  'song_ci/ci.jsonl': 'text',
  'cail2019_zh/cases.jsonl': 'context',
  'xdailydialog/train.jsonl': 'turns_zh',
}


_HOTEL = ref(
  sources.table, files='$LM_DATA/chnsenticorp_hotel/{split}.tsv', columns={'text': 'text'}
)
HELD_OUT = {  # what finetune.py evaluates on
  'hotel_dev': ('dev', _HOTEL),
  'hotel_test': ('test', _HOTEL),
  'msra_dev': ('dev', ref(sentences)),
  'msra_test': ('test', ref(sentences)),
  'cmrc2018': ('dev', ref(sources.squad, files='$LM_DATA/cmrc2018/{split}.json')),
}


def chinese(split, lines=LINES):
  """Returns the texts of some files of lines, and all others; one in 100 is for validation."""
  check_split(split, ('train', 'validation'))
  files = tuple(f'$LM_DATA/{name}' for name in (*lines, *TABLES, *RECORDS))
  paths = [expand_path(file, 'data.source') for file in files]

  def make():
    texts = [
      text['text'] for text in _all(sources.text('train', files[: len(lines)], documents='line'))
    ]
    for name, column in TABLES.items():
      table = sources.table('train', f'$LM_DATA/{name}', columns={'text': column})
      texts += [row['text'] for row in _all(table)]
    for path, field in zip(paths[-len(RECORDS) :], RECORDS.values(), strict=True):
      for line in path.read_text('utf-8').splitlines():
        found = json.loads(line)[field]
        texts.append(found if isinstance(found, str) else '\n'.join(found))
    return [{'text': t} for i, t in enumerate(texts) if (i % 100 == 0) == (split == 'validation')]

  return LazyLoad(make, f'{split} {[(path.name, path.stat().st_size) for path in paths]}')


def _all(source):
  return (source[i] for i in range(len(source)))


def get_config(arg=''):
  config = base()
  config.steps, config.batch_size, config.data.seq_len = 6000, 8, 256
  config.model = unrolled(encoder(depth=4, d_model=128, heads=4, context=256))
  config.model.position = 'lm.nn.position:rope'
  config.data.source = 'bert_zh_wwm:chinese'
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:characters', 'min_count': 3})
  config.optim.learning_rate, config.optim.b2 = 1e-3, 0.98
  config.optim.warmup_steps, config.eval.every = 300, 1000
  masked(config)
  return (
    select_variant(config, arg, smoke=smoke)
    if arg
    else without_duplicates(config, held_out=HELD_OUT)
  )
