"""The word vectors of a model: out of its parameters, out of a workdir, and into one."""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import tokenizers
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from lm.config import resolve
from lm.config.base import base
from lm.errors import UserError
from lm.metrics.scores import Scores
from lm.metrics.word_vectors import VectorMetric
from lm.models.embeddings import Embeddings
from lm.text.tokenizers import END, UNKNOWN, known_words, word_ids
from lm.text.vectors import Vectors, make_vectors, principal_components, row_of, unit_rows
from lm.types import Params, TrainState
from lm.workdir import eval_artifacts, experiment, files
from lm.workdir.checkpoints import Checkpoints
from lm.workdir.load import Loaded, load
from lm.workdir.metrics_writer import EventLog

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
    experiment.write_run_config(config, '', tokenizer, folder, content='')
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
    events = EventLog(folder)
    events.write('imported', step=0)
    events.close()
    eval_artifacts.write_word_map(folder, 0, word_map(vectors, vectors.words[:MAPPED]))


@contextlib.contextmanager
def _whole(workdir: Path) -> Iterator[Path]:
  """Gives a directory beside `workdir` that takes its place in the end, or goes."""
  files.check_new(workdir)
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


_KEY = 'eval.vectors'


def wanted(config: ConfigDict, model: nn.Module) -> bool:
  """Returns whether evaluations look at the word vectors of a model."""
  return bool(config.eval.vectors) or isinstance(model, Embeddings)


def of_config(config: ConfigDict) -> list[VectorMetric]:
  """Returns the metrics of `eval.vectors`.

  Raises:
    UserError: one is wrong, or two have the same name.
  """
  metrics = []
  for path in config.eval.vectors:
    fn = resolve.resolve(path, _KEY)
    try:
      metric = resolve.call(fn, path)
    except UserError as e:
      raise UserError(f'{_KEY}: {e}') from e
    if not isinstance(metric, VectorMetric):
      raise UserError(f'{_KEY}={path!r} makes {type(metric).__name__}, not a VectorMetric')
    if not metric.higher_is_better:
      raise UserError(
        f"{_KEY}={path!r} declares no values: VectorMetric(..., higher_is_better={{'NAME': True}}) "
        'names each of them, and whether its highest is the best (None: no value is better)'
      )
    metrics.append(metric)
  check_names(metrics, f'{_KEY}={tuple(config.eval.vectors)!r}: give one another name=')
  return metrics


def drift(workdir: str, name: str = 'drift') -> VectorMetric:
  """Returns the metric of how far words have gone from where they lie in another run.

  It has 'distance', the mean over common words of 1 - cosine with their own vector there, and the
  'coverage', their share.

  Raises:
    UserError: there is no such run; or, from the metric, no word in common.
  """
  pass

  before = of_run(workdir)

  def shared(index: Mapping[str, int]) -> list[str]:
    common = [word for word in index if word in before.index]
    if not common:
      raise UserError(f'{workdir} has none of the words')
    return common

  def score(vectors: Vectors) -> Scores:
    common = shared(vectors.index)
    now = vectors.matrix[[vectors.index[word] for word in common]]
    then = before.matrix[[before.index[word] for word in common]]
    cosines = np.einsum('nd,nd->n', unit_rows(now), unit_rows(then))
    coverage = len(common) / len(vectors.words)
    return Scores({'distance': float(1 - cosines.mean()), 'coverage': coverage})

  return VectorMetric(name, score, shared, {'distance': False, 'coverage': True})


def check_names(metrics: Iterable[VectorMetric], remedy: str) -> None:
  """Raises UserError where two metrics have one name, or one has none."""
  seen: set[str] = set()
  for name, *_ in metrics:
    if not name or name in seen:
      raise UserError(f'{remedy}; two are called {name!r}' if name else f'{remedy}; one has none')
    seen.add(name)


def check_coverage(metrics: Iterable[VectorMetric], words: Mapping[str, int]) -> None:
  """Raises UserError where a metric could say nothing of vectors of these words."""
  for name, _, check, _ in metrics:
    try:
      check(words)
    except UserError as e:
      raise UserError(
        f'{_KEY}: {name}: {e}; the vocabulary has {len(words):,} words, as data.tokenizer says'
      ) from e


def scores(metrics: Sequence[VectorMetric], vectors: Vectors) -> Scores:
  """Returns what metrics say of word vectors, as 'NAME/VALUE'.

  Raises:
    UserError: a metric cannot be found, such as one of which nothing is covered.
  """
  values: dict[str, float] = {}
  notes: dict[str, str] = {}
  for name, score, *_ in metrics:
    try:
      found = score(vectors)
    except UserError as e:
      raise UserError(f'{name}: {e}') from e
    values |= {f'{name}/{key}': value for key, value in found.values.items()}
    notes |= {f'{name}/{key}': note for key, note in found.notes.items()}
  return Scores(values, notes)


def word_map(vectors: Vectors, words: Sequence[str]) -> dict[str, Any]:
  """Returns words at their two principal components, as JSON that `lm.report.word_map` shows.

  Args:
    vectors: of at least these words.
    words: in the order in which they are named as long as there is room, such as the most frequent.

  Raises:
    UserError: there are no words, or one is not among the vectors.
  """
  chosen = list(dict.fromkeys(words))
  if not chosen:
    raise UserError('a map of words needs at least one word')
  rows = [row_of(vectors, word) for word in chosen]
  points, shares = principal_components(vectors.matrix[rows])
  # Four digits are finer than a pixel.
  points = points / (np.abs(points).max() or 1.0)
  return {'words': chosen, 'points': points.round(4).tolist(), 'shares': shares.tolist()}
