"""The evaluations of a run: exact means over each set, corpus metrics, word vectors, samples."""

import functools
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from ml_collections import ConfigDict

from lm import components
from lm.components import Inference
from lm.data import batches, pipeline
from lm.data.packed_rows import FeatureRows, Rows
from lm.decode.loop import DecodeConfig, check_decoding, check_prompt_length
from lm.decode.sampling import ban_unknown_token, sampler
from lm.decode.stream import prompt_encoder, stream_text
from lm.errors import UserError
from lm.evaluation import vectors as word_vectors
from lm.evaluation.attention_maps import AttentionMaps
from lm.evaluation.host_memory import Program, trace_batch
from lm.evaluation.predict import Predictor
from lm.parallel import mesh as meshes
from lm.parallel import multihost
from lm.progress import Progress, show_documents, silent
from lm.text.tokenizers import end_id, word_ids
from lm.text.vectors import Vectors, make_vectors, nearest_words, row_of
from lm.types import Batch, Metric, Params, WeightedSums, apply_of
from lm.workdir import eval_artifacts
from lm.workdir.eval_artifacts import EvalExample
from lm.workdir.metrics_writer import Metrics
from lm.workdir.run_data import losses_by_step

EvalStep = Callable[[Params, Batch], WeightedSums]
_SAMPLES = (3,)  # spawn key of their seeds
_NEAREST = 8  # neighbors of a word


def make_eval_step(functions: Inference, metrics: Iterable[Metric]) -> EvalStep:
  """Returns the jitted `(params, batch) -> {name: (sum, weight)}` of some metrics."""
  metrics = list(metrics)

  def step(params: Params, batch: Batch) -> WeightedSums:
    output = functions.apply(params, batch)
    terms: WeightedSums = {}
    for metric in metrics:
      new = metric.terms(output, batch)
      check_disjoint(terms, new)
      terms |= new
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), terms)

  return jax.jit(meshes.with_mesh(step, functions.mesh, functions.rules))


def check_disjoint(names: Collection[str], others: Iterable[str]) -> None:
  """Raises UserError if two metrics of a set have a value of the same name."""
  for name in others:
    if name in names:
      raise UserError(f'two metrics of the set have a value {name!r}; leave one of them out')


def value_directions(terms: Iterable[str], metrics: Sequence[Metric]) -> dict[str, bool | None]:
  """Returns the name of each value of some metrics, and its direction.

  Args:
    terms: the names of the terms that their step returns.
    metrics: in the order of the step.

  Raises:
    UserError: two values have the same name.
  """
  means = dict.fromkeys(terms, 1.0)
  for metric in metrics:
    derived = metric.derive(means)
    check_disjoint(means, derived)
    means |= derived
  directions = {name: d for metric in metrics for name, d in metric.higher_is_better.items()}
  return {name: directions.get(name) for name in means}


def evaluate(
  step: EvalStep,
  metrics: Iterable[Metric],
  params: Params,
  batches: Iterable[Mapping[str, np.ndarray]],
  functions: Inference,
) -> dict[str, float]:
  """Returns the metrics over all batches; the sums of batches accumulate in float64."""
  sharding = meshes.batch_sharding(functions.mesh, functions.rules)
  totals: dict[str, np.ndarray] = {}
  for batch in batches:
    terms = jax.device_get(step(params, meshes.make_global_batch(batch, sharding)))
    for name, pair in terms.items():
      totals[name] = totals.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
  means = {name: float(s / w) if w else float('nan') for name, (s, w) in totals.items()}
  for metric in metrics:
    means |= metric.derive(means)
  return means


class Evaluation(NamedTuple):
  """The metrics and outputs of a model on all sets.

  Attributes:
    values: by 'eval/SET/METRIC'; metrics of word vectors are 'eval/vectors/METRIC/VALUE'.
    notes: remarks of metrics on their values, by the same names.
    examples: inputs, outputs and scores, by set.
    vectors: the word vectors, if they are evaluated.
  """

  values: dict[str, float]
  notes: dict[str, str]
  examples: dict[str, list[EvalExample]]
  vectors: Vectors | None


class _Set(NamedTuple):
  rows: Rows
  transforms: tuple[batches.Transform, ...]
  metrics: list[Metric]
  step: EvalStep

  def first_row(self) -> Mapping[str, np.ndarray]:
    """Returns a batch of one row."""
    return next(iter(batches.eval_batches(self.rows, 1, transforms=self.transforms)))


class Evaluators:
  """The sets of `config.eval.sets`, each with its rows, metrics and compiled step.

  Attributes:
    predictors: of the sets that have corpus metrics.
    notes: how many examples data.too_long skipped or truncated, by set, if any.

  Raises:
    UserError: a set or a metric is wrong, or the model cannot continue `log.sample_prompts`.
  """

  def __init__(self, config: ConfigDict, functions: Inference, tokenizer: tokenizers.Tokenizer):
    self._config, self._functions, self._tokenizer = config, functions, tokenizer
    sharding = meshes.batch_sharding(functions.mesh, functions.rules)
    self._select = meshes.local_rows(config.eval.batch_size, sharding)
    self._samples = samples(config, functions, tokenizer)
    self._with_vectors = word_vectors.are_evaluated(config, functions.model)
    self._vector_metrics = word_vectors.of_config(config)
    word_vectors.check_coverage(self._vector_metrics, word_ids(tokenizer))
    self._sets: dict[str, _Set] = {}
    self.notes: dict[str, str] = {}
    self.predictors: dict[str, Predictor] = {}
    for name, section in config.eval.sets.items():
      # Configs of older runs have no such key.
      paths, key = section.get('transforms', ()), f'eval.sets.{name}.transforms'
      rows = pipeline.packed_rows(
        config.data,
        section.split,
        tokenizer,
        None,
        show_documents if multihost.is_primary() else silent,
        source=section.source or None,
        transformed=bool(paths),
      )
      transforms = batches.open_transforms(paths, tokenizer, rows, key)
      metrics = components.metrics(config, name)
      if metrics:
        _check_weights(rows, transforms, name)
      self._sets[name] = _Set(rows, transforms, metrics, make_eval_step(functions, metrics))
      if isinstance(rows, FeatureRows):
        if rows.note:
          self.notes[f'eval.sets.{name}'] = rows.note
        if section.scores:
          apply = apply_of(functions.model)
          self.predictors[name] = Predictor(
            config, name, functions, tokenizer, rows, apply, transforms
          )

  def transforms_line(self) -> str:
    """Returns which transforms apply to training rows and to each set; '' if there are none."""
    config = self._config
    of_sets = {name: section.get('transforms', ()) for name, section in config.eval.sets.items()}
    if not config.data.transforms and not any(of_sets.values()):
      return ''
    line = f'data.transforms={tuple(config.data.transforms)!r} of training rows alone'
    for name, paths in of_sets.items():
      line += f'; eval.sets.{name}.transforms={tuple(paths)!r}'
      if paths and name in self.predictors and self.predictors[name].generates:
        line += ' of rows, and not of the texts that scores compare'
    return line

  def directions(self, params: Params) -> dict[str, bool | None]:
    """Returns whether the highest value of each metric is the best, by name; computes none.

    All functions of evaluations are traced, so that their errors show at start-up. None is for
    a value without a direction.

    Args:
      params: parameters, or their shapes.

    Raises:
      UserError: two values of a set have the same name, or from the functions of the config.
    """
    self._samples.check(params)
    found: dict[str, bool | None] = {}
    for name, each in self._sets.items():
      predictor = self.predictors.get(name)
      try:
        size, row = self._config.eval.batch_size, each.first_row()
        terms = trace_batch(each.step, params, row, size, self._functions).out_info
        values = value_directions(terms, each.metrics)
        if predictor is not None:
          predictor.check_decoding(params)
          for metric in predictor.metrics:
            check_disjoint(values, metric.higher_is_better)
            values |= metric.higher_is_better
      except UserError as e:
        raise UserError(f'eval.sets.{name}: {e}') from e
      found |= {f'eval/{name}/{metric}': value for metric, value in values.items()}
    if self._with_vectors:
      found['eval/vectors/mean_length'] = None
      for vector_metric in self._vector_metrics:
        for value, direction in vector_metric.higher_is_better.items():
          found[f'eval/vectors/{vector_metric.name}/{value}'] = direction
    return found

  def programs(self, params: Params) -> Iterator[Program]:
    """Yields the programs that evaluate each set, not yet traced; `params` may be shapes."""
    for name, each in self._sets.items():
      row, size = each.first_row(), self._config.eval.batch_size
      trace = functools.partial(trace_batch, each.step, params, row, functions=self._functions)
      if each.metrics:
        yield Program('eval.batch_size', f'an evaluation of eval.sets.{name}', size, trace)
      if name in self.predictors:
        yield self.predictors[name].program(params, row)

  @functools.cached_property
  def _attention(self) -> AttentionMaps | None:
    """The attention maps of the first set."""
    for name, each in self._sets.items():
      return AttentionMaps(self._config, name, self._functions, self._tokenizer, each.rows)
    return None

  def evaluate(self, params: Params) -> Evaluation:
    """Returns the metrics of all sets and of word vectors, and the outputs for corpus metrics.

    Raises:
      UserError: a metric is undefined, such as that of an empty set.
    """
    values: dict[str, float] = {}
    notes: dict[str, str] = {}
    examples: dict[str, list[EvalExample]] = {}

    def add(name: str, new: Mapping[str, float], remarks: Mapping[str, str]) -> None:
      values.update({f'eval/{name}/{metric}': value for metric, value in new.items()})
      notes.update({f'eval/{name}/{metric}': note for metric, note in remarks.items()})

    for name, (rows, transforms, metrics, step) in self._sets.items():
      size = self._config.eval.batch_size
      source = batches.eval_batches(rows, size, self._select, transforms)
      add(name, evaluate(step, metrics, params, source, self._functions), {})
    for name, predictor in self.predictors.items():
      predictions = predictor.predictions(params)
      add(name, *predictor.scores(predictions))
      examples[name] = predictor.scored_examples(predictions)
    vectors = None
    if self._with_vectors:
      vectors = word_vectors.of_params(params, self._tokenizer)
      # The mean length shows how vectors grow, also without other metrics.
      length = float(np.linalg.norm(vectors.matrix, axis=1).mean())
      found = word_vectors.scores(self._vector_metrics, vectors)
      add('vectors', {'mean_length': length} | found.values, found.notes)
    return Evaluation(values, notes, examples, vectors)

  def run(
    self,
    step: int,
    params: Params,
    workdir: pathlib.Path,
    metrics: Metrics,
    progress: Progress,
  ) -> dict[str, float]:
    """Evaluates a step of a run; writes metrics, outputs, attention maps and samples.

    Returns:
      The metrics.
    """
    found = self.evaluate(params)
    metrics.write(step, found.values)
    summary = '  '.join(f'{name.removeprefix("eval/")} {v:.4g}' for name, v in found.values.items())
    progress.message(f'step {step}: {summary or "nothing to evaluate"}')
    maps = None if self._attention is None else self._attention(params)
    if multihost.is_primary():
      try:
        self._write_artifacts(step, found, maps, workdir)
      except OSError as e:  # a full disk must not end the run
        progress.message(f'warning: the outputs of step {step} are not written: {e}')
    for name, value in found.values.items():
      if value != value:
        cause = 'its weights sum to 0, or the model outputs NaN'
        progress.message(f'warning: {name} of step {step} is not a number: {cause}')
    for i, (prompt, text) in enumerate(self._samples.write(step, params, found.vectors)):
      metrics.text(step, f'sample {i + 1}', text, prompt)
      progress.message(f'  | {"".join((prompt, text))}'.replace('\n', '\n  | '))
    return found.values

  def _write_artifacts(
    self, step: int, found: Evaluation, maps: dict[str, Any] | None, workdir: pathlib.Path
  ) -> None:
    if found.examples:
      losses = losses_by_step(workdir, self._config.checkpoint.monitor)
      known = [(loss, at) for at, loss in losses.items() if at <= step]
      best = min(known)[1] if known else None
      eval_artifacts.write_predictions(workdir, step, found.examples, found.notes, best)
    if maps is not None:
      eval_artifacts.write_attention(workdir, next(iter(self._sets)), step, maps)
    if found.vectors is not None:
      words = found.vectors.words[: word_vectors.WORDS_ON_MAP]
      eval_artifacts.write_word_map(workdir, step, word_vectors.word_map(found.vectors, words))


def _check_weights(rows: Rows, transforms: Sequence[batches.Transform], name: str) -> None:
  """Raises UserError if all targets of a set have weight 0, so that its means are undefined."""
  weighted = False
  for batch in batches.eval_batches(rows, 64, transforms=transforms):
    if 'weights' not in batch or np.any(batch['weights']):
      return
    weighted = True
  if weighted:
    raise UserError(
      f'eval.sets.{name}: the weights of all its targets are 0, so that its metrics would not be '
      'numbers; see the weights that data.converter gives, its transforms and data.too_long, or '
      f'leave eval.sets.{name}.metrics empty'
    )


class Samples(NamedTuple):
  """The sampling functions of a run.

  Attributes:
    write: maps the step, the parameters and the word vectors, if they are evaluated, to the
      (prompt, text) of each prompt.
    check: takes parameters, or their shapes, and traces one decoding step.
  """

  write: Callable[[int, Params, Vectors | None], list[tuple[str, str]]]
  check: Callable[[Params], None] = lambda params: None


def samples(config: ConfigDict, functions: Inference, tokenizer: tokenizers.Tokenizer) -> Samples:
  """Returns the sampling functions of a config.

  A decoder continues each prompt. If the word vectors of another model are evaluated
  (`eval.vector_metrics`), a prompt is a word, and its text the nearest words with their cosines.

  Raises:
    UserError: the model can neither continue the prompts nor has word vectors.
  """
  if functions.model.continues_prompts:
    return _continuations(config, functions, tokenizer)
  prompts = tuple(config.log.sample_prompts)
  if word_vectors.are_evaluated(config, functions.model):
    _check_words(prompts, tokenizer)
    return Samples(
      lambda step, params, vectors: [(word, _neighbors(vectors, word)) for word in prompts]
    )
  if prompts:
    raise UserError(
      f'log.sample_prompts={prompts!r}: model.fn={config.model.fn!r} is no decoder, which '
      'continues prompts; set log.sample_prompts=()'
    )
  return Samples(lambda step, params, vectors: [])


def _continuations(
  config: ConfigDict, functions: Inference, tokenizer: tokenizers.Tokenizer
) -> Samples:
  log, model = config.log, functions.model
  how = DecodeConfig(
    end_id(tokenizer),
    log.sample_tokens,
    sample_fn=sampler(log.temperature, log.top_k, key='log.'),
    logits_processors=ban_unknown_token(tokenizer),
  )
  prompts = list(log.sample_prompts)
  encode = prompt_encoder(tokenizer)
  for prompt in prompts:
    check_prompt_length(model, len(encode(prompt)), f'log.sample_prompts: {prompt[:40]!r}')
  apply = apply_of(model)
  mesh, rules = functions.mesh, functions.rules

  def write(step: int, params: Params, vectors: Vectors | None) -> list[tuple[str, str]]:
    del vectors
    if not prompts:
      return []
    # Each step has a seed of its own, which training does not use, and each prompt a key of it.
    stream = np.random.SeedSequence((config.seed, step), spawn_key=_SAMPLES)
    (seed,) = stream.generate_state(1).tolist()
    indices = range(len(prompts))
    # All devices and processes decode together, so that parameters stay sharded.
    with meshes.set_mesh(mesh, rules):
      pieces = list(
        stream_text(model, apply, params, tokenizer, prompts, how, indices, seed, encode)
      )
    texts = [''.join(row) for row in zip(*pieces, strict=True)] or [''] * len(prompts)
    return list(zip(prompts, texts, strict=True))

  def check(params: Params) -> None:
    if prompts:
      tokens = np.zeros((len(prompts), 1), np.int32)
      batch = {'inputs': tokens, 'segments': tokens + 1, 'positions': tokens}
      check_decoding(model, apply, params, batch)

  return Samples(write, check)


def _check_words(prompts: tuple[str, ...], tokenizer: tokenizers.Tokenizer) -> None:
  if not prompts:
    return
  words = word_ids(tokenizer)
  vocabulary = make_vectors(words, np.zeros((len(words), 1)))
  for prompt in prompts:
    try:
      row_of(vocabulary, prompt)
    except UserError as e:
      raise UserError(f'log.sample_prompts={prompts!r:.200}: {e}') from e


def _neighbors(vectors: Vectors | None, word: str) -> str:
  assert vectors is not None
  found = nearest_words(vectors, word, _NEAREST)
  return ': ' + ', '.join(f'{other} {cosine:.2f}' for other, cosine in found)
