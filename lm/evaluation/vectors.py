"""Word vectors of a model: read from parameters or a workdir, evaluated, saved in a workdir."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from lm.components import Inference
from lm.config import resolve
from lm.config.base import WORD_VECTORS, base
from lm.errors import UserError
from lm.evaluation.evaluators import Evaluation, Evaluator
from lm.metrics.scores import Scores
from lm.metrics.word_vectors import VectorMetric
from lm.text.tokenizers import END, UNKNOWN, known_words, word_ids
from lm.text.vectors import (
  Vectors,
  make_vectors,
  nearest_words,
  principal_components,
  row_of,
  unit_rows,
)
from lm.types import Params
from lm.workdir import run_data
from lm.workdir.load import Loaded, load
from lm.workdir.write import write_workdir

_MAP = 'word_map/embedding'
WORDS_ON_MAP = 500  # of the map that evaluations and imports write to a workdir
_KEY = 'eval.vector_metrics'
_NEAREST = 8  # neighbors of a word in samples


def of_params(params: Params, tokenizer: tokenizers.Tokenizer) -> Vectors:
  """Returns the words of a vocabulary with their rows of the parameter `embedding`.

  For GloVe, whose tables have biases, a vector is the sum of the input and the output vector
  (Pennington et al. 2014, section 4.2). Words are the entries that `lm.text.tokenizers.word_ids`
  returns. With several processes, all of them must call this function.

  Raises:
    UserError: there is no such parameter, no word, or an element that is not finite.
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
  """Returns the word vectors of a workdir at a step, by default the step that `load` takes.

  Raises:
    UserError: there is no run, no such step, or no word vectors there.
  """
  return of_loaded(load(workdir, step))


def of_loaded(loaded: Loaded) -> Vectors:
  """Returns the word vectors of an open run.

  Raises:
    UserError: it has none.
  """
  try:
    return of_params(loaded.params, loaded.tokenizer)
  except UserError as e:
    raise UserError(f'--workdir={loaded.workdir}: {e}') from e


def write_run(vectors: Vectors, workdir: str | Path) -> None:
  """Writes a workdir whose model is these vectors, at step 0; on an error, writes nothing.

  Its vocabulary begins with <|end|> and <unk>, whose rows are zeros unless `vectors` has them. All
  output vectors are zeros, as before training. To train another run from the vectors, set its
  `warm_start.workdir` to this workdir. Its data.tokenizer must be 'lm.text.tokenizers:existing'
  with the tokenizer.json of this workdir.

  Raises:
    UserError: the directory is not empty, or cannot be written.
  """
  words = [END, UNKNOWN, *(word for word in vectors.words if word not in (END, UNKNOWN))]
  size = vectors.matrix.shape[1]
  config = base()
  with config.unlocked():
    config.model = {
      'fn': 'lm.models.embeddings:Embeddings',
      'vocab_size': placeholder(int),
      'd_model': size,
      'context': config.data.seq_len,
    }
    config.eval.sets = {}
    config.eval.evaluators = (WORD_VECTORS,)
  config.log.sample_prompts = ()
  table = np.zeros((len(words), size), np.float32)
  for i, word in enumerate(words):
    if word in vectors.index:
      table[i] = vectors.matrix[vectors.index[word]]
  params = {'embedding': table, 'unembedding': np.zeros_like(table)}
  shown = word_map(vectors, vectors.words[:WORDS_ON_MAP])
  write_workdir(
    workdir,
    config,
    known_words(words),
    params,
    lambda folder: run_data.write_newest(folder, _MAP, 0, shown),
  )


def word_vectors(
  config: ConfigDict, functions: Inference, tokenizer: tokenizers.Tokenizer
) -> Evaluator:
  """Returns the evaluator of word vectors: the metrics of `eval.vector_metrics` and a map.

  If the model is not a decoder, `log.sample_prompts` are words. The sample of a word is the list of
  its nearest words with their cosines.

  Raises:
    UserError: a metric is wrong or has no value for the vocabulary, or a prompt is no word of it.
  """
  continues = getattr(functions.model, 'continues_prompts', False)
  words = () if continues else tuple(config.log.sample_prompts)
  if words:
    vocabulary = word_ids(tokenizer)
    try:
      for word in words:
        row_of(make_vectors(vocabulary, np.zeros((len(vocabulary), 1))), word)
    except UserError as e:
      raise UserError(f'log.sample_prompts={words!r:.200}: {e}') from e
  metrics = of_config(config)
  check_coverage(metrics, word_ids(tokenizer))

  def run(step: int, params: Params) -> Evaluation:
    del step
    vectors = of_params(params, tokenizer)
    found = scores(metrics, vectors)
    # The mean length shows how vectors grow, also without other metrics.
    values = {'mean_length': float(np.linalg.norm(vectors.matrix, axis=1).mean())} | found.values
    return Evaluation(
      {f'eval/vectors/{name}': value for name, value in values.items()},
      {f'eval/vectors/{name}': note for name, note in found.notes.items()},
      files={_MAP: word_map(vectors, vectors.words[:WORDS_ON_MAP])},
      texts=[(word, _neighbors(vectors, word)) for word in words],
    )

  def directions(params: Params) -> dict[str, bool | None]:
    del params
    found: dict[str, bool | None] = {'eval/vectors/mean_length': None}
    for metric in metrics:
      for value, direction in metric.higher_is_better.items():
        found[f'eval/vectors/{metric.name}/{value}'] = direction
    return found

  return Evaluator(run, directions)


def _neighbors(vectors: Vectors, word: str) -> str:
  found = nearest_words(vectors, word, _NEAREST)
  return ': ' + ', '.join(f'{other} {cosine:.2f}' for other, cosine in found)


def of_config(config: ConfigDict) -> list[VectorMetric]:
  """Returns the metrics of `eval.vector_metrics`.

  Raises:
    UserError: one is wrong, or two have the same name.
  """
  metrics = []
  for path in config.eval.vector_metrics:
    fn = resolve.resolve(path, _KEY)
    try:
      metric = resolve.call(fn, path)
    except UserError as e:
      raise UserError(f'{_KEY}: {e}') from e
    if not isinstance(metric, VectorMetric):
      raise UserError(f'{_KEY}={path!r} returns {type(metric).__name__}, not a VectorMetric')
    if not metric.higher_is_better:
      raise UserError(
        f"{_KEY}={path!r} declares no values: VectorMetric(..., higher_is_better={{'NAME': True}}) "
        'names each value and its direction (None: a value without one)'
      )
    metrics.append(metric)
  check_names(metrics, f'{_KEY}={tuple(config.eval.vector_metrics)!r}: name one of them with name=')
  return metrics


def drift(workdir: str, name: str = 'drift') -> VectorMetric:
  """Returns the metric of how far word vectors have moved from those of another run.

  'distance' is the mean over common words of 1 - cosine of the two vectors of a word. 'coverage' is
  the share of common words.

  Raises:
    UserError: there is no such run. The metric raises it if the runs have no word in common.
  """
  before = of_run(workdir)

  def common_words(index: Mapping[str, int]) -> list[str]:
    common = [word for word in index if word in before.index]
    if not common:
      raise UserError(f'{workdir} has none of the words')
    return common

  def score(vectors: Vectors) -> Scores:
    common = common_words(vectors.index)
    now, then = (
      unit_rows(each.matrix[[each.index[word] for word in common]]) for each in (vectors, before)
    )
    distance = float(1 - np.einsum('nd,nd->n', now, then).mean())
    return Scores({'distance': distance, 'coverage': len(common) / len(vectors.words)})

  return VectorMetric(name, score, common_words, {'distance': False, 'coverage': True})


def check_names(metrics: Iterable[VectorMetric], remedy: str) -> None:
  """Raises UserError if two metrics share a name or one has none; `remedy` begins the message."""
  seen: set[str] = set()
  for name, *_ in metrics:
    if not name or name in seen:
      raise UserError(f'{remedy}; two are called {name!r}' if name else f'{remedy}; one has none')
    seen.add(name)


def check_coverage(metrics: Iterable[VectorMetric], words: Mapping[str, int]) -> None:
  """Raises UserError if a metric has no value for vectors of these words."""
  for name, _, check, _ in metrics:
    try:
      check(words)
    except UserError as e:
      raise UserError(
        f'{_KEY}: {name}: {e}; the vocabulary of data.tokenizer has {len(words):,} words'
      ) from e


def scores(metrics: Sequence[VectorMetric], vectors: Vectors) -> Scores:
  """Returns the values of metrics of word vectors, as 'NAME/VALUE'.

  Raises:
    UserError: a metric is undefined, for instance because no word is covered.
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
  """Returns words with two PCA coordinates each, as JSON that `lm.report.word_map` shows.

  Args:
    vectors: of at least these words.
    words: in order of priority, such as by frequency: the map may omit labels of later words.

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
