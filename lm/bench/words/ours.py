"""Our word vectors, through the train loop that everything goes through."""

import json
import pathlib
import tempfile
import time
from importlib import metadata

from ml_collections import ConfigDict

from lm.bench.words import Trained, Work
from lm.config.base import base
from lm.config.vectors import glove, word2vec, words
from lm.data import prepare
from lm.run import loop
from lm.run.cli import NoStop
from lm.run.word_vectors import of_run
from lm.text.vector_files import write_word2vec_text

_RATES = {'skip_gram': 0.025, 'cbow': 0.05}


def train(work: Work) -> Trained:
  """Trains in a directory of its own, with an empty cache: nothing is there from before."""
  start = time.perf_counter()
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    config = config_of(work, str(root / 'cache'))
    tokenizer = prepare.tokenizer(config.data)
    counting = time.perf_counter()
    rows = prepare.rows(config.data, 'train', tokenizer, config.seed)
    counting = time.perf_counter() - counting
    epochs = work.glove_epochs if work.model == 'glove' else work.epochs
    config.steps = max(1, epochs * len(rows) // config.batch_size)
    config.eval.every = config.checkpoint.every = config.steps
    # What follows the first dispatch is timed, in a short text too.
    config.dispatch = min(config.dispatch, max(1, config.steps // 4))
    config.log.every = config.dispatch
    loop.train(config, '', root / 'run', NoStop())
    write_word2vec_text(work.out, of_run(root / 'run'))
    steps, seconds = _timed(root / 'run' / 'metrics.jsonl', config.dispatch)
    amount = epochs * (rows.tokens if work.model == 'glove' else rows.tokens - rows.documents)
  return Trained(
    seconds=seconds * config.steps / steps,
    counting=counting if work.model == 'glove' else 0.0,
    command=time.perf_counter() - start,
    unit='pairs' if work.model == 'glove' else 'words',
    amount=amount,
    version=metadata.version('jax'),
  )


def config_of(work: Work, cache: str) -> ConfigDict:
  """Returns the config of the experiments word2vec_text8 and glove_text8 for a text."""
  config = base()
  config.seed = work.seed
  config.data.cache = cache
  config.data.source = f'lm.data.sources:text(files={work.text!r})'
  words(config, work.size, work.min_count)
  if work.model == 'glove':
    glove(config, rate=0.05, window=work.glove_window, x_max=work.x_max)
  else:
    skip_gram = work.model == 'skip_gram'
    config.batch_size, config.dispatch = (8, 500) if skip_gram else (32, 125)
    word2vec(config, work.model, _RATES[work.model])
    config.objective.output.drawn = 4 if skip_gram else 1
    config.objective.window = work.window
    config.objective.output.negatives = work.negatives
  return config


def _timed(metrics: pathlib.Path, every: int) -> tuple[int, float]:
  """Returns how many steps were timed, and the seconds they took.

  All are but those of the first dispatch, which hold the compilation. What the loop does between
  steps counts; evaluations and checkpoints do not.
  """
  rows = [json.loads(line) for line in metrics.read_text().splitlines()]
  seconds = [row['train/step_seconds'] * every for row in rows if 'train/step_seconds' in row]
  return every * len(seconds), sum(seconds)
