"""The article's program: two LSTMs over words, trained to reproduce their input.

  LM_DATA=DIR python -m lm.train --config=experiments/article_lstm.py --workdir=runs/article_lstm
  LM_DATA=DIR python -m lm.train --config=experiments/article_lstm.py:next_token --workdir=runs/next

The settings are those of the article: a vocabulary of 10,000 words, vectors of 300, two LSTMs of
128, and a softmax. The loss is categorical cross-entropy, with Adam at 0.001 and batches of 64. The
article trains for ten epochs on about 20,000 samples of 40 tokens, with about 10,000 for
validation. The target is the input.

The article reports a loss of 1.3636, a validation loss of 1.1126, and 2 ms per sample. Its
"encoder" returns the state of every token. Its "decoder" reads the state of token t to predict
token t. Copying the input therefore shows nothing about language.

`:next_token` trains the same network as a language model, to predict the next word. The default is
evaluated on the next word, too.

Reads $LM_DATA/english_text and tinyshakespeare. `:embedded` reads Python's built-in documentation
instead and needs no LM_DATA. One of two CPU cores, 27 minutes. Figures: experiments/LOG.md.
"""

from ml_collections import ConfigDict

from lm.config.base import base, select_variant, smoke
from lm.config.recurrent import recurrent
from lm.data import sources
from lm.data.sources.base import LazySequence, check_split
from lm.metrics.tokens import targets
from lm.objectives.supervised import cross_entropy
from lm.types import Metric, Objective

_FILES = (
  '$LM_DATA/english_text/us_presidents.txt',
  '$LM_DATA/english_text/enwiki_sample.txt',
  '$LM_DATA/tinyshakespeare/input.txt',
)


def copying() -> Objective:
  """Returns categorical cross-entropy with the input as the target, as in the article."""
  loss = cross_entropy()

  def loss_sums(apply, params, batch, key):
    return loss.loss_sums(apply, params, _copied(batch), key)

  return Objective(loss_sums, lambda batch: loss.normalizers(_copied(batch)))


def copy() -> Metric:
  """Returns copy_loss and copy_accuracy: `targets` with the input as the target."""
  of_targets = targets()

  def terms(output, batch):
    return {f'copy_{name}': pair for name, pair in of_targets.terms(output, _copied(batch)).items()}

  return Metric(terms, higher_is_better={'copy_loss': False, 'copy_accuracy': True})


def _copied(batch):
  return {**batch, 'targets': batch['inputs']}


def lines(split):
  """Returns the lines of English text; every third line is for validation."""
  check_split(split, ('train', 'validation'))
  everything = sources.text('train', _FILES, documents='line')
  places = [i for i in range(len(everything)) if (i % 3 == 2) == (split == 'validation')]
  return LazySequence(
    len(places), lambda i: everything[places[i]], f'{everything.fingerprint} {split} of thirds'
  )


def get_config(arg=''):
  config = base()
  config.steps = 3125
  config.batch_size = 64
  config.data.source = 'article_lstm:lines'
  config.data.prepare = ('lm.data.preprocess:split_sentences',)
  config.data.seq_len = 40
  config.data.tokenizer = ConfigDict(
    {'fn': 'lm.text.tokenizers:words', 'min_count': 1, 'vocab_size': 10_000}
  )
  config.model = recurrent(d_model=300, d_hidden=128, depth=2, context=40)
  config.model.tie_embeddings = False
  config.model.init_std = 0.03
  config.objective = ConfigDict({'fn': 'article_lstm:copying'})
  config.optim.learning_rate = 1e-3
  config.optim.schedule = 'lm.optim.optimizers:constant'
  config.optim.warmup_steps = 0
  config.optim.b2 = 0.999
  config.optim.eps = 1e-7
  config.optim.weight_decay = 0.0
  config.optim.clip_norm = float('inf')
  config.eval.every = 625
  config.eval.sets.validation.metrics = (
    'article_lstm:copy',
    'lm.metrics.tokens:language_model',
  )
  config.checkpoint.monitor = 'eval/validation/copy_loss'
  config.log.sample_prompts = ('The ',)
  return select_variant(config, arg, next_token=_next_token, embedded=_embedded, smoke=_smoke)


def _next_token(config):
  config.objective = base().objective
  config.checkpoint.monitor = 'eval/validation/loss'
  return config


def _embedded(config):
  config.data.source = 'lm.data.sources:python_docs'
  return config


def _smoke(config):
  return smoke(config)
