"""The sets of `eval.sets`: exact means over each set, and corpus metrics of predictions."""

import functools
import glob
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from ml_collections import ConfigDict

from lm import components
from lm.components import Inference
from lm.config.base import evaluation
from lm.data import batches, features, pipeline
from lm.data.packed_rows import FeatureRows, Rows
from lm.data.sources.rows import format_of
from lm.errors import UserError
from lm.evaluation.evaluators import Evaluation, Evaluator, check_disjoint
from lm.evaluation.host_memory import Program, trace_batch
from lm.evaluation.predict import Predictor
from lm.parallel import mesh as meshes
from lm.parallel import multihost
from lm.progress import show_documents, silent
from lm.text.files import expand_path
from lm.types import Batch, Metric, Params, WeightedSums, apply_of

EvalStep = Callable[[Params, Batch], WeightedSums]
_METRICS = 'metrics of the set'


def make_eval_step(functions: Inference, metrics: Iterable[Metric]) -> EvalStep:
  """Returns the jitted `(params, batch) -> {name: (sum, weight)}` of some metrics.

  Losses of layers are further terms. Each is that of a batch, weighted by the targets of the batch.
  """
  metrics = list(metrics)

  def step(params: Params, batch: Batch) -> WeightedSums:
    output = functions.apply(params, batch)
    terms: WeightedSums = {}
    for metric in metrics:
      new = metric.terms(output, batch)
      check_disjoint(terms, new, _METRICS)
      terms |= new
    if metrics and output.losses:
      weight = jnp.sum(batch['weights'])
      check_disjoint(terms, output.losses, _METRICS)
      terms |= {name: (value * weight, weight) for name, value in output.losses.items()}
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), terms)

  return jax.jit(meshes.with_mesh(step, functions.mesh, functions.rules))


def value_directions(terms: Iterable[str], metrics: Sequence[Metric]) -> dict[str, bool | None]:
  """Returns the name of each value of some metrics, and its direction.

  Args:
    terms: the names of the terms that the evaluation step returns.
    metrics: in the order of the step.

  Raises:
    UserError: two values have the same name.
  """
  means = dict.fromkeys(terms, 1.0)
  for metric in metrics:
    derived = metric.derive(means)
    check_disjoint(means, derived, _METRICS)
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


class _Set(NamedTuple):
  name: str
  rows: Rows
  transforms: tuple[batches.Transform, ...]
  metrics: list[Metric]
  step: EvalStep

  def first_row(self) -> Mapping[str, np.ndarray]:
    """Returns a batch of one row."""
    return next(self.batches(1))

  def batches(
    self, size: int, select: batches.Select = slice(None)
  ) -> Iterator[batches.NumpyBatch]:
    """Yields all rows in order, transformed; see lm.data.batches.eval_batches."""
    return batches.eval_batches(self.rows, size, select, self.transforms, self.name)


def sets(config: ConfigDict, functions: Inference, tokenizer: tokenizers.Tokenizer) -> Evaluator:
  """Returns the evaluator of all sets of `config.eval.sets`.

  Raises:
    UserError: a set or a metric is wrong.
  """
  found = Sets(config, functions, tokenizer)
  return Evaluator(found.run, found.directions, found.programs, found.notes)


# The corpus metrics of a run without evaluation sets, by the answer of its predictions.
_SCORES = {
  'label': ('lm.metrics.labels:classification', 'lm.metrics.labels:calibration'),
  'labels': ('lm.metrics.labels:multilabel',),
  'value': ('lm.metrics.labels:regression',),
  'tags': ('lm.metrics.labels:tags',),
  'answer': ('lm.metrics.answers:squad',),
  'text': ('lm.metrics.labels:exact_match',),
}


def file_set(config: ConfigDict, file: str) -> None:
  """Replaces the sets of a config by 'data', the rows of a file, with the metrics of the first set.

  A set with corpus metrics precedes the others. Runs without sets, such as imported ones, have the
  usual metrics of their kind of task. For a language model, a .txt file is one text.

  Raises:
    UserError: there is no such file, or its suffix is unknown.
  """
  path = expand_path(file, '--data')
  if not path.is_file():
    raise UserError(f'--data={file}: no such file')
  form = format_of(path, 'it another')
  sections = sorted(config.eval.sets.values(), key=lambda section: not section.scores)
  data = pipeline.component(config.data, sections[0].get('component', '') if sections else '')
  source = f'lm.data.sources.rows:rows(file={str(path)!r})'
  if data['task'] is None:
    usual = evaluation('train')
    if form == 'text':
      source = f'lm.data.sources:text(files={glob.escape(str(path))!r})'
  else:
    task, converter = features.build_task(data)
    usual = evaluation('train', metrics=(), scores=_SCORES.get(converter.answer, ()))
    if form == 'text':
      raise UserError(
        f'--data={file}: lines of text have no targets; give .jsonl or .tsv with the fields '
        f'{", ".join(task.fields)} and that of the target'
      )
  of_file = {**(sections[0] if sections else usual), 'split': 'train', 'source': source, 'limit': 0}
  with config.unlocked():
    config.eval.sets = ConfigDict({'data': of_file})
  config.eval.evaluators = ('lm.evaluation.sets:sets',)


class Sets:
  """The sets of `config.eval.sets`, each with its rows, metrics and compiled step.

  Attributes:
    predictors: of the sets that have corpus metrics.
    notes: how many examples data.too_long skipped or truncated, by set, and which transforms apply.

  Raises:
    UserError: a set or a metric is wrong.
  """

  def __init__(self, config: ConfigDict, functions: Inference, tokenizer: tokenizers.Tokenizer):
    self._config, self._functions = config, functions
    sharding = meshes.batch_sharding(functions.mesh, functions.rules)
    self._select = meshes.local_rows(config.eval.batch_size, sharding)
    self._sets: dict[str, _Set] = {}
    self.notes: dict[str, str] = {}
    self.predictors: dict[str, Predictor] = {}
    for name, section in config.eval.sets.items():
      # Configs of older runs have no such key.
      paths, key = section.get('transforms', ()), f'eval.sets.{name}.transforms'
      data = pipeline.component(config.data, section.get('component', ''))
      rows = pipeline.packed_rows(
        data,
        section.split,
        tokenizer,
        None,
        show_documents if multihost.is_primary() else silent,
        source=section.source or None,
        transformed=bool(paths),
      )
      transforms = batches.open_transforms(paths, tokenizer, rows, key)
      if transforms:
        one = next(batches.eval_batches(rows, 1, transforms=transforms, name=name))
        row = {field: x[0] for field, x in one.items()}
        components.check_length(config, components.abstract_row(row), key)
      metrics = components.metrics(config, name)
      each = _Set(name, rows, transforms, metrics, make_eval_step(functions, metrics))
      if metrics:
        _check_weights(each.batches(64), name)
      self._sets[name] = each
      if rows.note:
        self.notes[f'eval.sets.{name}'] = rows.note
      if isinstance(rows, FeatureRows) and section.scores:
        apply = apply_of(functions.model)
        self.predictors[name] = Predictor(
          config, name, functions, tokenizer, rows, apply, transforms, data
        )
    if note := self._transforms_note():
      self.notes['transforms'] = note

  def _transforms_note(self) -> str:
    """Returns which transforms apply to training rows and to each set; '' if there are none."""
    config = self._config
    of_sets = {name: section.get('transforms', ()) for name, section in config.eval.sets.items()}
    of_training = {'data': config.data.transforms}
    for name, section in config.data.mixture.items():
      of_training |= {f'data.mixture.{name}': p for p in [section.get('transforms')] if p}
    if not any([*of_training.values(), *of_sets.values()]):
      return ''
    line = '; '.join(f'{key}.transforms={tuple(paths)!r}' for key, paths in of_training.items())
    line += ' apply to training rows alone'
    for name, paths in of_sets.items():
      line += f'; eval.sets.{name}.transforms={tuple(paths)!r}'
      if paths and name in self.predictors and self.predictors[name].generates:
        line += ' apply to rows, and not to the texts that scores compare'
    return line

  def directions(self, params: Params) -> dict[str, bool | None]:
    """Returns the direction of each value by name; traces all functions and computes none.

    Raises:
      UserError: two values of a set have the same name, or a function of the config raises it.
    """
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
            check_disjoint(values, metric.higher_is_better, _METRICS)
            values |= metric.higher_is_better
      except UserError as e:
        raise UserError(f'eval.sets.{name}: {e}') from e
      found |= {f'eval/{name}/{metric}': value for metric, value in values.items()}
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

  def run(self, step: int, params: Params) -> Evaluation:
    """Returns the metrics of all sets, and the outputs for corpus metrics.

    Raises:
      UserError: a metric is undefined, such as that of an empty set.
    """
    del step
    found = Evaluation()
    for name, each in self._sets.items():
      source = each.batches(self._config.eval.batch_size, self._select)
      values = evaluate(each.step, each.metrics, params, source, self._functions)
      found.values.update({f'eval/{name}/{metric}': v for metric, v in values.items()})
    for name, predictor in self.predictors.items():
      predictions = predictor.predictions(params)
      values, notes = predictor.scores(predictions)
      found.values.update({f'eval/{name}/{metric}': v for metric, v in values.items()})
      found.notes.update({f'eval/{name}/{metric}': note for metric, note in notes.items()})
      found.examples[name] = predictor.scored_examples(predictions)
    return found


def _check_weights(source: Iterable[batches.NumpyBatch], name: str) -> None:
  """Raises UserError if all targets of a set have weight 0, so that its means are undefined."""
  weighted = False
  for batch in source:
    if 'weights' not in batch or np.any(batch['weights']):
      return
    weighted = True
  if weighted:
    raise UserError(
      f'eval.sets.{name}: all targets have weight 0, so that its metrics would be NaN; check the '
      f'weights of data.converter, eval.sets.{name}.transforms and data.too_long, or leave '
      f'eval.sets.{name}.metrics empty'
    )
