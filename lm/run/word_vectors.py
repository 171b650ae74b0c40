"""The word vectors of a model: out of its parameters, out of a workdir, and into one."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tokenizers
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from lm.config.base import base
from lm.errors import UserError
from lm.run import experiment, files, kept, word_map
from lm.run.checkpoint import Checkpoints
from lm.run.load import Loaded, load
from lm.run.logging import Events
from lm.run.step import TrainState
from lm.text.tokenizers import END, UNKNOWN, known_words, word_ids
from lm.text.vectors import Vectors, make_vectors
from lm.types import Params

MAPPED = 500  # words of the map that evaluations and imports leave in a workdir


def of_params(params: Params, tokenizer: tokenizers.Tokenizer) -> Vectors:
  """Returns the words of a vocabulary with their rows of the parameter `embedding`.

  Where neighbours have vectors of the same kind, as in GloVe, whose tables have biases beside, the
  two are added up (Pennington et al. 2014, section 4.2).

  Words are those of lm.text.tokenizers. Where there are several processes, all of them must ask.

  Raises:
    UserError: there is no such parameter, no word, or a number that is not finite.
  """
  if 'embedding' not in params:
    raise UserError(f'no word vectors: of the parameters {", ".join(params)} none is `embedding`')
  words = word_ids(tokenizer)
  table = params['embedding']
  if 'unembedding_bias' in params:
    table = table + params['unembedding']
  if not getattr(table, 'is_fully_addressable', True):
    table = multihost_utils.process_allgather(table, tiled=True)
  return make_vectors(words, np.asarray(table)[list(words.values())])


def of_run(workdir: str | Path, step: int | None = None) -> Vectors:
  """Returns the word vectors of a workdir at a step, by default the one that `load` takes.

  Raises:
    UserError: there is no run, no such step, or no word vectors there.
  """
  return of_loaded(load(workdir, step))


def of_loaded(loaded: Loaded) -> Vectors:
  """Returns the word vectors of a run that is open.

  Raises:
    UserError: it has none.
  """
  try:
    return of_params(loaded.params, loaded.tokenizer)
  except UserError as e:
    raise UserError(f'--workdir={loaded.workdir}: {e}') from e


def write_run(vectors: Vectors, workdir: str | Path) -> None:
  """Makes a workdir whose model is these vectors, at step 0, or nothing at all.

  Its vocabulary begins with <|end|> and <unk>, whose rows are zeros unless `vectors` has them; as
  neighbours all words are zeros, as before training. A run takes the vectors by `init.workdir` when
  its data.tokenizer is 'lm.text.tokenizers:existing' with the tokenizer.json there.

  Raises:
    UserError: the directory is not empty, or cannot be written.
  """
  workdir = Path(workdir)
  with _whole(workdir) as folder:
    words = [END, UNKNOWN, *(word for word in vectors.words if word not in (END, UNKNOWN))]
    tokenizer = known_words(words)
    config = _config(workdir, vectors.matrix.shape[1])
    experiment.record(config, '', tokenizer, folder, content='')
    table = np.zeros((len(words), vectors.matrix.shape[1]), np.float32)
    for i, word in enumerate(words):
      if word in vectors.index:
        table[i] = vectors.matrix[vectors.index[word]]
    params = {'embedding': table, 'unembedding': np.zeros_like(table)}
    zero = jnp.zeros((), jnp.int32)
    checkpoints = Checkpoints(folder)
    try:
      checkpoints.save(0, TrainState(zero, zero, zero, params, opt_state={}))
      checkpoints.wait()
    finally:
      checkpoints.close()
    events = Events(folder)
    events.write('imported', step=0)
    events.close()
    kept.write_word_map(folder, 0, word_map.find(vectors, vectors.words[:MAPPED]))


@contextlib.contextmanager
def _whole(workdir: Path) -> Iterator[Path]:
  """Gives a directory beside `workdir` that takes its place in the end, or goes."""
  files.check_free(workdir)
  folder = workdir.absolute().with_name(f'{workdir.absolute().name}.{os.getpid()}.tmp')
  try:
    folder.mkdir(parents=True)
    yield folder
    os.replace(folder, workdir)  # over an empty directory at the most
  except OSError as e:
    raise UserError(f'--workdir={workdir} cannot be written: {e.strerror or e}') from e
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _config(workdir: Path, size: int) -> ConfigDict:
  """Returns the config of vectors of `size` numbers that are not trained."""
  config = base()
  with config.unlocked():
    config.data.tokenizer = ConfigDict(
      {
        'fn': 'lm.text.tokenizers:existing',
        'file': str(workdir.absolute() / 'tokenizer.json'),
      }
    )
    config.model = ConfigDict(
      {
        'fn': 'lm.models.embeddings:Embeddings',
        'vocab_size': placeholder(int),
        'd_model': size,
        'context': config.data.context,
      }
    )
    config.eval.sets = ConfigDict()
  config.log.prompts = ()
  return config
