"""Config changes for word vectors; see lm.config.base."""

from ml_collections import ConfigDict

from lm.config.base import WORD_VECTORS, link_defaults

# Updates only the embedding rows that a batch uses.
SPARSE_STEP = 'lm.training.sparse_step:train_step'
_NEGATIVE_SAMPLING = {
  'fn': 'lm.objectives.word2vec:negative_sampling',
  'negatives': 5,  # total weight of the negative samples of a word
  'num_sampled': 4,  # negative samples per row
  'rows_per_sample': 16,  # at least this many rows of a batch share all their samples
  'power': 0.75,
  'loss': 'lm.nn.losses:sigmoid_cross_entropy',
}


def words(config: ConfigDict, d_model: int, min_count: int) -> ConfigDict:
  r"""One vector per word with at least `min_count` occurrences, without a sequence model.

  Words are separated by white space; `data.prepare` may segment texts first.
  """
  fn = 'lm.text.tokenizers:words'
  config.data.tokenizer = ConfigDict({'fn': fn, 'min_count': min_count, 'pattern': r'\S+'})
  config.data.seq_len = 32
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
  config.eval.evaluators = (WORD_VECTORS,)
  config.log.sample_prompts = ()
  return config


def word2vec(config: ConfigDict, objective: str, rate: float) -> ConfigDict:
  """Changes a config of `words` to word2vec with negative sampling.

  Args:
    config: as returned by `words`; has its final `batch_size` and `data.seq_len`.
    objective: skip_gram or cbow, of lm.objectives.word2vec.
    rate: the learning rate for the loss of one word, as in the program word2vec.
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
  # Output vectors are initialized to 0, so that input vectors have no gradient in step 1.
  config.allow_zero = '^embedding$'
  config.optim = ConfigDict(
    {
      'fn': 'lm.optim.optimizers:sgd',
      # The loss here is a mean over the tokens of a batch; that of the program word2vec is a sum.
      'learning_rate': rate * config.batch_size * config.data.seq_len,
      'schedule': 'lm.optim.optimizers:linear',
      'decay_steps': 0,
      'warmup_steps': 0,
      'final_lr_fraction': 1e-4,
    }
  )
  return link_defaults(config)


def hierarchical(config: ConfigDict) -> ConfigDict:
  """Replaces negative sampling by hierarchical softmax in a config of `word2vec`."""
  fn, loss = 'lm.objectives.word2vec:hierarchical_softmax', _NEGATIVE_SAMPLING['loss']
  config.objective.output = ConfigDict({'fn': fn, 'loss': loss})
  return config


def small_words(config: ConfigDict) -> ConfigDict:
  """Returns a config of word vectors reduced to run in seconds on the embedded text."""
  config.update(
    {
      'data': {
        'source': 'lm.data.sources:python_docs',
        'prepare': ("lm.data.preprocess:segment_words(case='lower')",),
        'tokenizer': {'min_count': 20},
      },
      'model': {'d_model': 16},
      'steps': 200,
      'steps_per_call': 50,
      'eval': {'every': 100, 'vector_metrics': (PYTHON_WORDS,)},
      'checkpoint': {'every': 100, 'monitor': 'eval/vectors/groups/accuracy'},
      'log': {'every': 10, 'sample_prompts': ('class',)},
    }
  )
  return config


# Groups of related words of Python's documentation.
PYTHON_WORDS = (
  'lm.metrics.word_vectors:groups(groups={'
  "'types': ['int', 'float', 'str', 'bytes', 'tuple', 'list', 'dict'],"
  "'errors': ['valueerror', 'typeerror', 'keyerror', 'indexerror', 'attributeerror'],"
  "'numbers': ['one', 'two', 'three', 'four'],"
  "'keywords': ['if', 'while', 'for', 'try', 'except', 'finally']})"
)


def glove(config: ConfigDict, rate: float, window: int, x_max: float) -> ConfigDict:
  """Changes a config of `words` to GloVe on the co-occurrence counts of the corpus.

  Args:
    config: as returned by `words`.
    rate: the learning rate for the loss of one pair, as in the authors' program.
    window: the count of words on either side that are counted.
    x_max: pairs with at least this count have weight 1.
  """
  config.data.pair_counter = f'lm.data.cooccurrence:count_cooccurrences(window={window})'
  config.data.seq_len = config.model.context = 2048  # pairs in a row
  config.batch_size, config.steps_per_call = 1, 100
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
  pairs = config.batch_size * config.data.seq_len
  config.optim = ConfigDict(
    {
      'fn': 'lm.optim.optimizers:adagrad',
      # The authors' program multiplies gradients by its rate r and accumulates the squares of the
      # products from 1. That equals a rate of 1 with an accumulator that starts at 1 / r^2. Its
      # gradients are those of one pair; here they are of a mean over `pairs` pairs.
      'learning_rate': 1.0,
      'initial_accumulator_value': (rate * pairs) ** -2,
      'schedule': 'lm.optim.optimizers:constant',
      'decay_steps': 0,
      'warmup_steps': 0,
      'final_lr_fraction': 1.0,
    }
  )
  return link_defaults(config)
