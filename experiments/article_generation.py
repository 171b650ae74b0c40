"""The article's worked example in two stages: from an opening sentence to the next sentences.

  export LM_DATA=DIR
  python -m lm.train --config=experiments/article_generation.py:stage1 --workdir=runs/article_words
  python -m lm.train --config=experiments/article_generation.py --workdir=runs/article_generation
  python -m lm.train --config=experiments/article_generation.py:gpt_pretrain \
    --workdir=runs/article_gpt
  python -m lm.translate --workdir=runs/article_generation < OPENINGS | tr -d ' '

Paragraphs of a Chinese encyclopedia and of news are segmented into words (extra `zh`). Stage 1
trains word vectors by skip-gram. Stage 2 trains a bidirectional LSTM encoder and an LSTM decoder
with attention, initialized with these vectors. They generate the next sentences of a paragraph from
one sentence. Outputs are joined to text without spaces. BLEU (tokenizer zh), chrF and the accuracy
of the next word are reported.

`:gpt` pretrains first, as the article advises. `:gpt_pretrain` trains a small GPT on the Chinese
text of bert_zh_wwm.py, without the paragraphs of validation. `:gpt` fine-tunes it on the same
pairs, with characters as tokens, and samples: greedy texts turn in circles, as distinct n-grams and
repetition show.

`:transformer` uses a Transformer in stage 2. `:without_stop_words` removes stop words before stage
2, as the article proposes. `:random` skips stage 1. Two CPU cores: a minute for stage 1 and 10
minutes for stage 2. Figures, and the meaning of the article's "90 %" and "0.8":
experiments/ARTICLE.md and LOG.md.
"""

import bert_zh_wwm
from ml_collections import ConfigDict

from lm.config.base import base, encoder_decoder, gpt2, select_variant, unrolled
from lm.config.recurrent import recurrent_encoder_decoder
from lm.config.tasks import small, translation
from lm.config.vectors import word2vec, words
from lm.data import sources
from lm.data.sources.base import LazyLoad, check_split
from lm.text.segment import sentence_spans
from lm.workdir.fine_tuning import start_from

_FILES = ('$LM_DATA/zh_text/wiki_cmrc2018.txt', '$LM_DATA/zh_text/news_msra.txt')
_NOVEL = ('zh_text/hongloumeng.txt',)
_SIZE = 128
_WORDS = ConfigDict({'fn': 'lm.text.tokenizers:words', 'min_count': 3, 'pattern': r'\S+'})


def paragraphs(split, files=_FILES, sentences=2, every=20):
  """Returns {'source', 'target'}: a sentence of a paragraph, and the next `sentences` sentences.

  Each paragraph is cut into such pieces. One paragraph in `every` is for validation.
  """
  check_split(split, ('train', 'validation'))
  texts = sources.text('train', tuple(files), documents='line')

  def make():
    pairs = []
    for i in range(len(texts)):
      raw = texts[i]['text']
      if (i % every == 0) != (split == 'validation'):
        continue
      found = [raw[start:stop].strip() for start, stop in sentence_spans(raw)]
      for first in range(0, len(found) - 1, 1 + sentences):
        rest = ''.join(found[first + 1 : first + 1 + sentences])
        pairs.append({'source': found[first], 'target': rest})
    return pairs

  return LazyLoad(make, f'{texts.fingerprint} {split} {sentences} {every}')


def segmented(field, stop=()):
  return f"lm.data.preprocess:segment_words(field='{field}', stop={tuple(stop)!r})"


def get_config(arg=''):
  config = _second('runs/article_words')
  return select_variant(
    config,
    arg,
    stage1=_first,
    transformer=_transformer,
    without_stop_words=_without_stop_words,
    random=_random,
    gpt_pretrain=_gpt_pretrain,
    gpt=_gpt,
    gpt_smoke=_gpt_smoke,
    smoke=_smoke,
  )


def _second(first):
  config = base()
  config.steps = 1500
  config.batch_size = 8
  config.model = recurrent_encoder_decoder(_SIZE, 256, depth=1, context=128)
  config.model.dropout = 0.3
  translation(config, 'zh', 'validation')
  config.eval.sets.validation.scores += ('lm.metrics.diversity:diversity(unit="character")',)
  config.data.source = 'article_generation:paragraphs'
  config.data.prepare = (segmented('source'), segmented('target'))
  config.data.tokenizer = _WORDS
  config.data.too_long = 'truncate'
  config.eval.sets.validation.limit = 200
  config.eval.every = 500
  config.warm_start.workdir = first
  config.warm_start.rules = ('embedding$ -> embedding[words]', '. ->')
  config.optim.learning_rate = 1e-3
  config.optim.schedule = 'lm.optim.optimizers:linear'
  config.optim.final_lr_fraction = 0.0
  config.optim.weight_decay = 0.0
  return config


def texts(split):
  """Returns Chinese texts; those of paragraphs of validation are only in the split validation."""
  check_split(split, ('train', 'validation'))
  held_out, others = (
    sources.text('train', _FILES, documents='line'),
    bert_zh_wwm.chinese(split, _NOVEL),
  )
  validation = split == 'validation'

  def make():
    own = [held_out[i] for i in range(len(held_out)) if (i % 20 == 0) == validation]
    return own + [others[i] for i in range(len(others))]

  return LazyLoad(make, f'{held_out.fingerprint} {others.fingerprint}')


def _gpt_pretrain(config):
  config = base()
  config.steps, config.batch_size = 4000, 16
  config.model = unrolled(gpt2(depth=4, d_model=128, heads=4, context=128))
  config.model.position = 'lm.nn.position:rope'
  config.data.source = 'article_generation:texts'
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:characters', 'min_count': 3})
  config.data.special_tokens = ('<|sep|>',)  # which `:gpt` needs
  config.optim.warmup_steps, config.eval.every = 300, 1000
  config.log.sample_prompts = ('中国',)
  return config


def _gpt(config, first='runs/article_gpt'):
  config.model = gpt2(depth=1, d_model=64, heads=1, context=128)  # start_from gives its sizes
  config.data.prepare, config.data.seq_len = (), 256
  config.data.converter = 'lm.tasks.seq2seq:decoder'
  config.decode.max_tokens = 160
  # Greedy texts turn in circles; samples do not (Holtzman et al. 2020).
  config.decode.sampler = 'lm.decode.sampling:sampler(temperature=0.8, top_p=0.9)'
  config.optim.learning_rate = 3e-4
  if first:
    config.warm_start.rules = ()
    start_from(config, first)
    config.model.dropout = 0.1
  return config


def _gpt_smoke(config):
  _gpt(config, first='')
  return _smoke(config)


def _transformer(config):
  config.model = encoder_decoder(depth=2, d_model=_SIZE, heads=4, context=128)
  config.model.dropout = 0.1
  return config


def _without_stop_words(config):
  config.data.prepare = (segmented('source', ['zh']), segmented('target', ['zh']))
  return config


def _random(config):
  config.warm_start.workdir, config.warm_start.rules = '', ()
  return config


def _first(config):
  config = base()
  config.steps = 30_000
  config.batch_size = 8
  config.steps_per_call = 200
  config.data.source = f"lm.data.sources:text(files={_FILES!r}, documents='line')"
  config.data.prepare = (segmented('text'),)
  words(config, _SIZE, min_count=3)
  word2vec(config, 'skip_gram', rate=0.025)
  config.eval.vector_metrics = (
    "lm.metrics.word_vectors:questions(file='$LM_DATA/word_eval/CA8_semantic.txt')",
  )
  config.eval.every = config.checkpoint.every = 15_000
  config.checkpoint.monitor = 'eval/vectors/CA8_semantic/add_accuracy'
  config.log.every = 500
  config.log.sample_prompts = ('中国', '公司', '科学', '人')
  return config


def _smoke(config):
  _random(config)
  return small(config, "lm.data.sources:names(source_language='en', target_language='zh')")
