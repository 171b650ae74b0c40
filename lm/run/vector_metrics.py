"""What is asked of word vectors: the metrics that `eval.vectors` of a config names."""

from collections.abc import Iterable, Mapping, Sequence

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from lm.config import resolve
from lm.errors import UserError
from lm.metrics.scores import Scores
from lm.metrics.word_vectors import VectorMetric
from lm.models.embeddings import Embeddings
from lm.text.vectors import Vectors, unit_rows

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
  from lm.run.word_vectors import of_run  # which imports what imports this file

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
