"""Sections of the configuration that word vectors have in common; see lm.config."""

from ml_collections import ConfigDict

from lm.config import follow


def words(config: ConfigDict, d_model: int, min_count: int) -> ConfigDict:
  """A vector for each word that occurs `min_count` times or more, and no sequence model."""
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:words', 'min_count': min_count})
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
  """Word2Vec on a config that has its rows: `objective` is skip_gram or cbow.

  Args:
    config: has `batch_size` and `data.context`.
    objective: a function of lm.objectives.word2vec.
    rate: of a word, as other programs count it.
  """
  config.objective = ConfigDict(
    {
      'fn': f'lm.objectives.word2vec:{objective}',
      'window': 5,
      'subsample': 1e-3,
      'output': ConfigDict(
        {
          'fn': 'lm.objectives.word_outputs:negative_sampling',
          'negatives': 5,
          'drawn': 4,  # for each row; all rows of a batch share them
          'power': 0.75,
          'loss': 'lm.nn.losses:logistic',
        }
      ),
    }
  )
  config.optim = ConfigDict(
    {
      'fn': 'lm.optim.descent:sgd',
      # The loss is a mean over the tokens of a batch, and word2vec adds them up.
      'learning_rate': rate * config.batch_size * config.data.context,
      'schedule': 'lm.optim:linear',
      'steps': 0,
      'warmup': 0,
      'final': 1e-4,
    }
  )
  return follow(config)
