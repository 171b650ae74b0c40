"""The evaluations of a run: every named set, what is kept of its outputs, and samples."""

import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from ml_collections import ConfigDict

from lm import components
from lm.components import Components, Inference
from lm.data import batches, pipeline
from lm.data.packed_rows import FeatureRows, Rows
from lm.errors import UserError
from lm.evaluation import vectors as word_vectors
from lm.evaluation.attention_maps import AttentionMaps
from lm.evaluation.evaluate import EvalStep, check_apart, evaluate, make_eval_step, names_of, trace
from lm.evaluation.host_memory import Program
from lm.evaluation.predict import Predictor
from lm.evaluation.samples import samples
from lm.evaluation.vectors import MAPPED, of_params
from lm.parallel import mesh, multihost
from lm.parallel import mesh as meshes
from lm.progress import Progress, show_documents, silent
from lm.text.tokenizers import word_ids
from lm.text.vectors import Vectors
from lm.types import Metric, Params, apply_of
from lm.workdir import eval_artifacts
from lm.workdir.eval_artifacts import EvalExample
from lm.workdir.metrics_writer import Metrics
from lm.workdir.run_data import losses_by_step


class Evaluation(NamedTuple):
  """What all sets say of a model: values and notes by 'eval/SET/METRIC', examples by set.

  What is said of its word vectors has the names 'eval/vectors/...'.
  """

  values: dict[str, float]
  notes: dict[str, str]
  examples: dict[str, list[EvalExample]]
  vectors: Vectors | None  # where evaluations look at them


class Evaluators:
  """The sets of `config.eval.sets`, each with its rows, metrics and compiled step.

  Attributes:
    predictors: of the sets that have corpus metrics.
    notes: by set, how many examples data.too_long left out or cut, where it did.

  Raises:
    UserError: a set or a metric is wrong, or the model can do nothing with a prompt.
  """

  def __init__(
    self, config: ConfigDict, functions: Components | Inference, tokenizer: tokenizers.Tokenizer
  ):
    self._config = config
    self._functions = functions
    self._tokenizer = tokenizer
    sharding = meshes.batch_sharding(functions.mesh, functions.rules)
    self._select = mesh.local_rows(config.eval.batch_size, sharding)
    show = show_documents if multihost.is_primary() else silent
    self._samples = samples(config, functions, tokenizer)
    self._vector_metrics = word_vectors.of_config(config)
    word_vectors.check_coverage(self._vector_metrics, word_ids(tokenizer))
    apply = apply_of(functions.model)
    self._sets: dict[str, tuple[Rows, tuple[batches.Transform, ...], list[Metric], EvalStep]] = {}
    self.notes: dict[str, str] = {}
    self.predictors: dict[str, Predictor] = {}
    for name, section in config.eval.sets.items():
      rows = pipeline.packed_rows(
        config.data,
        section.split,
        tokenizer,
        None,
        show,
        source=section.source or None,
        transformed=bool(section.get('transforms')),
      )
      # Configs of older runs have no such key.
      key = f'eval.sets.{name}.transforms'
      transforms = batches.open_transforms(section.get('transforms', ()), tokenizer, rows, key)
      metrics = components.metrics(config, name)
      if metrics:
        _check_weights(rows, transforms, name)
      if isinstance(rows, FeatureRows) and rows.note:
        self.notes[f'eval.sets.{name}'] = rows.note
      self._sets[name] = rows, transforms, metrics, make_eval_step(functions, metrics)
      if isinstance(rows, FeatureRows) and section.scores:
        self.predictors[name] = Predictor(
          config, name, functions, tokenizer, rows, apply, transforms
        )

  def transforms_line(self) -> str:
    """Returns which transforms change the rows of training and of each set, '' for none at all."""
    of_sets = {
      name: section.get('transforms', ()) for name, section in self._config.eval.sets.items()
    }
    if not self._config.data.transforms and not any(of_sets.values()):
      return ''
    line = f'data.transforms={tuple(self._config.data.transforms)!r} of training rows alone'
    for name, paths in of_sets.items():
      line += f'; eval.sets.{name}.transforms={tuple(paths)!r}'
      if paths and name in self.predictors and self.predictors[name].writes:
        line += ' of rows, and not of the texts that scores compare'
    return line

  def directions(self, params: Params) -> dict[str, bool | None]:
    """Returns every metric by name, and whether its highest value is the best; computes none.

    All that evaluations do is traced, so that what is wrong with a function shows at start-up. None
    stands for a value that has no direction, or whose metric declares none.

    Args:
      params: parameters, or their shapes.

    Raises:
      UserError: two metrics of a set have values of one name, or from the functions of the config.
    """
    self._samples.check(params)
    found: dict[str, bool | None] = {}
    for name, (rows, transforms, metrics, step) in self._sets.items():
      size = self._config.eval.batch_size
      row = next(iter(batches.eval_batches(rows, 1, transforms=transforms)))
      predictor = self.predictors.get(name)
      try:
        values = names_of(trace(step, params, row, size, self._functions), metrics)
        if predictor is not None:
          predictor.check_decoding(params)
        for metric in [] if predictor is None else predictor.metrics:
          check_apart(values, metric.higher_is_better)
          values |= metric.higher_is_better
      except UserError as e:
        raise UserError(f'eval.sets.{name}: {e}') from e
      found |= {f'eval/{name}/{metric}': value for metric, value in values.items()}
    if word_vectors.wanted(self._config, self._functions.model):
      found['eval/vectors/mean_length'] = None
      found |= {
        f'eval/vectors/{metric.name}/{value}': direction
        for metric in self._vector_metrics
        for value, direction in metric.higher_is_better.items()
      }
    return found

  def programs(self, params: Params) -> Iterator[Program]:
    """Yields what evaluations compute of every set, to be traced; `params` may be shapes."""
    for name, (rows, transforms, metrics, step) in self._sets.items():
      row = next(iter(batches.eval_batches(rows, 1, transforms=transforms)))
      of_batch = functools.partial(trace, step, params, row, functions=self._functions)
      size = self._config.eval.batch_size
      if metrics:
        yield Program('eval.batch_size', f'an evaluation of eval.sets.{name}', size, of_batch)
      if name in self.predictors:
        yield self.predictors[name].program(params, row)

  @functools.cached_property
  def _attention(self) -> AttentionMaps | None:
    """The attention maps of the first set."""
    for name, (rows, *_) in self._sets.items():
      return AttentionMaps(self._config, name, self._functions, self._tokenizer, rows)
    return None

  def evaluate(self, params: Params) -> Evaluation:
    """Returns the metrics of all sets and word vectors, and outputs for corpus metrics.

    Raises:
      UserError: a metric cannot be found, such as that of an empty set.
    """
    values: dict[str, float] = {}
    notes: dict[str, str] = {}
    examples: dict[str, list[EvalExample]] = {}
    for name, (rows, transforms, metrics, step) in self._sets.items():
      size = self._config.eval.batch_size
      source = batches.eval_batches(rows, size, self._select, transforms)
      means = evaluate(step, metrics, params, source, self._functions)
      values |= {f'eval/{name}/{metric}': value for metric, value in means.items()}
    for name, predictor in self.predictors.items():
      predictions = predictor.predictions(params)
      scores, of_metrics = predictor.scores(predictions)
      values |= {f'eval/{name}/{metric}': value for metric, value in scores.items()}
      notes |= {f'eval/{name}/{metric}': note for metric, note in of_metrics.items()}
      examples[name] = predictor.evaluated(predictions)
    vectors = None
    if word_vectors.wanted(self._config, self._functions.model):
      vectors = of_params(params, self._tokenizer)
      # How long words are shows how they grow, also where nothing else is asked.
      values['eval/vectors/mean_length'] = float(np.linalg.norm(vectors.matrix, axis=1).mean())
      found = word_vectors.scores(self._vector_metrics, vectors)
      values |= {f'eval/vectors/{metric}': value for metric, value in found.values.items()}
      notes |= {f'eval/vectors/{metric}': note for metric, note in found.notes.items()}
    return Evaluation(values, notes, examples, vectors)

  def run(
    self,
    step: int,
    params: Params,
    workdir: pathlib.Path,
    metrics: Metrics,
    progress: Progress,
  ) -> dict[str, float]:
    """Evaluates a step of a run; writes numbers, outputs, maps and samples.

    Returns:
      The numbers.
    """
    found = self.evaluate(params)
    metrics.write(step, found.values)
    summary = '  '.join(f'{name.removeprefix("eval/")} {v:.4g}' for name, v in found.values.items())
    progress.message(f'step {step}: {summary or "nothing to evaluate"}')
    maps = None if self._attention is None else self._attention(params)
    if multihost.is_primary():
      try:
        self._keep(step, found, maps, workdir)
      except OSError as e:  # a full disk costs the outputs and not the run
        progress.message(f'warning: the outputs of step {step} are not kept: {e}')
    for name, value in found.values.items():
      if value != value:
        cause = 'its weights add up to 0, or the model gives no numbers'
        progress.message(f'warning: {name} of step {step} is not a number: {cause}')
    for i, (prompt, text) in enumerate(self._samples.write(step, params, found.vectors)):
      metrics.text(step, f'sample {i + 1}', text, prompt)
      progress.message(f'  | {"".join((prompt, text))}'.replace('\n', '\n  | '))
    return found.values

  def _keep(
    self, step: int, found: Evaluation, maps: dict[str, Any] | None, workdir: pathlib.Path
  ) -> None:
    if found.examples:
      losses = losses_by_step(workdir, self._config.checkpoint.best)
      known = [(loss, at) for at, loss in losses.items() if at <= step]
      best = min(known)[1] if known else None
      eval_artifacts.write_predictions(workdir, step, found.examples, found.notes, best)
    if maps is not None:
      eval_artifacts.write_attention(workdir, next(iter(self._sets)), step, maps)
    if found.vectors is not None:
      words = found.vectors.words[:MAPPED]
      eval_artifacts.write_word_map(workdir, step, word_vectors.word_map(found.vectors, words))


def _check_weights(rows: Rows, transforms: Sequence[batches.Transform], name: str) -> None:
  """Raises UserError where no target of a set counts, so that its means are not numbers."""
  weighted = False
  for batch in batches.eval_batches(rows, 64, transforms=transforms):
    if 'weights' not in batch or np.any(batch['weights']):
      return
    weighted = True
  if weighted:
    raise UserError(
      f'eval.sets.{name}: the weights of all its targets are 0, so that its metrics would not be '
      'numbers; see the weights that data.convert gives, its transforms and data.too_long, or '
      f'leave eval.sets.{name}.metrics empty'
    )
