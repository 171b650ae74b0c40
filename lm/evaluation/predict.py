"""Predictions for the examples of a task's set, and the scores of all of them together."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tokenizers
from ml_collections import ConfigDict

from lm.components import Components, Inference
from lm.config import resolve
from lm.data import batches, features, pipeline
from lm.data.packed_rows import FeatureRows
from lm.decode.batch import generate_batch, rows_per_batch, trace_generation
from lm.decode.logits_processors import ban_unknown_token
from lm.decode.loop import DecodeConfig, bucket, check_decoding, pad_prompts
from lm.errors import UserError
from lm.evaluation.evaluate import trace as trace_batch
from lm.evaluation.host_memory import Program
from lm.metrics.scores import CorpusMetric
from lm.parallel import mesh
from lm.parallel import mesh as meshes
from lm.parallel.mesh import with_mesh
from lm.task import Features
from lm.text.tokenizers import end_id
from lm.types import Apply, Batch, Params
from lm.workdir.eval_artifacts import EvalExample


class Predictions(NamedTuple):
  """What a model made of the first examples of a set, those that data.too_long skips left out."""

  inputs: list[list[str]]
  outputs: list[Any]
  references: list[Any]


def decode_config(
  decode: ConfigDict, tokenizer: tokenizers.Tokenizer, context: int
) -> DecodeConfig:
  """Returns what a config's decode section says, for rows of at most `context` tokens."""
  return DecodeConfig(
    end=end_id(tokenizer),
    logits_processors=ban_unknown_token(tokenizer),
    max_tokens=decode.max_tokens or context,
    max_length_ratio=decode.max_length_ratio,
    beam_size=decode.beam_size,
    length_penalty=decode.length_penalty,
    batch_size=decode.batch_size,
  )


class Predictor:
  """Predicts for one evaluation set of a config, and scores."""

  def __init__(
    self,
    config: ConfigDict,
    name: str,
    functions: Components | Inference,
    tokenizer: tokenizers.Tokenizer,
    rows: FeatureRows,
    apply: Apply,
    transforms: Sequence[batches.Transform] = (),
  ):
    section = config.eval.sets[name]
    self._config = config
    self._name = name
    self._functions = functions
    self._apply = apply
    self._tokenizer = tokenizer
    self._rows = rows
    self._transforms = transforms  # of rows; what is written continues the examples as they are
    self._decode = decode_config(config.decode, tokenizer, config.data.context)
    self._task, self._converter = features.build_task(config.data)
    examples = pipeline.examples(config.data, section.split, section.source or None)
    self._examples = list(itertools.islice(examples, section.limit or None))
    key = f'eval.sets.{name}.scores'
    builders = [resolve.resolve(path, key) for path in section.scores]
    self.metrics: list[CorpusMetric] = [resolve.call(builder, key) for builder in builders]
    for path, metric in zip(section.scores, self.metrics, strict=True):
      if not isinstance(metric, CorpusMetric):
        raise UserError(
          f'{key}={path!r} makes {type(metric).__name__}, not lm.metrics.scores.CorpusMetric('
          "score, higher_is_better={'NAME': True}); an lm.types.Metric belongs in "
          f'eval.sets.{name}.metrics'
        )
    # All that can be known of the set is known here, and not at the first evaluation.
    self._prompts = self._fitted_prompts() if self.writes else {}
    used = sorted(self._prompts) if self.writes else self._with_features()
    if not used:
      raise UserError(
        f'eval.sets.{name}.limit={section.limit}: data.too_long={config.data.too_long!r} leaves '
        f'none of the first {len(self._examples)} examples; raise the limit or data.context'
      )
    references = [self._task.reference(self._examples[i]) for i in used]
    for path, metric in zip(section.scores, self.metrics, strict=True):
      try:
        metric.check(references)
      except UserError as e:
        raise UserError(f'{key}={path!r}: {e}') from e

  def predictions(self, params: Params) -> Predictions:
    """Returns inputs, outputs and references of the set."""
    make = self._written if self._converter.predict is None else self._found
    found = make(params)
    examples = [self._examples[i] for i in found]
    return Predictions(
      [self._task.inputs(example) for example in examples],
      list(found.values()),
      [self._task.reference(example) for example in examples],
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

  def evaluated(self, predictions: Predictions) -> list[EvalExample]:
    """Returns each example by itself, with the score that the set's first metric gives it."""
    name, scores = self.metrics[0].score_examples(predictions.outputs, predictions.references)
    rows = zip(*predictions, scores, strict=True)
    return [EvalExample(i, output, actual, {name: score}) for i, output, actual, score in rows]

  @property
  def writes(self) -> bool:
    """Whether predictions are written token by token, as the config's decode section says."""
    return self._converter.predict is None

  def _written(self, params: Params) -> dict[int, str]:
    """Returns what is written for each example, by its index."""
    # All devices, and processes, write each batch together: the parameters stay where they are.
    model, over, rules = self._functions.model, self._functions.mesh, self._functions.rules
    prompts, how = list(self._prompts.values()), self._decode
    texts = with_mesh(generate_batch, over, rules)(model, self._apply, params, prompts, how)
    written = [self._tokenizer.decode(best.tokens) for best, *_ in texts]
    return dict(zip(self._prompts, written, strict=True))

  def check_decoding(self, params: Params) -> None:
    """Traces one step of what writes, without computing it; `params` may be shapes."""
    if self.writes:
      first = next(iter(self._prompts.values()))
      check_decoding(self._functions.model, self._apply, params, pad_prompts([first], bucket))

  def program(self, params: Params, row: Mapping[str, np.ndarray]) -> Program:
    """Returns what predicts, without computing it; `params` may be shapes, `row` is a batch of one.

    Raises:
      UserError: later, where it is traced: from the model.
    """
    over, rules = self._functions.mesh, self._functions.rules
    if not self.writes:
      size = self._config.eval.batch_size
      return Program(
        'eval.batch_size',
        f'a prediction of eval.sets.{self._name}',
        size,
        lambda size: trace_batch(self._predict, params, row, size, self._functions),
      )
    prompts, how, model = list(self._prompts.values()), self._decode, self._functions.model

    def traced(size: int) -> Any:
      config = how._replace(batch_size=size)
      return with_mesh(trace_generation, over, rules)(model, self._apply, params, prompts, config)

    # More rows than prompts make no larger program.
    rows = with_mesh(rows_per_batch, over, rules)(how.batch_size, len(prompts))
    what = f'writing for eval.sets.{self._name}'
    return Program('decode.batch_size', what, min(how.batch_size, rows), traced)

  def _with_features(self) -> list[int]:
    """Returns the indices of the examples that have features."""
    found = np.unique(np.asarray(self._rows.example))
    return [int(i) for i in found if i < len(self._examples)]

  def _fitted_prompts(self) -> dict[int, Features]:
    """Returns the prompt of each example that data.too_long leaves, by its index."""
    if self._converter.encode_prompt is None:
      raise UserError(
        f'data.convert={self._config.data.convert!r} neither predicts nor makes a prompt: '
        f'eval.sets.{self._name}.scores have nothing to compare'
      )
    prompt, data = self._converter.encode_prompt(self._tokenizer), self._config.data

    def name(index: int) -> Callable[[], str]:
      return lambda: f'example {index} of eval.sets.{self._name}'

    limits, policy = features.length_limits(data), data.too_long
    return {
      i: fitted
      for i, example in enumerate(self._examples)
      if (fitted := features.apply_prompt_length_policy(prompt(example), limits, policy, name(i)))
      is not None
    }

  def _found(self, params: Params) -> dict[int, Any]:
    """Returns what is found for each example that has features, by its index."""
    pieces: dict[int, list[dict[str, np.ndarray]]] = {}
    for feature, parts in sorted(self._pieces(params), key=lambda pair: pair[0]):
      pieces.setdefault(int(self._rows.example[feature]), []).append(parts)
    postprocess, labels = self._converter.postprocess, tuple(self._config.data.labels)
    assert postprocess is not None
    return {
      i: postprocess(labels, self._examples[i], parts)
      for i, parts in pieces.items()
      if i < len(self._examples)
    }

  def _pieces(self, params: Params) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yields the index of each feature and what belongs to it of batch and predictions."""
    sharding = meshes.batch_sharding(self._functions.mesh, self._functions.rules)
    size = self._config.eval.batch_size
    here = mesh.local_rows(size, sharding)  # what this process puts on the mesh; it reads all
    for batch in batches.eval_batches(self._rows, size, transforms=self._transforms):
      on_mesh = mesh.make_global_batch({name: x[here] for name, x in batch.items()}, sharding)
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
    return jax.jit(
      lambda params, batch: predict(self._functions.apply(params, batch), batch),
      # Whole on every device, where each process can read it.
      out_shardings=meshes.replicated(self._functions.mesh),
    )


def _along(values: np.ndarray, inside: np.ndarray) -> bool:
  return values.shape[1:2] == inside.shape
