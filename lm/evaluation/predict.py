"""Predictions from batches, and `Predictor`, which scores those of an evaluation set.

`lm.evaluation.trained_model` predicts for rows that a user asks about, by the same functions.
"""

import collections
import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tokenizers
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lm.components import Inference
from lm.config import resolve
from lm.data import batches, features, pipeline
from lm.data.packed_rows import FeatureRows, Stream, feature_batch
from lm.data.packing import pack_examples
from lm.decode import sampling
from lm.decode.batch import generate_batch, rows_per_batch, trace_generation
from lm.decode.loop import DecodeConfig, bucket, check_decoding, pad_prompts
from lm.errors import UserError
from lm.evaluation.host_memory import Program, trace_batch
from lm.metrics.scores import CorpusMetric
from lm.parallel import mesh as meshes
from lm.task import Features, concatenate_feature, stack_feature
from lm.text.tokenizers import end_id
from lm.types import Apply, Array, Batch, Output, Params
from lm.workdir.run_data import EvalExample

Prediction = dict[str, Any]  # a JSON object
# (params, batch) -> the arrays of `Converter.predict`
PredictStep = Callable[[Params, Batch], dict[str, jax.Array]]


class Predictions(NamedTuple):
  """The predictions for the first examples of a set, without those that data.too_long skips."""

  inputs: list[list[str]]
  outputs: list[Any]  # the answers of `full`
  references: list[Any]
  full: list[Prediction]


def _built(path: str, key: str, tokenizer: tokenizers.Tokenizer) -> Callable[..., Array]:
  """Returns the sampling function or the logits processor that an import path builds.

  A builder with an argument `tokenizer` receives the tokenizer. `key` names the path in errors.

  Raises:
    UserError: the path is wrong, or its function needs other arguments or returns no function.
  """
  builder = resolve.resolve(path, key)
  takes_it = 'tokenizer' in inspect.signature(builder).parameters
  fn = resolve.call(builder, key, **({'tokenizer': tokenizer} if takes_it else {}))
  if not callable(fn):
    raise UserError(f'{key}={path!r} returns {type(fn).__name__}, not a function of logits')
  return fn


def decode_config(
  decode: ConfigDict, tokenizer: tokenizers.Tokenizer, context: int
) -> DecodeConfig:
  """Returns the decoding that a config's decode section asks for, in `context` tokens at most.

  Raises:
    UserError: `decode.sampler` or one of `decode.logits_processors` is wrong.
  """
  forbidden = (sampling.forbidden_tokens(tuple(decode.forbidden)),) if decode.forbidden else ()
  processors = (
    _built(path, f'decode.logits_processors[{i}]', tokenizer)
    for i, path in enumerate(decode.logits_processors)
  )
  sampler = decode.sampler and _built(decode.sampler, 'decode.sampler', tokenizer)
  return DecodeConfig(
    end=end_id(tokenizer),
    logits_processors=(*sampling.ban_unknown_token(tokenizer), *forbidden, *processors),
    sample_fn=sampler or sampling.greedy,
    max_tokens=decode.max_tokens or context,
    max_length_ratio=decode.max_length_ratio,
    beam_size=decode.beam_size,
    length_penalty=decode.length_penalty,
    batch_size=decode.batch_size,
  )


def make_predict_step(
  predict: Callable[[Output, Batch], dict[str, jax.Array]], apply: Apply, mesh: Mesh | None = None
) -> PredictStep:
  """Returns the jitted `(params, batch) -> arrays` of a `Converter.predict`.

  On a mesh the arrays are replicated, so that each process can read all of them.
  """
  replicated = None if mesh is None else meshes.replicated(mesh)
  return jax.jit(
    lambda params, batch: predict(apply(params, batch), batch), out_shardings=replicated
  )


def predicted_pieces(
  step: PredictStep,
  params: Params,
  source: Iterable[Mapping[str, np.ndarray]],
  place: Callable[[Mapping[str, np.ndarray]], Batch] = jax.device_put,
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
  """Yields the index of each `Features`, with its slices of the batch and of the predictions.

  A batch is dispatched before the predictions of the one before it are read.

  Args:
    step: of `make_predict_step`.
    params: its parameters.
    source: batches, with the index of each `Features` plus 1 in `examples` (B, P).
    place: puts a batch on the devices.
  """
  pending: collections.deque = collections.deque()
  for batch in itertools.chain(source, [None]):
    if batch is not None:
      pending.append((batch, step(params, place(batch))))
    if pending and (batch is None or len(pending) > 1):
      yield from _slices(*pending.popleft())


def _slices(
  batch: Mapping[str, np.ndarray], outputs: Mapping[str, jax.Array]
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
  found = jax.device_get(outputs)
  segments = batch['segments']
  along = {k: v for k, v in batch.items() if v.shape[:2] == segments.shape and k != 'examples'}
  for row, slot in zip(*np.nonzero(batch['examples']), strict=True):
    inside = segments[row] == slot + 1
    parts = {f'tokens/{name}': values[row][inside] for name, values in along.items()}
    for name, values in found.items():
      parts[name] = values[row][inside] if name.startswith('tokens/') else values[row, slot]
    yield int(batch['examples'][row, slot]) - 1, parts


def packed_batches(
  found: Sequence[Features], batch_size: int, limits: Mapping[str, tuple[str, int]]
) -> Iterator[dict[str, np.ndarray]]:
  """Yields batches of entire features, packed into rows with hardly any padding.

  The lengths of rows are few, so that few shapes compile, and close to those of the features, whose
  attention to other segments is computed too. The last batch is halved as long as its rows fit.

  Args:
    found: features of the same names.
    batch_size: rows of a batch.
    limits: of `lm.data.features.length_limits`; only longer features make longer rows.
  """
  if not found:
    return
  streams, columns = [], []
  for kind, prefix in (('tokens', ''), ('source', 'source_')):
    arrays = {
      name: concatenate_feature(name, [getattr(f, kind)[name] for f in found])
      for name in getattr(found[0], kind)
    }
    if arrays:
      lengths = np.array([len(next(iter(getattr(f, kind).values()))) for f in found])
      streams.append(Stream(prefix, arrays, lengths, np.cumsum(lengths) - lengths, 0))
      columns.append([_row_length(size, limits[kind][1]) for size in lengths.tolist()])
  values = {name: stack_feature(name, [f.values[name] for f in found]) for name in found[0].values}
  sizes, capacities = np.stack([s.lengths for s in streams], 1), np.stack(columns, 1)
  for capacity in np.unique(capacities, axis=0)[::-1]:
    members = np.flatnonzero((capacities == capacity).all(1))
    ends, order = pack_examples(sizes[members], capacity, None)
    count = np.diff(ends, prepend=0)
    slots = 1 << int(count.max() - 1).bit_length()
    sized = [s._replace(size=int(size)) for s, size in zip(streams, capacity, strict=True)]
    for start in range(0, len(ends), batch_size):
      here, rows = count[start : start + batch_size], batch_size
      while rows // 2 >= len(here):
        rows //= 2
      part = members[order[ends[start] - count[start] : ends[start + len(here) - 1]]]
      nth = np.concatenate([np.arange(n) for n in here])
      batch = feature_batch(sized, values, part, here, nth, slots)
      empty = (0, rows - len(here))
      yield {k: np.pad(x, [empty, *[(0, 0)] * (x.ndim - 1)]) for k, x in batch.items()}


def _row_length(size: int, limit: int) -> int:
  """Returns the row length for features of `size` tokens: 64, 256, 1024, ... or the limit."""
  length = 64
  while length < size:
    length *= 4
  return length if size > limit else min(length, limit)


class Predictor:
  """Predicts the outputs of one evaluation set, and scores them.

  Attributes:
    metrics: the corpus metrics of the set.
    generates: whether outputs are generated token by token, by the config's decode section; else
      the converter predicts them from one forward pass.

  Raises:
    UserError: a metric is wrong, or the set has no example that it can score.
  """

  def __init__(
    self,
    config: ConfigDict,
    name: str,
    functions: Inference,
    tokenizer: tokenizers.Tokenizer,
    rows: FeatureRows,
    apply: Apply,
    transforms: Sequence[batches.Transform],
    data: Mapping[str, Any],  # the data section of the set
  ):
    section, key = config.eval.sets[name], f'eval.sets.{name}.scores'
    self._config, self._name, self._functions, self._data = config, name, functions, data
    self._apply, self._tokenizer, self._rows = apply, tokenizer, rows
    self._transforms = transforms  # of rows; prompts come from the untransformed examples
    self._decode = decode_config(config.decode, tokenizer, data['seq_len'])
    self._task, self._converter = features.build_task(data)
    self.generates = self._converter.predict is None
    examples = pipeline.examples(data, section.split, section.source or None)
    self._examples = list(itertools.islice(examples, section.limit or None))
    self.metrics: list[CorpusMetric] = []
    for path in section.scores:
      metric = resolve.call(resolve.resolve(path, key), key)
      if not isinstance(metric, CorpusMetric):
        raise UserError(
          f'{key}={path!r} returns {type(metric).__name__}, not lm.metrics.scores.CorpusMetric('
          "score, higher_is_better={'NAME': True}); an lm.types.Metric belongs in "
          f'eval.sets.{name}.metrics'
        )
      self.metrics.append(metric)
    # Everything that can be wrong with the set is checked here, before the first evaluation.
    self._prompts = self._fitting_prompts() if self.generates else {}
    with_features = np.unique(np.asarray(rows.example)).tolist()
    predicted = [i for i in with_features if i < len(self._examples)]
    used = sorted(self._prompts) if self.generates else predicted
    if not used:
      raise UserError(
        f'eval.sets.{name}.limit={section.limit}: data.too_long={data["too_long"]!r} leaves '
        f'none of the first {len(self._examples)} examples; raise the limit or data.seq_len'
      )
    references = [self._task.reference(self._examples[i]) for i in used]
    for path, metric in zip(section.scores, self.metrics, strict=True):
      try:
        metric.check(references)
      except UserError as e:
        raise UserError(f'{key}={path!r}: {e}') from e

  def predictions(self, params: Params) -> Predictions:
    """Returns inputs, outputs and references of the set."""
    found = self._generated(params) if self.generates else self._predicted(params)
    examples = [self._examples[i] for i in found]
    return Predictions(
      [self._task.inputs(example) for example in examples],
      [prediction[self._converter.answer] for prediction in found.values()],
      [self._task.reference(example) for example in examples],
      list(found.values()),
    )

  def scores(self, predictions: Predictions) -> tuple[dict[str, float], dict[str, str]]:
    """Returns the values of all corpus metrics, and their notes."""
    values: dict[str, float] = {}
    notes: dict[str, str] = {}
    for metric in self.metrics:
      scores = metric(metric.scored(predictions), predictions.references)
      values |= scores.values
      notes |= scores.notes
    return values, notes

  def scored_examples(self, predictions: Predictions) -> list[EvalExample]:
    """Returns the examples, each with the score that the set's first metric gives it."""
    scored = self.metrics[0].scored(predictions)
    name, scores = self.metrics[0].score_examples(scored, predictions.references)
    rows = zip(*predictions[:3], scores, strict=True)
    return [EvalExample(i, output, actual, {name: score}) for i, output, actual, score in rows]

  def check_decoding(self, params: Params) -> None:
    """Traces one decoding step without computing it; `params` may be shapes."""
    if self.generates:
      first = next(iter(self._prompts.values()))
      check_decoding(self._functions.model, self._apply, params, pad_prompts([first], bucket))

  def program(self, params: Params, row: Mapping[str, np.ndarray]) -> Program:
    """Returns the program that predicts, not yet traced.

    Args:
      params: parameters, or their shapes.
      row: a batch of one row.

    Raises:
      UserError: from the model, when the program is traced.
    """
    if not self.generates:
      what, size = f'a prediction of eval.sets.{self._name}', self._config.eval.batch_size
      trace = functools.partial(trace_batch, self._predict, params, row, functions=self._functions)
      return Program('eval.batch_size', what, size, trace)
    prompts, how, model = list(self._prompts.values()), self._decode, self._functions.model

    def traced(size: int) -> Any:
      config = how._replace(batch_size=size)
      return self._on_mesh(trace_generation)(model, self._apply, params, prompts, config)

    # A batch has no more rows than there are prompts.
    rows = self._on_mesh(rows_per_batch)(how.batch_size, len(prompts))
    what = f'decoding for eval.sets.{self._name}'
    return Program('decode.batch_size', what, min(how.batch_size, rows), traced)

  def _on_mesh(self, fn: Callable) -> Callable:
    return meshes.with_mesh(fn, self._functions.mesh, self._functions.rules)

  def _fitting_prompts(self) -> dict[int, Features]:
    """Returns the prompts that `data.too_long` keeps, each by the index of its example."""
    if self._converter.encode_prompt is None:
      raise UserError(
        f'data.converter={self._data["converter"]!r} has neither a prediction nor a prompt, so '
        f'that eval.sets.{self._name}.scores have nothing to compare'
      )
    prompt = self._converter.encode_prompt(self._tokenizer)
    limits, policy = features.length_limits(self._data), self._data['too_long']
    prompts = {
      i: features.apply_prompt_length_policy(
        prompt(example),
        limits,
        policy,
        functools.partial('example {} of eval.sets.{}'.format, i, self._name),
      )
      for i, example in enumerate(self._examples)
    }
    return {i: fitting for i, fitting in prompts.items() if fitting is not None}

  def _generated(self, params: Params) -> dict[int, Prediction]:
    """Returns the generated text of each example, by its index."""
    # All devices and processes decode each batch together, so that parameters stay sharded.
    prompts = list(self._prompts.values())
    generate = self._on_mesh(generate_batch)
    found = generate(self._functions.model, self._apply, params, prompts, self._decode)
    texts = [{'text': self._tokenizer.decode(best.tokens)} for best, *_ in found]
    return dict(zip(self._prompts, texts, strict=True))

  def _predicted(self, params: Params) -> dict[int, Prediction]:
    """Returns the prediction of each example that has features, by its index."""
    pieces: dict[int, list[dict[str, np.ndarray]]] = {}
    for feature, parts in sorted(self._pieces(params), key=lambda pair: pair[0]):
      pieces.setdefault(int(self._rows.example[feature]), []).append(parts)
    postprocess, labels = self._converter.postprocess, tuple(self._data['labels'])
    assert postprocess is not None
    return {
      i: postprocess(labels, self._examples[i], parts)
      for i, parts in pieces.items()
      if i < len(self._examples)
    }

  def _pieces(self, params: Params) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yields the index of each feature, with its slices; see `predicted_pieces`."""
    sharding = meshes.batch_sharding(self._functions.mesh, self._functions.rules)
    size = self._config.eval.batch_size
    here = meshes.local_rows(size, sharding)  # the rows that this process puts on the mesh

    def place(batch: Mapping[str, np.ndarray]) -> Batch:
      return meshes.make_global_batch({name: x[here] for name, x in batch.items()}, sharding)

    source = batches.eval_batches(self._rows, size, transforms=self._transforms, name=self._name)
    return predicted_pieces(self._predict, params, source, place)

  @functools.cached_property
  def _predict(self) -> PredictStep:
    assert self._converter.predict is not None
    functions = self._functions
    return make_predict_step(self._converter.predict, functions.apply, functions.mesh)
