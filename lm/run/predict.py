"""Predictions for the examples of a task's set, and the scores of all of them together."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import tokenizers
from ml_collections import ConfigDict

from lm import mesh as meshes
from lm import spec
from lm.data import batches, features, prepare
from lm.data.rows import FeatureRows
from lm.decode.write import Strategy, write
from lm.metrics.scores import CorpusMetric
from lm.run.build import Functions
from lm.text.tokenizers import end_id
from lm.types import Apply, Batch, Params


class Predictions(NamedTuple):
  """What a model made of the first examples of a set."""

  inputs: list[list[str]]
  outputs: list[Any]
  references: list[Any]


def strategy(decode: ConfigDict, end: int, context: int) -> Strategy:
  """Returns the strategy of a config's decode section, for rows of at most `context` tokens."""
  return Strategy(
    end=end,
    max_tokens=decode.max_tokens or context,
    beam=decode.beam,
    length_penalty=decode.length_penalty,
    batch_size=decode.batch_size,
  )


class Predictor:
  """Predicts for one evaluation set of a config, and scores."""

  def __init__(
    self,
    config: ConfigDict,
    name: str,
    functions: Functions,
    tokenizer: tokenizers.Tokenizer,
    rows: FeatureRows,
    apply: Apply,
  ):
    section = config.eval.sets[name]
    self._config = config
    self._functions = functions
    self._apply = apply
    self._tokenizer = tokenizer
    self._rows = rows
    self._task, self._converter = features.open_task(config.data)
    examples = prepare.examples(config.data, section.split, section.source or None)
    self._examples = list(itertools.islice(examples, section.limit or None))
    self.metrics: list[CorpusMetric] = [
      spec.resolve(path, f'eval.sets.{name}.scores')() for path in section.scores
    ]

  def predictions(self, params: Params) -> Predictions:
    """Returns inputs, outputs and references of the set."""
    make = self._written if self._converter.predict is None else self._found
    return Predictions(
      [self._task.inputs(example) for example in self._examples],
      make(params),
      [self._task.reference(example) for example in self._examples],
    )

  def scores(self, predictions: Predictions) -> tuple[dict[str, float], dict[str, str]]:
    """Returns the values of all corpus metrics, and their notes."""
    values: dict[str, float] = {}
    notes: dict[str, str] = {}
    for metric in self.metrics:
      found = metric(predictions.outputs, predictions.references)
      values |= found.values
      notes |= found.notes
    return values, notes

  def _written(self, params: Params) -> list[str]:
    assert self._converter.prompt is not None
    prompt = self._converter.prompt(self._tokenizer)
    config = self._config
    how = strategy(config.decode, end_id(self._tokenizer), config.data.context)
    prompts = [prompt(example) for example in self._examples]
    texts = write(self._functions.model, self._apply, params, prompts, how)
    return [self._tokenizer.decode(best.tokens) for best, *_ in texts]

  def _found(self, params: Params) -> list[Any]:
    pieces: list[list[dict[str, np.ndarray]]] = [[] for _ in self._examples]
    for feature, parts in self._pieces(params):
      example = int(self._rows.example[feature])
      if example < len(pieces):
        pieces[example].append(parts)
    read, labels = self._converter.read, tuple(self._config.data.labels)
    assert read is not None
    both = zip(self._examples, pieces, strict=True)
    return [read(labels, example, parts) for example, parts in both]

  def _pieces(self, params: Params) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yields the index of each feature and what belongs to it of batch and predictions."""
    sharding = meshes.batch_sharding(self._functions.mesh, self._functions.rules)
    for batch in batches.eval_batches(self._rows, self._config.eval.batch_size):
      on_mesh = meshes.put_batch(batch, sharding)
      found = jax.device_get(self._predict(params, on_mesh))
      for row, slot in zip(*np.nonzero(batch['examples']), strict=True):
        inside = batch['segments'][row] == slot + 1
        parts = {f'tokens/{k}': v[row][inside] for k, v in batch.items() if _along(v, inside)}
        for place, values in found.items():
          parts[place] = values[row][inside] if place.startswith('tokens/') else values[row, slot]
        yield int(batch['examples'][row, slot]) - 1, parts

  @functools.cached_property
  def _predict(self) -> Callable[[Params, Batch], dict[str, jax.Array]]:
    predict = self._converter.predict
    assert predict is not None
    return jax.jit(lambda params, batch: predict(self._functions.apply(params, batch), batch))


def _along(values: np.ndarray, inside: np.ndarray) -> bool:
  return values.shape[1:2] == inside.shape
