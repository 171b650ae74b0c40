"""Sections of the configuration that word vectors have in common; see lm.config.base."""

from ml_collections import ConfigDict

from lm.config.base import link_defaults

# Updates only the rows of tables that a batch uses.
SPARSE_STEP = 'lm.training.sparse_step:train_step'
_NEGATIVE_SAMPLING = {
  'fn': 'lm.objectives.word2vec:negative_sampling',
  'negatives': 5,
  'drawn': 4,  # for each row
  'shared': 16,  # rows that share them, at least
  'power': 0.75,
  'loss': 'lm.nn.losses:sigmoid_cross_entropy',
}


def words(config: ConfigDict, d_model: int, min_count: int) -> ConfigDict:
  r"""A vector for each word that occurs `min_count` times or more, and no sequence model.

  Words are what white space separates: `data.prepare` says how a text is taken apart.
  """
  fn = 'lm.text.tokenizers:words'
  config.data.tokenizer = ConfigDict({'fn': fn, 'min_count': min_count, 'pattern': r'\S+'})
  config.data.context = 32
  config.model = ConfigDict(
    {
      'fn': 'lm.models.embeddings:Embeddings',
      'vocab_size': config.model.get_ref('vocab_size'),
      'vocab_multiple': 1,
      'd_model': d_model,
      'context': 32,
      'biases': False,
      'output_init': 'flax.linen:initializers.zeros',
      'dtype': 'float32',
    }
  )
  config.eval.sets = ConfigDict()
  config.log.prompts = ()
  return config


def word2vec(config: ConfigDict, objective: str, rate: float) -> ConfigDict:
  """Word2Vec of what `words` has set, with negative sampling.

  Args:
    config: has `batch_size` and `data.context`.
    objective: skip_gram or cbow, of lm.objectives.word2vec.
    rate: of a word, as other programs count it.
  """
  config.objective = ConfigDict(
    {
      'fn': f'lm.objectives.word2vec:{objective}',
      'train_step': SPARSE_STEP,
      'window': 5,
      'subsample': 1e-3,
      'output': ConfigDict(_NEGATIVE_SAMPLING),
    }
  )
  # Output vectors begin at 0, and so input vectors have no gradient in the first step.
  config.allow_zero = '^embedding$'
  config.optim = ConfigDict(
    {
      'fn': 'lm.optim.optimizers:sgd',
      # The loss is a mean over the tokens of a batch, and word2vec adds them up.
      'learning_rate': rate * config.batch_size * config.data.context,
      'schedule': 'lm.optim.optimizers:linear',
      'steps': 0,
      'warmup': 0,
      'final': 1e-4,
    }
  )
  return link_defaults(config)


def hierarchical(config: ConfigDict) -> ConfigDict:
  """Words are found down a tree, and not among drawn ones."""
  fn, loss = 'lm.objectives.word2vec:hierarchical_softmax', _NEGATIVE_SAMPLING['loss']
  config.objective.output = ConfigDict({'fn': fn, 'loss': loss})
  return config


def small_words(config: ConfigDict) -> ConfigDict:
  """Returns a config of word vectors shrunk to run in seconds on the embedded text."""
  config.data.source = 'lm.data.sources:python_docs'
  config.data.prepare = ("lm.data.preprocess:segmented(case='lower')",)
  config.data.tokenizer.min_count = 20
  config.model.d_model = 16
  config.steps = 200
  config.dispatch = 50
  config.eval.every = config.checkpoint.every = 100
  config.eval.vectors = (PYTHON_WORDS,)
  config.checkpoint.best = 'eval/vectors/groups/accuracy'
  config.log.every = 10
  config.log.prompts = ('class',)
  return config


# Words of Python's documentation that belong together.
PYTHON_WORDS = (
  'lm.metrics.word_vectors:groups(groups={'
  "'types': ['int', 'float', 'str', 'bytes', 'tuple', 'list', 'dict'],"
  "'errors': ['valueerror', 'typeerror', 'keyerror', 'indexerror', 'attributeerror'],"
  "'numbers': ['one', 'two', 'three', 'four'],"
  "'keywords': ['if', 'while', 'for', 'try', 'except', 'finally']})"
)


def glove(config: ConfigDict, rate: float, window: int, x_max: float) -> ConfigDict:
  """GloVe of what `words` has set: pairs of words of the corpus, counted once.

  Args:
    config: as `words` leaves it.
    rate: of a pair, as the authors' program counts it.
    window: words on either side that are counted.
    x_max: the count from which on pairs weigh 1.
  """
  config.data.count = f'lm.data.cooccurrence:neighbours(window={window})'
  config.data.context = config.model.context = 2048  # pairs in a row
  config.batch_size, config.dispatch = 1, 100
  config.model.biases = True
  config.model.output_init = 'lm.models.embeddings:small_uniform'
  config.allow_zero = ''
  config.objective = ConfigDict(
    {
      'fn': 'lm.objectives.glove:glove',
      'train_step': SPARSE_STEP,
      'x_max': x_max,
      'power': 0.75,
    }
  )
  pairs = config.batch_size * config.data.context
  config.optim = ConfigDict(
    {
      'fn': 'lm.optim.optimizers:adagrad',
      # The program adds up squares of gradients times its rate r, from 1 on: that is a rate of 1
      # and gradients that begin at 1 / r^2. And its gradients are of a pair, ours of a mean.
      'learning_rate': 1.0,
      'begin': (rate * pairs) ** -2,
      'schedule': 'lm.optim.optimizers:constant',
      'steps': 0,
      'warmup': 0,
      'final': 1.0,
    }
  )
  return link_defaults(config)
